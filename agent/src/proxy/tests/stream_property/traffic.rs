//! Connections that are never idle, whose every byte tells its stream and place, and what became of them.
//!
//! A connection begins with 8 bytes of its dialler: its number. From then on both ends write what
//! their direction's bytes are and check what they read, until they are told to finish; then each
//! ends its direction in order and reads to the end of the other.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, Scope},
    time::{Duration, Instant},
};

use crate::proxy::tests::harness::{Lab, begin, eventually, finish, noise};

/// The whole pattern of a stream; its first bytes are replaced by its place.
const BLOCK: usize = 4096;
/// Written at once.
const WRITE_BYTES: usize = 64 * 1024;
/// Bytes after which a steady stream waits for the end of the plan, so that a round is bounded.
const STEADY_BYTES_MAX: u64 = 24 << 20;
/// What of it flows before the plan begins: the rest is there for the plan, however late that comes.
const HEAD_BYTES: u64 = 1 << 20;
/// Bytes of a connection that comes and goes, each way, at most.
const SHORT_BYTES_MAX: u64 = 1 << 20;
/// Steady connections, dialled by turns from both sides.
const STEADY: u64 = 4;
/// When the plan is over, nothing that it leaves behind lasts longer than this and as long again as the
/// plan itself did: a kernel that was not heard waits at most twice as long before it tries once more.
const PATIENCE: Duration = Duration::from_secs(30);
/// A read or a write that gets nowhere looks this often whether it may go on waiting.
const LOOK: Duration = Duration::from_secs(1);

/// How one direction of a connection ended, as its reader saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// In order.
    End,
    Error(io::ErrorKind),
    /// Bytes came that were not sent, or not there.
    Altered,
}

/// One direction of a connection.
#[derive(Debug, Clone)]
#[expect(dead_code, reason = "read by whoever reads a failure")]
pub(super) struct Outcome {
    pub(super) connection: u64,
    pub(super) forward: bool,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    /// The same two, from the beginning of the round.
    pub(super) age: (Duration, Duration),
    pub(super) got: u64,
    /// `None` where its writer could not end it in order.
    pub(super) sent: Option<u64>,
    pub(super) ending: Ending,
}

impl Outcome {
    /// An early end or an error may have been promised; other bytes, and silence for ever, never are.
    pub(super) fn may_be_promised(&self) -> bool {
        let silent = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        match &self.ending {
            Ending::End => true,
            Ending::Error(kind) => !silent.contains(kind),
            Ending::Altered => false,
        }
    }
}

/// What is known of a connection, from both of its ends.
#[derive(Debug, Clone, Default)]
struct Record {
    began: Option<Instant>,
    sent: [Option<u64>; 2],
    read: [Option<(u64, Ending, Instant)>; 2],
}

/// All connections of a round.
#[derive(Debug)]
pub(super) struct Traffic {
    seed: u64,
    began: Instant,
    stop: Arc<AtomicBool>,
    /// When the plan was over.
    stopped: Mutex<Option<Instant>>,
    done: Arc<AtomicBool>,
    last: AtomicU64,
    open: AtomicU64,
    records: Mutex<std::collections::BTreeMap<u64, Record>>,
    /// Directions of steady connections whose first bytes have arrived.
    flowing: AtomicU64,
    /// Whether steady streams may go on beyond their heads: the plan begins.
    goes_on: AtomicBool,
}

impl Traffic {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            began: Instant::now(),
            stop: Arc::default(),
            stopped: Mutex::default(),
            done: Arc::default(),
            last: AtomicU64::new(0),
            open: AtomicU64::new(0),
            records: Mutex::default(),
            flowing: AtomicU64::new(0),
            goes_on: AtomicBool::new(false),
        }
    }

    pub(super) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Starts steady connections, which are there before the plan begins; with `coming`, also others that
    /// come and go.
    pub(super) fn start<'s>(&'s self, scope: &'s Scope<'s, '_>, lab: &Lab, coming: bool) {
        for node in ["x", "y"] {
            let server = lab.server(node).try_clone().expect("clone the listener");
            server.set_nonblocking(true).expect("set mode");
            scope.spawn(move || {
                while !self.done.load(Ordering::SeqCst) {
                    match server.accept() {
                        Ok((stream, _)) => drop(scope.spawn(move || self.serve(scope, stream))),
                        Err(_) => thread::sleep(Duration::from_millis(1)),
                    }
                }
            });
        }
        for number in 0..STEADY {
            let (from, to) = if number % 2 == 0 { ("x", "y") } else { ("y", "x") };
            let connection = self.next();
            let stream = lab.dial(from, to).expect("dial before any fault");
            scope.spawn(move || self.dialled(scope, connection, stream, STEADY_BYTES_MAX));
        }
        for (from, to) in [("x", "y"), ("y", "x")].into_iter().filter(|_| coming) {
            let (source, target) = (lab.address(from), lab.listen(to));
            scope.spawn(move || {
                while !self.stop.load(Ordering::SeqCst) {
                    let connection = self.next();
                    // A dial that a fault refuses or leaves unanswered is no stream yet.
                    let dialled = begin(Some(source), target);
                    match dialled.and_then(|stream| finish(stream, Duration::from_millis(200))) {
                        Ok(stream) => {
                            let length = connection * 7919 % SHORT_BYTES_MAX;
                            self.dialled(scope, connection, stream, length);
                        }
                        Err(_) => thread::sleep(Duration::from_millis(5)),
                    }
                }
            });
        }
    }

    /// Waits until bytes of every steady connection arrive at both of its ends, and lets them go on.
    pub(super) fn wait_busy(&self) {
        eventually("bytes flow through every steady connection", || {
            self.flowing.load(Ordering::SeqCst) == 2 * STEADY
        });
        self.goes_on.store(true, Ordering::SeqCst);
    }

    /// A guard that lets no thread wait for the end of a plan that has failed.
    pub(super) fn stop_on_panic(&self, replay: String) -> impl Drop {
        struct Guard(Arc<AtomicBool>, Arc<AtomicBool>, String);
        impl Drop for Guard {
            fn drop(&mut self) {
                if thread::panicking() {
                    self.0.store(true, Ordering::SeqCst);
                    self.1.store(true, Ordering::SeqCst);
                    let _closed = writeln!(io::stderr(), "replay: {}", self.2);
                }
            }
        }
        Guard(Arc::clone(&self.stop), Arc::clone(&self.done), replay)
    }

    /// Has every connection end in order, and tells what became of each direction.
    pub(super) fn finish(&self) -> Vec<Outcome> {
        *self.stopped.lock().expect("no thread failed") = Some(Instant::now());
        self.stop.store(true, Ordering::SeqCst);
        let end = Instant::now() + 2 * (PATIENCE + self.age());
        while self.open.load(Ordering::SeqCst) > 0 && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        self.done.store(true, Ordering::SeqCst);
        let records = self.records.lock().expect("no thread failed");
        let mut outcomes = Vec::new();
        for (connection, record) in records.iter() {
            for (at, forward) in [(0, true), (1, false)] {
                let read = record.read[at].clone();
                let unread = (0, Ending::Error(io::ErrorKind::NotConnected), Instant::now());
                let (got, ending, ended) = read.unwrap_or(unread);
                outcomes.push(Outcome {
                    connection: *connection,
                    forward,
                    began: record.began.unwrap_or(self.began),
                    ended,
                    age: (self.age_at(record.began.unwrap_or(self.began)), self.age_at(ended)),
                    got,
                    sent: record.sent[at],
                    ending,
                });
            }
        }
        outcomes
    }

    /// Whether an error of a read or a write is only that nothing came, and something may come yet.
    fn may_wait(&self, error: &io::Error) -> bool {
        let stopped = *self.stopped.lock().expect("no thread failed");
        let in_time = |at: Instant| at.elapsed() < PATIENCE + self.age_at(at);
        match error.kind() {
            io::ErrorKind::Interrupted => true,
            io::ErrorKind::WouldBlock => {
                !self.done.load(Ordering::SeqCst) && stopped.is_none_or(in_time)
            }
            _ => false,
        }
    }

    fn write_all(&self, mut out: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match out.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if self.may_wait(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn age_at(&self, at: Instant) -> Duration {
        at.duration_since(self.began)
    }

    fn next(&self) -> u64 {
        self.last.fetch_add(1, Ordering::SeqCst)
    }

    fn dialled<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        connection: u64,
        stream: TcpStream,
        length: u64,
    ) {
        self.note(connection, |record| record.began = Some(Instant::now()));
        self.open.fetch_add(1, Ordering::SeqCst);
        if self.write_all(&stream, &connection.to_be_bytes()).is_ok() {
            self.talk(scope, connection, stream, true, length);
        }
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn serve<'s>(&'s self, scope: &'s Scope<'s, '_>, mut stream: TcpStream) {
        let mut connection = [0; 8];
        if !self.read_number(&mut stream, &mut connection) {
            return;
        }
        let connection = u64::from_be_bytes(connection);
        self.open.fetch_add(1, Ordering::SeqCst);
        let length = match connection {
            steady if steady < STEADY => STEADY_BYTES_MAX,
            short => short * 7919 % SHORT_BYTES_MAX,
        };
        self.talk(scope, connection, stream, false, length);
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    /// Without a number a connection is nobody's: its dialler has given up, perhaps without a word that
    /// came through, or tells itself what it saw.
    fn read_number(&self, stream: &mut TcpStream, number: &mut [u8; 8]) -> bool {
        stream.set_nonblocking(true).expect("set mode");
        let mut got = 0;
        while got < number.len() && !self.done.load(Ordering::SeqCst) {
            match stream.read(&mut number[got..]) {
                Ok(0) => return false,
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(_) => return false,
            }
        }
        stream.set_nonblocking(false).expect("set mode");
        got == number.len()
    }

    /// One end of a connection.
    fn talk<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        connection: u64,
        stream: TcpStream,
        forward: bool,
        length: u64,
    ) {
        stream.set_read_timeout(Some(LOOK)).expect("set patience");
        stream.set_write_timeout(Some(LOOK)).expect("set patience");
        let (own, other) = if forward { (0, 1) } else { (1, 0) };
        let out = stream.try_clone().expect("clone the stream");
        let writer = scope.spawn(move || {
            let steady = connection < STEADY;
            let sent =
                self.write(&out, Pattern::new(self.seed, connection, forward), length, steady);
            let sent = sent.and_then(|sent| out.shutdown(Shutdown::Write).map(|()| sent));
            self.note(connection, |record| record.sent[own] = sent.ok());
        });
        let pattern = Pattern::new(self.seed, connection, !forward);
        let (got, ending) = self.read(&stream, pattern, connection < STEADY);
        self.note(connection, |record| record.read[other] = Some((got, ending, Instant::now())));
        writer.join().expect("the writer does not panic");
    }

    fn write(
        &self,
        out: &TcpStream,
        pattern: Pattern,
        length: u64,
        steady: bool,
    ) -> io::Result<u64> {
        let mut buffer = vec![0; WRITE_BYTES];
        let mut sent = 0;
        let mut size = 1;
        while !self.stop.load(Ordering::SeqCst) {
            let is_held = steady && sent >= HEAD_BYTES && !self.goes_on.load(Ordering::SeqCst);
            if sent >= length || is_held {
                if !steady {
                    break;
                }
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            // From single bytes to full buffers and back, so that every way through is taken.
            size = size * 5 % WRITE_BYTES + 1;
            let part = &mut buffer[..size];
            pattern.fill(sent, part);
            self.write_all(out, part)?;
            sent += size as u64;
        }
        Ok(sent)
    }

    fn read(&self, mut stream: &TcpStream, pattern: Pattern, steady: bool) -> (u64, Ending) {
        let mut bytes = vec![0; WRITE_BYTES];
        let mut wanted = vec![0; WRITE_BYTES];
        let mut got = 0;
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return (got, Ending::End),
                Ok(count) => {
                    pattern.fill(got, &mut wanted[..count]);
                    if bytes[..count] != wanted[..count] {
                        return (got, Ending::Altered);
                    }
                    if got == 0 && steady {
                        self.flowing.fetch_add(1, Ordering::SeqCst);
                    }
                    got += count as u64;
                }
                Err(error) if self.may_wait(&error) => {}
                Err(error) => return (got, Ending::Error(error.kind())),
            }
        }
    }

    fn note(&self, connection: u64, note: impl FnOnce(&mut Record)) {
        note(self.records.lock().expect("no thread failed").entry(connection).or_default());
    }
}

/// The bytes of one direction: noise that is the stream's own, and each block's number.
#[derive(Debug, Clone)]
struct Pattern {
    noise: Vec<u8>,
}

impl Pattern {
    fn new(seed: u64, connection: u64, forward: bool) -> Self {
        let own = seed ^ (connection << 8) ^ u64::from(forward) << 60;
        Self { noise: noise(own.wrapping_mul(0x9e37_79b9_7f4a_7c15), BLOCK) }
    }

    /// The bytes from a place on.
    fn fill(&self, mut at: u64, mut bytes: &mut [u8]) {
        let mut block = self.noise.clone();
        while !bytes.is_empty() {
            let number = at / BLOCK as u64;
            block[..8].copy_from_slice(&number.to_be_bytes());
            let start = usize::try_from(at % BLOCK as u64).expect("less than a block");
            let count = bytes.len().min(BLOCK - start);
            let (part, rest) = bytes.split_at_mut(count);
            part.copy_from_slice(&block[start..start + count]);
            at += count as u64;
            bytes = rest;
        }
    }
}
