//! The server of the load: counts, echoes, notes moments, and answers short connections.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, EventData, EventFlags},
};

use super::{
    BULK_BYTES, Mode, Place, REQUEST_BYTES, monotonic_ns,
    socket::{read_aged, stamp_arrivals},
    stay_at,
};

/// Doors of every target: for streams, for many requests, and for short connections.
pub(crate) const DOORS: u16 = 10;
pub(crate) const STREAM_DOOR: u16 = 0;
pub(crate) const REQUEST_DOOR: u16 = 1;
/// The doors from here on are for short connections: their number keeps ports that rest in
/// TIME_WAIT from deciding.
pub(crate) const SHORT_DOOR: u16 = 2;
/// Where the server listens.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 66, 0, 200);
/// The port of door 0; those of the others follow.
const PORT: u16 = 6900;
/// Threads that answer short connections at one door.
const SHORT_THREADS: usize = 4;
const EVENTS_MAX: usize = 256;

/// What the server has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Bytes that reached sinks.
    pub(crate) sunk: AtomicU64,
    /// Sinks whose stream goes on.
    pub(crate) sinks: AtomicUsize,
    /// When the last byte came to a recorder or a reader of stamps, in nanoseconds.
    pub(crate) last_ns: AtomicU64,
    /// Moments in nanoseconds, and bytes that came then.
    pub(crate) records: Mutex<Vec<(u64, usize)>>,
    /// What messages took.
    pub(crate) took: Mutex<Vec<Took>>,
}

/// How long a message was under way, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    /// Until it was in its receiver's kernel.
    pub(crate) arrived_ns: u64,
    /// Until its receiver's thread was awake and had read it.
    pub(crate) read_ns: u64,
}

impl Seen {
    pub(crate) fn take_records(&self) -> Vec<(u64, usize)> {
        std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn take_took(&self) -> Vec<Took> {
        std::mem::take(&mut *self.took.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where a door of the server is.
pub(crate) fn door(number: u16) -> SocketAddr {
    (ADDRESS, PORT + number).into()
}

/// Starts the server; it serves until the process ends.
///
/// # Errors
/// Where a port is taken.
pub(crate) fn start() -> io::Result<Arc<Seen>> {
    let seen = Arc::new(Seen::default());
    let streams = TcpListener::bind(door(STREAM_DOOR))?;
    let shared = Arc::clone(&seen);
    thread::spawn(move || {
        for stream in streams.incoming().flatten() {
            let seen = Arc::clone(&shared);
            thread::spawn(move || serve(stream, &seen));
        }
    });
    let requests = TcpListener::bind(door(REQUEST_DOOR))?;
    thread::spawn(move || answer_requests(&requests));
    for number in SHORT_DOOR..DOORS {
        let short = Arc::new(TcpListener::bind(door(number))?);
        for _ in 0..SHORT_THREADS {
            let short = Arc::clone(&short);
            thread::spawn(move || answer_short(&short));
        }
    }
    Ok(seen)
}

/// Carries one stream to its end; an error is the end too.
fn serve(mut stream: TcpStream, seen: &Seen) {
    let mut mode = [0];
    if stream.read_exact(&mut mode).is_err() {
        return;
    }
    let _nodelay = stream.set_nodelay(true);
    let _ended = match Mode::of_byte(mode[0]) {
        Some(Mode::Sink) => {
            seen.sinks.fetch_add(1, Ordering::SeqCst);
            let ended = sink(stream, seen);
            seen.sinks.fetch_sub(1, Ordering::SeqCst);
            ended
        }
        Some(Mode::Echo) => {
            stay_at(Place::Last);
            echo(&mut stream)
        }
        Some(Mode::Record) => record(stream, seen),
        Some(Mode::Stamps) => read_stamps(&stream, seen),
        None => Ok(()),
    };
}

fn sink(mut stream: TcpStream, seen: &Seen) -> io::Result<()> {
    let mut buffer = vec![0; BULK_BYTES];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => seen.sunk.fetch_add(count as u64, Ordering::Relaxed),
        };
    }
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BULK_BYTES];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

fn record(mut stream: TcpStream, seen: &Seen) -> io::Result<()> {
    let mut buffer = vec![0; BULK_BYTES];
    let mut own = Vec::new();
    loop {
        let count = stream.read(&mut buffer);
        let now_ns = monotonic_ns();
        if let Ok(1..) = count {
            seen.last_ns.fetch_max(now_ns, Ordering::SeqCst);
            own.push((now_ns, count?));
            continue;
        }
        seen.records.lock().unwrap_or_else(PoisonError::into_inner).append(&mut own);
        return count.map(|_| ());
    }
}

fn read_stamps(stream: &TcpStream, seen: &Seen) -> io::Result<()> {
    stamp_arrivals(stream)?;
    let mut stamp = [0; 8];
    loop {
        let age_ns = read_aged(stream, &mut stamp)?;
        let now_ns = monotonic_ns();
        // That this thread comes to read it late is its own affair.
        seen.last_ns.fetch_max(now_ns.saturating_sub(age_ns), Ordering::SeqCst);
        let read_ns = now_ns.saturating_sub(u64::from_ne_bytes(stamp));
        let took = Took { arrived_ns: read_ns.saturating_sub(age_ns), read_ns };
        seen.took.lock().unwrap_or_else(PoisonError::into_inner).push(took);
    }
}

/// Echoes on all connections of one listener from one thread, as an event-driven server would.
fn answer_requests(listener: &TcpListener) {
    stay_at(Place::Last);
    let Ok(epoll) = epoll::create(epoll::CreateFlags::CLOEXEC) else { return };
    let watched = epoll::add(&epoll, listener, EventData::new_u64(u64::MAX), EventFlags::IN);
    if watched.is_err() || listener.set_nonblocking(true).is_err() {
        return;
    }
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut events = Vec::with_capacity(EVENTS_MAX);
    loop {
        let _interrupted = epoll::wait(&epoll, spare_capacity(&mut events), None);
        for event in events.drain(..) {
            let token = event.data.u64();
            if token == u64::MAX {
                while let Ok((stream, _)) = listener.accept() {
                    take_in(&epoll, stream, &mut streams);
                }
                continue;
            }
            let Some(place) = usize::try_from(token).ok().and_then(|at| streams.get_mut(at)) else {
                continue;
            };
            if !place.as_mut().is_some_and(answer_one) {
                *place = None;
            }
        }
    }
}

fn take_in(epoll: &OwnedFd, stream: TcpStream, streams: &mut Vec<Option<TcpStream>>) {
    let place = usize::try_from(stream.as_raw_fd()).unwrap_or(0);
    if streams.len() <= place {
        streams.resize_with(place + 1, || None);
    }
    let token = EventData::new_u64(place as u64);
    let ready = stream.set_nonblocking(true).is_ok() && stream.set_nodelay(true).is_ok();
    if ready && epoll::add(epoll, &stream, token, EventFlags::IN).is_ok() {
        streams[place] = Some(stream);
    }
}

/// Answers what has come; says whether the connection goes on.
fn answer_one(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; REQUEST_BYTES * 16];
    match stream.read(&mut buffer) {
        Ok(0) => false,
        // A few bytes always fit into an idle socket.
        Ok(count) => stream.write_all(&buffer[..count]).is_ok(),
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// One byte, its answer, and the client's end, again and again.
fn answer_short(listener: &TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        let mut byte = [0];
        while let Ok(1) = stream.read(&mut byte) {
            if stream.write_all(&byte).is_err() {
                break;
            }
        }
    }
}
