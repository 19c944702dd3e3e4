//! A lab in miniature: nodes are sockets with addresses of their own, behind one proxy.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use faultbed_common::{
    fault::HealPolicy,
    generation::FaultRevision,
    link::Link,
    name::{FaultName, NodeName},
    proxy_spec::{Cut, Deadline, Delay, LinkEffect, LinkFault, Listener, ProxyFile},
    report::LinkEvidence,
};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with},
};

use crate::clock;
use crate::proxy::{Applied, Proxy, ProxyClient, ProxyState};

/// Nothing in these tests takes longer, on a machine that is busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(45);

/// A read that takes as long will never end: so the test fails instead of hanging.
const HANG: Duration = Duration::from_secs(60);

/// Waits until something is so.
#[track_caller]
pub(super) fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    eventually_within(PATIENCE, what, is_so);
}

/// The same, for what may take longer, or must not take as long.
#[track_caller]
pub(crate) fn eventually_within(patience: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A proxy, its file and the nodes behind it.
#[derive(Debug)]
pub(super) struct Lab {
    dir: tempfile::TempDir,
    pub(super) file: ProxyFile,
    proxy: Option<Proxy>,
    nodes: BTreeMap<&'static str, Node>,
}

#[derive(Debug)]
struct Node {
    private: IpAddr,
    listen: SocketAddr,
    server: TcpListener,
}

impl Lab {
    /// A lab whose nodes all listen, and whose proxy runs.
    pub(super) fn start(nodes: &[&'static str]) -> Self {
        let mut lab = Self::prepare(nodes);
        lab.run();
        lab
    }

    /// A lab whose proxy does not run yet.
    pub(super) fn prepare(nodes: &[&'static str]) -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().expect("make a directory");
        fs::create_dir(dir.path().join("proxy")).expect("make a directory");
        let boot_id = clock::boot_id().expect("read the boot id");
        let file = ProxyFile { version: 1, boot_id, ..ProxyFile::default() };
        let mut lab = Self { dir, file, proxy: None, nodes: BTreeMap::new() };
        for name in nodes {
            // Long tests start thousands of labs, one after the other: numbers come round again.
            let number = LAST.fetch_add(1, Ordering::Relaxed) % 254 + 1;
            let process = u8::try_from(std::process::id() % 251).expect("a byte");
            let number = u8::try_from(number).expect("at most 254");
            let private = IpAddr::V4(Ipv4Addr::new(127, 140, process, number));
            let server = TcpListener::bind((private, 0)).expect("listen as a node");
            let upstream = server.local_addr().expect("have an address");
            let advertised = IpAddr::V4(Ipv4Addr::new(127, 88, process, number));
            let listen = SocketAddr::new(advertised, upstream.port());
            lab.file.spec.listeners.push(Listener {
                node: node(name),
                port: "client".parse().expect("a port"),
                listen,
                upstream,
            });
            lab.file.spec.diallers.insert(private, node(name));
            lab.nodes.insert(name, Node { private, listen, server });
        }
        lab
    }

    /// Starts the proxy with the file as it is.
    pub(super) fn run(&mut self) {
        self.write();
        self.proxy = Some(Proxy::start(&self.home(), &self.socket()).expect("start the proxy"));
    }

    /// Another data plane takes over from the one that runs.
    pub(super) fn hand_over(&mut self) {
        let next = Proxy::take_over(&self.home(), &self.socket()).expect("take over");
        next.dismiss_predecessor();
        self.proxy = Some(next);
    }

    /// Ends the proxy.
    pub(super) fn halt(&mut self) {
        self.proxy = None;
    }

    /// The proxy's own directory, below that of the agent.
    pub(super) fn home(&self) -> PathBuf {
        self.dir.path().join("proxy")
    }

    /// The agent's directory.
    pub(super) fn agent_dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub(super) fn client(&self) -> ProxyClient {
        ProxyClient::new(&self.socket())
    }

    pub(super) fn write(&self) {
        let text = serde_json::to_vec(&self.file).expect("write the file");
        fs::write(self.home().join("proxy.json"), text).expect("write the file");
    }

    /// Makes the file true.
    pub(super) fn apply(&mut self) -> Applied {
        self.file.spec.generation = self.file.spec.generation.next();
        self.write();
        let applied = self.client().apply().expect("apply");
        assert_eq!(applied.generation, self.file.spec.generation);
        applied
    }

    pub(super) fn report(&self) -> ProxyState {
        self.client().report().expect("report")
    }

    /// What a fault did to a link.
    pub(super) fn evidence(&self, fault: &str, link: &str) -> LinkEvidence {
        let mut state = self.report();
        let fault = state.faults.get_mut(&fault.parse::<FaultName>().expect("a fault"));
        let link: Link = link.parse().expect("a link");
        fault.and_then(|fault| fault.links.remove(&link)).unwrap_or_default()
    }

    /// Adds a fault without an end to the file.
    pub(super) fn inject(
        &mut self,
        name: &str,
        effect: LinkEffect,
        links: &[&str],
    ) -> &mut LinkFault {
        let fault = LinkFault {
            revision: FaultRevision(1),
            lasts: None,
            effect,
            grade: None,
            heal: HealPolicy::Resume,
            links: links.iter().map(|link| link.parse().expect("a link")).collect::<BTreeSet<_>>(),
            seed: 7,
            probability: None,
            canary: false,
            fast_heal: false,
        };
        let name: FaultName = name.parse().expect("a fault");
        self.file.spec.faults.insert(name.clone(), fault);
        self.file.spec.faults.get_mut(&name).expect("inserted")
    }

    /// Takes a fault out of the file and makes that true.
    pub(super) fn heal(&mut self, name: &str) {
        self.file.spec.faults.remove(&name.parse::<FaultName>().expect("a fault"));
        self.apply();
    }

    /// Ends a fault at a moment from now.
    pub(super) fn end_in(&mut self, name: &str, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).expect("short");
        let deadline = Deadline {
            revision: FaultRevision(1),
            boottime_ns: Some(clock::boottime_ns() + nanoseconds),
        };
        self.file.deadlines.insert(name.parse().expect("a fault"), deadline);
    }

    pub(super) fn listen(&self, name: &str) -> SocketAddr {
        self.nodes[name].listen
    }

    /// The private address of a node, from which it dials.
    pub(super) fn address(&self, name: &str) -> IpAddr {
        self.nodes[name].private
    }

    pub(super) fn server(&self, name: &str) -> &TcpListener {
        &self.nodes[name].server
    }

    /// A connection from one node to another: the dialler's end and the acceptor's.
    pub(super) fn join(&self, from: &str, to: &str) -> (TcpStream, TcpStream) {
        let near = self.dial(from, to).expect("dial");
        let (far, _) = self.nodes[to].server.accept().expect("accept");
        far.set_read_timeout(Some(HANG)).expect("bound reads");
        (near, far)
    }

    /// Dials as a node does, from its address.
    pub(super) fn dial(&self, from: &str, to: &str) -> io::Result<TcpStream> {
        finish(self.begin_dial(from, to)?, PATIENCE)
    }

    /// Begins to dial.
    pub(super) fn begin_dial(&self, from: &str, to: &str) -> io::Result<TcpStream> {
        begin(Some(self.nodes[from].private), self.nodes[to].listen)
    }

    /// Whether a dial from a node gets nowhere: neither accepted nor refused while another one,
    /// begun later, succeeds.
    pub(super) fn is_unanswered(&self, from: &str, to: &str, other: &str) -> bool {
        let dial = self.begin_dial(from, to).expect("begin to dial");
        drop(self.dial(other, to).expect("the other dials"));
        drop(self.nodes[to].server.accept().expect("accept the other"));
        matches!(finish(dial, Duration::from_millis(300)), Err(error) if error.kind() == io::ErrorKind::TimedOut)
    }

    /// Whether a dial from a node gets no answer for a while.
    pub(super) fn is_unanswered_by(&self, from: &str, to: &str) -> bool {
        let dial = self.begin_dial(from, to).expect("begin to dial");
        matches!(finish(dial, Duration::from_millis(300)), Err(error) if error.kind() == io::ErrorKind::TimedOut)
    }
}

pub(super) fn node(name: &str) -> NodeName {
    name.parse().expect("a node")
}

pub(super) fn cut(cut: Cut) -> LinkEffect {
    LinkEffect { cut: Some(cut), ..LinkEffect::default() }
}

pub(super) fn late(base: Duration, jitter: Duration) -> LinkEffect {
    let us = |time: Duration| u64::try_from(time.as_micros()).expect("short");
    let delay = Delay { base_us: us(base), jitter_us: us(jitter), ..Delay::default() };
    LinkEffect { delay: Some(delay), ..LinkEffect::default() }
}

/// Begins a connection, from an address or from whichever the kernel takes.
pub(super) fn begin(from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd: OwnedFd = socket_with(family, SocketType::STREAM, flags, None)?;
    if let Some(from) = from {
        bind(&fd, &SocketAddr::new(from, 0))?;
    }
    match connect(&fd, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(fd)),
        Err(error) => Err(error.into()),
    }
}

/// Waits for a connection that was begun.
pub(super) fn finish(stream: TcpStream, patience: Duration) -> io::Result<TcpStream> {
    let end = Instant::now() + patience;
    loop {
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        if stream.peer_addr().is_ok() {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            return Ok(stream);
        }
        if Instant::now() > end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether nothing can be read from a stream now, and it has not ended.
pub(super) fn is_silent(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("set mode");
    let result = stream.peek(&mut [0]);
    stream.set_nonblocking(false).expect("set mode");
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Sends a word one way and waits for it.
pub(super) fn pass(mut from: &TcpStream, mut to: &TcpStream, word: &str) {
    from.write_all(word.as_bytes()).expect("write");
    let mut bytes = vec![0; word.len()];
    to.read_exact(&mut bytes).expect("read");
    assert_eq!(bytes, word.as_bytes());
}

/// Bytes that a socket has sent, or not sent, and that were not acknowledged.
pub(super) fn unacknowledged(stream: &TcpStream) -> i32 {
    ioctl(stream, libc::TIOCOUTQ)
}

/// Bytes that have arrived at a socket and were not read.
pub(super) fn unread(stream: &TcpStream) -> i32 {
    ioctl(stream, libc::FIONREAD)
}

#[allow(unsafe_code, reason = "asks the kernel about a socket of the test")]
fn ioctl(stream: &TcpStream, request: libc::c_ulong) -> i32 {
    let mut answer = 0_i32;
    // SAFETY: the request writes one integer.
    assert_eq!(unsafe { libc::ioctl(stream.as_raw_fd(), request, &raw mut answer) }, 0);
    answer
}

/// Whether the kernel runs filters on TCP sockets of this process.
pub(super) fn may_filter() -> bool {
    let socket = TcpListener::bind("127.0.0.1:0").expect("listen");
    crate::proxy::sys::attach_filter(&socket, &crate::proxy::pair::losing(0)).is_ok()
}

/// Whether the kernel takes programs with memory from this process.
pub(super) fn may_load_programs() -> bool {
    may_filter() && crate::proxy::sys::bpf::is_allowed()
}

/// Segments a socket has sent.
pub(super) fn segments_sent(stream: &TcpStream) -> u32 {
    let info = tcp_info(stream);
    u32::from_ne_bytes(info[136..140].try_into().expect("four bytes"))
}

/// Segments a socket has sent again.
pub(super) fn retransmissions(stream: &TcpStream) -> u32 {
    let info = tcp_info(stream);
    // Where the peer's window was full, the kernel sends probes of it instead of data again.
    let probes = u32::from(info[3]);
    probes + u32::from_ne_bytes(info[100..104].try_into().expect("four bytes"))
}

#[allow(unsafe_code, reason = "asks the kernel about a socket of the test")]
fn tcp_info(stream: &TcpStream) -> [u8; 140] {
    let mut info = [0_u8; 140];
    let mut length = libc::socklen_t::try_from(info.len()).expect("short");
    // SAFETY: `info` is valid for writes of `length` bytes.
    let answer = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(answer, 0);
    info
}

/// Bytes that look random and depend on a seed.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_ne_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(super) fn fault(name: &str) -> FaultName {
    name.parse().expect("a fault")
}

/// Runs a test again in a process of its own, with something in its environment; says whether this
/// is that process.
pub(super) fn in_child(test: &str, (name, value): (&str, &str)) -> bool {
    const MARK: &str = "FAULTBED_TEST_CHILD";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let child = std::process::Command::new(std::env::current_exe().expect("know the program"))
        .args(["--exact", &format!("proxy::tests::{test}"), "--nocapture"])
        .env(MARK, "1")
        .env(name, value)
        .output()
        .expect("run the test");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&child.stderr));
    false
}
