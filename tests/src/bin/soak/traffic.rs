//! Clients that dial again and again, and a node that answers with what it was sent; every byte is checked.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use faultbed_common::proxy_spec::{Listener, ProxySpec};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with},
};

/// Clients of `x` and of `z`, each.
const CLIENTS: u64 = 24;
/// A client that hears nothing for so long gives up, and leaves its connection as it is.
const PATIENCE: Duration = Duration::from_millis(700);
/// Bytes of one connection, at most, each way.
const BYTES_MAX: usize = 512 * 1024;
const BUFFER_BYTES: usize = 32 * 1024;
/// Between two dials of the client that is cut off.
const REDIAL: Duration = Duration::from_millis(20);
/// The server forgets who has said nothing for so long.
const FORGET: Duration = Duration::from_secs(5);
/// Fewer whole exchanges are no traffic.
const EXCHANGES_LEAST: u64 = 100;

/// What has happened, counted by all threads.
#[derive(Debug, Default)]
struct Counters {
    dials: AtomicU64,
    whole: AtomicU64,
    ended: AtomicU64,
    bytes: AtomicU64,
    altered: AtomicU64,
    resting: AtomicBool,
}

/// The nodes and their connections.
#[derive(Debug)]
pub(crate) struct Traffic {
    server: TcpListener,
    listen: SocketAddr,
    counters: Arc<Counters>,
}

/// Addresses of this process alone.
fn address(network: u8, number: u8) -> IpAddr {
    let process = u8::try_from(std::process::id() % 251).unwrap_or(0);
    IpAddr::V4(Ipv4Addr::new(127, network, process, number))
}

fn node_address(name: &str) -> IpAddr {
    let number = match name {
        "x" => 1,
        "y" => 2,
        "z" => 3,
        _ => 4,
    };
    address(142, number)
}

impl Traffic {
    /// The nodes, before anybody dials.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn prepare() -> anyhow::Result<Self> {
        let server = TcpListener::bind((node_address("y"), 0))?;
        let listen = SocketAddr::new(address(90, 2), server.local_addr()?.port());
        Ok(Self { server, listen, counters: Arc::default() })
    }

    /// Who is where, for the proxy.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn describe(&self, spec: &mut ProxySpec) -> anyhow::Result<()> {
        spec.listeners.push(Listener {
            node: "y".parse()?,
            port: "client".parse()?,
            listen: self.listen,
            upstream: self.server.local_addr()?,
        });
        for name in ["x", "y", "z", "off"] {
            spec.diallers.insert(node_address(name), name.parse()?);
        }
        Ok(())
    }

    /// Starts the server and the clients, which live as long as the process.
    ///
    /// # Errors
    /// Where a thread cannot be had.
    pub(crate) fn start(&mut self, seed: u64) -> anyhow::Result<()> {
        let server = self.server.try_clone()?;
        thread::Builder::new().spawn(move || serve_all(&server))?;
        for number in 0..2 * CLIENTS {
            let (counters, listen) = (Arc::clone(&self.counters), self.listen);
            let mut dice = StdRng::seed_from_u64(seed ^ number);
            let from = node_address(if number % 2 == 0 { "x" } else { "z" });
            thread::Builder::new().spawn(move || {
                loop {
                    exchange(from, listen, &counters, &mut dice);
                }
            })?;
        }
        let (counters, listen) = (Arc::clone(&self.counters), self.listen);
        thread::Builder::new().spawn(move || {
            loop {
                let dialled = begin(node_address("off"), listen);
                thread::sleep(REDIAL);
                if counters.resting.load(Ordering::SeqCst) {
                    drop(dialled);
                    thread::sleep(PATIENCE);
                }
            }
        })?;
        Ok(())
    }

    /// Lets clients dial.
    pub(crate) fn go_on(&self) {
        self.counters.resting.store(false, Ordering::SeqCst);
    }

    /// Has clients end what they do and dial no more.
    pub(crate) fn rest(&self) {
        self.counters.resting.store(true, Ordering::SeqCst);
    }

    /// # Errors
    /// Where a byte came that was not sent, or not there.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let altered = self.counters.altered.load(Ordering::SeqCst);
        anyhow::ensure!(altered == 0, "{altered} streams were altered");
        Ok(())
    }

    /// Whether enough came through to mean anything.
    pub(crate) fn was_busy(&self) -> bool {
        self.counters.whole.load(Ordering::SeqCst) > EXCHANGES_LEAST
    }

    /// What has happened so far.
    pub(crate) fn counts(&self) -> String {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { dials, whole, ended, bytes, .. } = &*self.counters;
        let (dials, whole, ended) = (get(dials), get(whole), get(ended));
        let megabytes = get(bytes) / 1_000_000;
        format!("{dials} dials, {whole} whole, {ended} ended, {megabytes} MB")
    }
}

fn serve_all(server: &TcpListener) {
    for stream in server.incoming().flatten() {
        // Without a thread the connection is closed: one more ending for its client.
        let _none = thread::Builder::new().spawn(move || answer(&stream));
    }
}

/// Sends back what comes.
fn answer(stream: &TcpStream) -> Option<()> {
    stream.set_read_timeout(Some(FORGET)).ok()?;
    stream.set_write_timeout(Some(FORGET)).ok()?;
    let mut bytes = vec![0; BUFFER_BYTES];
    loop {
        match (&*stream).read(&mut bytes).ok()? {
            0 => return stream.shutdown(Shutdown::Write).ok(),
            count => (&*stream).write_all(&bytes[..count]).ok()?,
        }
    }
}

/// One connection: sends some bytes and reads them again.
fn exchange(from: IpAddr, to: SocketAddr, counters: &Counters, dice: &mut StdRng) {
    if counters.resting.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(50));
        return;
    }
    counters.dials.fetch_add(1, Ordering::Relaxed);
    let length = dice.random_range(1..=BYTES_MAX) >> dice.random_range(0..12);
    let first: u8 = dice.random();
    match talk(from, to, length, first) {
        Ok(true) => {
            counters.whole.fetch_add(1, Ordering::Relaxed);
            counters.bytes.fetch_add(2 * length as u64, Ordering::Relaxed);
        }
        Ok(false) => drop(counters.altered.fetch_add(1, Ordering::SeqCst)),
        Err(_) => drop(counters.ended.fetch_add(1, Ordering::Relaxed)),
    }
    thread::sleep(Duration::from_millis(dice.random_range(0..30)));
}

/// Whether all that comes back is what was sent; a connection may end early, but not alter a byte.
fn talk(from: IpAddr, to: SocketAddr, length: usize, first: u8) -> io::Result<bool> {
    let stream = finish(begin(from, to)?)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // 251 is prime: a hole shows, wherever it is.
    let byte = |at: usize| first.wrapping_add(u8::try_from(at % 251).unwrap_or(0));
    let sent: Vec<u8> = (0..length).map(byte).collect();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (&stream).write_all(&sent)?;
            stream.shutdown(Shutdown::Write)
        });
        let mut got = vec![0; BUFFER_BYTES];
        let mut at = 0;
        let read = loop {
            match (&stream).read(&mut got) {
                Ok(0) if at == length => break Ok(true),
                Ok(0) => break Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) if sent.get(at..at + count) == Some(&got[..count]) => at += count,
                Ok(_) => break Ok(false),
                Err(error) => break Err(error),
            }
        };
        let _read_says_it = stream.shutdown(Shutdown::Both);
        match writer.join() {
            Ok(_) => read,
            Err(_) => Err(io::Error::other("the writer panicked")),
        }
    })
}

/// Begins a connection from the address of a node.
fn begin(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd: OwnedFd = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    bind(&fd, &SocketAddr::new(from, 0))?;
    match connect(&fd, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(fd)),
        Err(error) => Err(error.into()),
    }
}

fn finish(stream: TcpStream) -> io::Result<TcpStream> {
    let end = Instant::now() + PATIENCE;
    while stream.peer_addr().is_err() {
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        if Instant::now() > end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(2));
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}
