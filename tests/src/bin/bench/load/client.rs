//! The client of the load, and what it measures at one target.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, EventData, EventFlags},
};

use super::{
    BULK_BYTES, Mode, Place, REQUEST_BYTES,
    server::{DOORS, REQUEST_DOOR, SHORT_DOOR, STREAM_DOOR, Seen},
    socket::{Congestion, dial},
    stay_at,
};
use crate::bench::{cost::Processes, table::at};

/// Bulk flows this long before it is measured: windows have grown by then.
const WARM_UP: Duration = Duration::from_millis(200);
/// Exchanges before they are timed.
const WARM_EXCHANGES: usize = 100;
/// Clients that connect at the same time.
const SHORT_CLIENTS: usize = 4;
/// A load that stands still this long is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a target's doors are, and who dials.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// Door 0; the ports of the others follow.
    pub(crate) first: SocketAddr,
    /// Whose addresses connections come from, one after the other.
    pub(crate) sources: Vec<Ipv4Addr>,
}

impl Route {
    pub(crate) fn door(&self, number: u16) -> SocketAddr {
        SocketAddr::new(self.first.ip(), self.first.port() + number)
    }

    /// A connection to the stream door.
    pub(crate) fn stream(&self, mode: Mode, congestion: Congestion) -> io::Result<TcpStream> {
        let mut stream = dial(self.sources[0], self.door(STREAM_DOOR), congestion)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[mode.byte()])?;
        Ok(stream)
    }
}

/// Bytes that flow until it is dropped.
#[derive(Debug)]
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    /// Starts `streams` streams of as many bytes as go.
    ///
    /// # Errors
    /// Where a connection cannot be made.
    pub(crate) fn start(
        route: &Route,
        mode: Mode,
        streams: usize,
        congestion: Congestion,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut flood = Self { stop, threads: Vec::new() };
        for _ in 0..streams {
            let mut stream = route.stream(mode, congestion)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let stop = Arc::clone(&flood.stop);
            flood.threads.push(thread::spawn(move || {
                let buffer = vec![0x5A; BULK_BYTES];
                while !stop.load(Ordering::Relaxed) && stream.write_all(&buffer).is_ok() {}
            }));
        }
        Ok(flood)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

/// What bulk reached and cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bulk {
    pub(crate) gigabytes_per_s: f64,
    /// Processor time of the target for each gigabyte.
    pub(crate) cpu_s_per_gb: f64,
    /// That of client and server besides.
    pub(crate) all_cpu_s_per_gb: f64,
}

/// Bulk through a target.
///
/// # Errors
/// Where the load cannot be made.
pub(crate) fn bulk(
    route: &Route,
    processes: &Processes,
    seen: &Seen,
    (streams, congestion, window): (usize, Congestion, Duration),
) -> anyhow::Result<Bulk> {
    let flood = Flood::start(route, Mode::Sink, streams, congestion)?;
    thread::sleep(WARM_UP);
    // What is in flight between the three meets their processor's cache: the sum tells it.
    let all = Processes::of(Some(std::process::id()));
    let (start, bytes) = (Instant::now(), seen.sunk.load(Ordering::Relaxed));
    let (cpu, all_cpu) = (processes.cpu_seconds(), all.cpu_seconds());
    thread::sleep(window);
    let (bytes, took) = (seen.sunk.load(Ordering::Relaxed) - bytes, start.elapsed());
    let (cpu, all_cpu) = (processes.cpu_seconds() - cpu, all.cpu_seconds() - all_cpu);
    drop(flood);
    let end = Instant::now() + PATIENCE;
    while seen.sinks.load(Ordering::SeqCst) > 0 {
        anyhow::ensure!(Instant::now() < end, "a stream did not end");
        thread::sleep(Duration::from_millis(1));
    }
    anyhow::ensure!(bytes > 0, "nothing flowed");
    #[expect(clippy::cast_precision_loss, reason = "gigabytes")]
    let gigabytes = bytes as f64 / 1e9;
    Ok(Bulk {
        gigabytes_per_s: gigabytes / took.as_secs_f64(),
        cpu_s_per_gb: cpu / gigabytes,
        all_cpu_s_per_gb: all_cpu / gigabytes,
    })
}

/// What requests reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requests {
    pub(crate) per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

fn requests(mut took_us: Vec<f64>, over: Duration) -> anyhow::Result<Requests> {
    anyhow::ensure!(!took_us.is_empty(), "no request was answered");
    took_us.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 requests")]
    let per_s = took_us.len() as f64 / over.as_secs_f64();
    Ok(Requests { per_s, p50_us: at(&took_us, 0.5), p99_us: at(&took_us, 0.99) })
}

/// One connection, one request at a time.
///
/// # Errors
/// Where an answer does not come.
pub(crate) fn one_by_one(route: &Route, window: Duration) -> anyhow::Result<Requests> {
    as_another_machine(|| ask_one_by_one(route, window))
}

/// Measures from the processor where the server is not.
fn as_another_machine(
    ask: impl FnOnce() -> anyhow::Result<Requests> + Send,
) -> anyhow::Result<Requests> {
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            stay_at(Place::First);
            ask()
        });
        client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    })
}

fn ask_one_by_one(route: &Route, window: Duration) -> anyhow::Result<Requests> {
    let mut stream = route.stream(Mode::Echo, Congestion::Plain)?;
    let (request, mut response) = ([7; REQUEST_BYTES], [0; REQUEST_BYTES]);
    let mut exchange = || -> io::Result<f64> {
        let start = Instant::now();
        stream.write_all(&request)?;
        stream.read_exact(&mut response)?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    };
    for _ in 0..WARM_EXCHANGES {
        exchange()?;
    }
    let (start, mut took_us) = (Instant::now(), Vec::new());
    while start.elapsed() < window {
        took_us.push(exchange()?);
    }
    requests(took_us, start.elapsed())
}

/// Connections that were used once and stay open.
///
/// # Errors
/// Where one cannot be made.
pub(crate) fn idle(route: &Route, count: usize) -> io::Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = dial(route.sources[0], route.door(REQUEST_DOOR), Congestion::Plain)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        streams.push(stream);
    }
    Ok(streams)
}

/// Many connections, each with one request at a time, from one thread.
///
/// # Errors
/// Where an answer does not come.
pub(crate) fn side_by_side(
    route: &Route,
    connections: usize,
    window: Duration,
) -> anyhow::Result<Requests> {
    as_another_machine(|| ask_side_by_side(route, connections, window))
}

fn ask_side_by_side(
    route: &Route,
    connections: usize,
    window: Duration,
) -> anyhow::Result<Requests> {
    let mut streams = idle(route, connections)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (place, stream) in streams.iter().enumerate() {
        stream.set_nonblocking(true)?;
        epoll::add(&epoll, stream, EventData::new_u64(place as u64), EventFlags::IN)?;
    }
    let (request, mut response) = ([7; REQUEST_BYTES], [0; REQUEST_BYTES]);
    let mut began = vec![(Instant::now(), 0); connections];
    for (stream, (began, _)) in streams.iter_mut().zip(&mut began) {
        *began = Instant::now();
        stream.write_all(&request)?;
    }
    let (start, mut measured, mut took_us) = (Instant::now(), None, Vec::new());
    let mut events = Vec::with_capacity(connections);
    let patience = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
    loop {
        let now = Instant::now();
        if measured.is_none() && now - start > window / 5 {
            measured = Some(now);
        }
        if let Some(from) = measured
            && now - from > window
        {
            return requests(took_us, now - from);
        }
        let count = epoll::wait(&epoll, spare_capacity(&mut events), Some(&patience))?;
        anyhow::ensure!(count > 0, "no answer came for 10 s");
        for event in events.drain(..) {
            let place = usize::try_from(event.data.u64())?;
            let (stream, (began, got)) = (&mut streams[place], &mut began[place]);
            let count = stream.read(&mut response[..REQUEST_BYTES - *got])?;
            anyhow::ensure!(count > 0, "a connection ended");
            *got += count;
            if *got == REQUEST_BYTES {
                let now = Instant::now();
                if measured.is_some() {
                    took_us.push((now - *began).as_secs_f64() * 1e6);
                }
                (*began, *got) = (now, 0);
                stream.write_all(&request)?;
            }
        }
    }
}

/// Connections for each second: connect, one byte there and back, close.
///
/// # Errors
/// Where a connection fails.
pub(crate) fn short(route: &Route, window: Duration) -> anyhow::Result<f64> {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let next = AtomicU64::new(0);
    let run = || -> io::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            let number =
                SHORT_DOOR + u16::try_from(turn % u64::from(DOORS - SHORT_DOOR)).unwrap_or(0);
            // Sources turn slower than doors: all pairs are used.
            let source = usize::try_from(turn / u64::from(DOORS - SHORT_DOOR)).unwrap_or(0);
            let source = route.sources[source % route.sources.len()];
            let mut stream = dial(source, route.door(number), Congestion::Plain)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(&[1])?;
            stream.read_exact(&mut [0])?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..SHORT_CLIENTS).map(|_| scope.spawn(run)).collect();
        thread::sleep(window / 5);
        let (start, before) = (Instant::now(), done.load(Ordering::Relaxed));
        thread::sleep(window);
        let count = done.load(Ordering::Relaxed) - before;
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let per_s = count as f64 / took.as_secs_f64();
        Ok(per_s)
    })
}
