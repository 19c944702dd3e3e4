//! A client and a server with one link between them: a real one, or ours.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use faultbed_common::proxy_spec::{Cut, LinkEffect};
use rustix::{
    event::PollFlags,
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt},
};

use crate::{
    kernel::{
        ground::{CLIENT, CLIENT_V6, DEVICE, Ground, Place, SERVER, SERVER_V6},
        proxy::{BACK, OUT, Proxy},
        sys,
    },
    wait::{strike_after, wait_for},
};

/// What must come, comes within this on a machine that is busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(40);
const PORT: u16 = 7000;
/// Where the server listens behind our proxy.
const PRIVATE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);
const PRIVATE_V6: Ipv6Addr = Ipv6Addr::LOCALHOST;
const BACKLOG: i32 = 64;
/// Words exchanged before anything is looked at: the round trip is known then, and nothing else.
const GREETINGS: usize = 4;

/// The link between client and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Packets cross a veth; nftables drops them.
    Kernel,
    /// Our proxy stands before the server, with faults of packet grade.
    Proxy,
}

/// Which addresses client and server have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Which packets are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the client to the server.
    Out,
    /// From the server to the client.
    Back,
    Both,
}

impl Way {
    fn is_out(self) -> bool {
        matches!(self, Self::Out | Self::Both)
    }

    fn is_back(self) -> bool {
        matches!(self, Self::Back | Self::Both)
    }
}

/// A client and a server.
#[derive(Debug)]
pub struct Scene {
    path: Path,
    ground: Ground,
    proxy: Option<Proxy>,
    /// Where the client dials.
    server: SocketAddr,
    listener: Option<TcpListener>,
}

/// The two ends of one connection.
#[derive(Debug)]
pub(super) struct Joined {
    /// The client's.
    pub(super) near: TcpStream,
    /// The server's.
    pub(super) far: TcpStream,
}

impl Scene {
    /// Builds a link of its own and a server behind it. Processes that it starts end with the
    /// calling thread.
    #[must_use]
    pub fn new(path: Path, family: Family) -> Self {
        let ground = Ground::new();
        let (client, server, private) = match family {
            Family::V4 => (CLIENT, SERVER, SocketAddr::from((PRIVATE, PORT + 1))),
            Family::V6 => (CLIENT_V6, SERVER_V6, SocketAddr::from((PRIVATE_V6, PORT + 1))),
        };
        let server = SocketAddr::new(address(server), PORT);
        let listens = if path == Path::Proxy { private } else { server };
        let (listener, proxy) = ground.inside(Place::Server, || {
            let listener = open_listener(listens);
            let proxy =
                (path == Path::Proxy).then(|| Proxy::start(address(client), server, private));
            (listener, proxy)
        });
        Self { path, ground, proxy, server, listener: Some(listener) }
    }

    pub(super) fn path(&self) -> Path {
        self.path
    }

    /// Begins a connection in the client's namespace; `prepare` sets options of its socket first.
    pub(super) fn begin(&self, prepare: impl FnOnce(&OwnedFd)) -> TcpStream {
        self.ground.inside(Place::Client, || {
            let fd = new_socket(self.server);
            prepare(&fd);
            match connect(&fd, &self.server) {
                Ok(()) | Err(Errno::INPROGRESS) => TcpStream::from(fd),
                Err(error) => unreachable!("begin to dial: {error}"),
            }
        })
    }

    /// A connection over which a few words have gone both ways.
    pub(super) fn join(&self) -> Joined {
        self.join_with(|_| {})
    }

    /// As [`Self::join`], with options of the client's socket set before it dials.
    pub(super) fn join_with(&self, prepare: impl FnOnce(&OwnedFd)) -> Joined {
        let near = self.begin(prepare);
        let said = sys::wait(&near, PollFlags::OUT, Instant::now() + PATIENCE);
        assert_eq!(said, Some(PollFlags::OUT), "connected without a fault");
        near.set_nonblocking(false).expect("set mode");
        let joined = Joined { near, far: self.accept() };
        for _ in 0..GREETINGS {
            pass(&joined.near, &joined.far, b"hello");
            pass(&joined.far, &joined.near, b"hello");
        }
        // Acknowledges now: a late acknowledgement that meets the cut would set off another timer.
        sockopt::set_tcp_quickack(&joined.near, true).expect("set quickack");
        sockopt::set_tcp_quickack(&joined.far, true).expect("set quickack");
        for end in [&joined.near, &joined.far] {
            wait_for("greetings are acknowledged", PATIENCE, || match sys::send_queue(end) {
                0 => Ok(()),
                left => Err(format!("{left} bytes are not")),
            });
        }
        joined
    }

    /// The next connection that reaches the server.
    pub(super) fn accept(&self) -> TcpStream {
        let listener = self.listener.as_ref().expect("the server listens");
        let said = sys::wait(listener, PollFlags::IN, Instant::now() + PATIENCE);
        assert_eq!(said, Some(PollFlags::IN), "a connection reaches the server");
        let (far, _) = listener.accept().expect("accept");
        far.set_nodelay(true).expect("set nodelay");
        far.set_read_timeout(Some(PATIENCE)).expect("set time-out");
        far.set_write_timeout(Some(PATIENCE)).expect("set time-out");
        far
    }

    /// The server listens no more.
    pub(super) fn stop_listening(&mut self) {
        self.listener = None;
    }

    /// Drops every packet of a way. In force when this returns, with the moment.
    pub(super) fn cut(&mut self, way: Way) -> Instant {
        match &mut self.proxy {
            Some(proxy) => {
                let cut = LinkEffect { cut: Some(Cut::Packets), ..LinkEffect::default() };
                let mut effects = Vec::new();
                if way.is_out() {
                    effects.push((OUT, cut.clone()));
                }
                if way.is_back() {
                    effects.push((BACK, cut));
                }
                assert!(proxy.set(&effects), "cuts of packets can be had everywhere");
            }
            None => {
                if way.is_out() {
                    self.filter(Place::Server, "drop");
                }
                if way.is_back() {
                    self.filter(Place::Client, "drop");
                }
            }
        }
        Instant::now()
    }

    /// Ends every fault. Healed when this returns, with the moment.
    pub(super) fn heal(&mut self) -> Instant {
        match &mut self.proxy {
            Some(proxy) => {
                proxy.set(&[]);
            }
            None => {
                for place in [Place::Server, Place::Client] {
                    self.ground.feed(place, "nft", &["-f", "-"], "flush ruleset\n");
                }
            }
        }
        Instant::now()
    }

    /// What becomes of segments that arrive in a namespace over the link: dropped here and not where
    /// they are sent, since a sender is told of what its own machine drops. Neighbours stay known.
    pub(super) fn filter(&self, place: Place, verdict: &str) {
        let rules = format!(
            "add table inet link\n\
             add chain inet link arrive {{ type filter hook prerouting priority raw; }}\n\
             add rule inet link arrive iifname \"{DEVICE}\" meta l4proto tcp {verdict}\n"
        );
        self.ground.feed(place, "nft", &["-f", "-"], &rules);
    }

    /// Our proxy, where it is the link.
    pub(super) fn proxy(&mut self) -> Option<&mut Proxy> {
        self.proxy.as_mut()
    }

    pub(super) fn ground(&self) -> &Ground {
        &self.ground
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A socket with the oldest congestion control, which every machine has: the default differs.
fn new_socket(address: SocketAddr) -> OwnedFd {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, flags, None).expect("a socket");
    sockopt::set_tcp_nodelay(&fd, true).expect("set nodelay");
    sockopt::set_tcp_congestion(&fd, "reno").expect("set congestion control");
    fd
}

fn open_listener(address: SocketAddr) -> TcpListener {
    let fd = new_socket(address);
    sockopt::set_socket_reuseaddr(&fd, true).expect("set reuse");
    bind(&fd, &address).expect("bind");
    listen(&fd, BACKLOG).expect("listen");
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(false).expect("set mode");
    listener
}

/// Sends a word one way and waits for it.
pub(super) fn pass(mut from: &TcpStream, mut to: &TcpStream, word: &[u8]) {
    from.write_all(word).expect("write");
    let mut bytes = vec![0; word.len()];
    to.read_exact(&mut bytes).expect("read");
    assert_eq!(bytes, word);
}

/// Waits for bytes; when the last of them had come.
pub(super) fn arrival(mut to: &TcpStream, expected: &[u8]) -> Instant {
    let mut bytes = vec![0; expected.len()];
    to.set_read_timeout(Some(PATIENCE)).expect("set time-out");
    to.read_exact(&mut bytes).expect("read what was written during the fault");
    let at = Instant::now();
    assert!(bytes == expected, "bytes arrive as they were written");
    at
}

/// Lets time pass until some moment after another one.
pub(super) fn until(from: Instant, after: Duration) {
    strike_after((from + after).saturating_duration_since(Instant::now()));
}
