//! A client of every node of a field: it never stops asking, and records what it did not like.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::net::sockopt;

use super::net::Place;

/// Between two questions on one connection, and between two dials.
const EVERY: Duration = Duration::from_millis(20);
/// How often a question that waits for its answer looks whether the client is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A dial, or its first answer, that takes longer has failed.
const DIAL_MAX: Duration = Duration::from_secs(2);

/// Between two probes of a connection on which nothing comes, and how many stay unanswered until it has failed.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 100;

/// Something a client did not like: when, and what its kernel called it.
pub type Complaint = (Instant, String);

/// What a client saw of one node.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Answers on the connection that is kept.
    pub answers: u64,
    /// Ends of the connection that is kept.
    pub resets: Vec<Complaint>,
    /// The longest time without an answer on it, the one that goes on included.
    pub longest_gap: Duration,
    /// Dials that were accepted and answered.
    pub dials: u64,
    /// Dials that were not.
    pub failed: Vec<Complaint>,
    last_answer: Instant,
}

impl Seen {
    fn new() -> Self {
        Self {
            answers: 0,
            resets: Vec::new(),
            longest_gap: Duration::ZERO,
            dials: 0,
            failed: Vec::new(),
            last_answer: Instant::now(),
        }
    }
}

/// Two threads for each node: one keeps a connection, one dials again and again.
#[derive(Debug)]
pub struct Client {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Client {
    /// Begins to ask these nodes from a place.
    #[must_use]
    pub fn start(place: &Place, nodes: &BTreeMap<String, SocketAddr>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = nodes.keys().map(|node| (node.clone(), Seen::new())).collect();
        let seen = Arc::new(Mutex::new(seen));
        let mut threads = Vec::new();
        for (node, &address) in nodes {
            for way in [keep, dial] {
                let asker =
                    Asker { node: node.clone(), address, stop: stop.clone(), seen: seen.clone() };
                // A thread is where it was made: in that place.
                threads.push(place.inside(|| thread::spawn(move || way(&asker))));
            }
        }
        Self { stop, seen, threads }
    }

    /// Forgets what was so far.
    pub fn forget(&self) {
        lock(&self.seen).values_mut().for_each(|seen| *seen = Seen::new());
    }

    /// What it saw of each node since it last forgot.
    #[must_use]
    pub fn seen(&self) -> BTreeMap<String, Seen> {
        let mut all = lock(&self.seen).clone();
        for seen in all.values_mut() {
            seen.longest_gap = seen.longest_gap.max(seen.last_answer.elapsed());
        }
        all
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

struct Asker {
    node: String,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
}

impl Asker {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        if let Some(seen) = lock(&self.seen).get_mut(&self.node) {
            note(seen);
        }
    }
}

fn keep(asker: &Asker) {
    while !asker.stops() {
        if let Ok(stream) = TcpStream::connect_timeout(&asker.address, DIAL_MAX)
            && let Err(error) = ask_on(asker, stream)
        {
            asker.note(|seen| seen.resets.push((Instant::now(), error)));
        }
        thread::sleep(EVERY);
    }
}

/// Asks on one connection until it ends or the client stops.
fn ask_on(asker: &Asker, mut stream: TcpStream) -> Result<(), String> {
    let fails = |error: std::io::Error| error.to_string();
    stream.set_nodelay(true).map_err(fails)?;
    stream.set_read_timeout(Some(LOOK_EVERY)).map_err(fails)?;
    probe_when_idle(&stream).map_err(|error| error.to_string())?;
    for number in 0_u64.. {
        let question = number.to_ne_bytes();
        stream.write_all(&question).map_err(fails)?;
        let (mut answer, mut got) = ([0; 8], 0);
        while got < answer.len() {
            if asker.stops() {
                return Ok(());
            }
            match stream.read(&mut answer[got..]) {
                Ok(0) => return Err("the connection ended".to_owned()),
                Ok(count) => got += count,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        if answer != question {
            return Err(format!("asked {question:?}, answered {answer:?}"));
        }
        asker.note(|seen| {
            seen.answers += 1;
            seen.longest_gap = seen.longest_gap.max(seen.last_answer.elapsed());
            seen.last_answer = Instant::now();
        });
        thread::sleep(EVERY);
    }
    Ok(())
}

/// A question that the other kernel has acknowledged is not sent again: only probes find out that its machine
/// is another one by now. Their number outlasts every row.
fn probe_when_idle(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_tcp_keepidle(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    sockopt::set_socket_keepalive(stream, true)
}

fn dial(asker: &Asker) {
    while !asker.stops() {
        let result = dial_once(asker.address, DIAL_MAX);
        asker.note(|seen| match result {
            Ok(()) => seen.dials += 1,
            Err(error) => seen.failed.push((Instant::now(), error)),
        });
        thread::sleep(EVERY);
    }
}

/// Dials, and wants an answer.
///
/// # Errors
/// Says what the kernel said.
pub fn dial_once(address: SocketAddr, within: Duration) -> Result<(), String> {
    let mut stream = TcpStream::connect_timeout(&address, within).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(within)).map_err(|e| e.to_string())?;
    stream.write_all(b"anybody?").map_err(|e| e.to_string())?;
    stream.read_exact(&mut [0; 8]).map_err(|e| e.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
