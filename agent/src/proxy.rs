//! The data plane: one process for each host, whose listeners own the advertised addresses.
//!
//! Bytes: `acceptor` takes connections and hands them to a `worker`, which keeps both sockets of
//! each `pair` and moves the bytes of its two `lane`s (`flow`, `splice`, `delay`). Rules: the
//! `control` thread reads `proxy.json` (`engine`), has `table` and `cut` decide, and puts the result
//! on the `rule_set` board, where workers find it by its number; `steer` keeps the new connections
//! of a cut dialler out. `identify` finds out who dialled where the address does not tell.
//! Upgrades: `handover` gives everything to a new process, in documents that `carry` writes and reads.
//!
//! What never happens: a lock on the way of a byte; a wait of the control thread for a connection;
//! a byte dropped from a stream that goes on; a listener open before the rules of the file hold.

use std::{
    fs,
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread::{self, JoinHandle},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{FlockOperation, flock},
    io::Errno,
};

mod acceptor;
mod bucket;
mod carry;
mod client;
mod control;
mod cut;
mod delay;
mod diallers;
mod dice;
mod engine;
mod evidence;
mod flow;
mod handover;
mod identify;
mod lane;
mod lookout;
mod lossy;
mod origin;
mod pair;
mod process;
mod processes;
mod rule_set;
mod shaper;
mod side;
mod slab;
mod slicer;
mod splice;
mod steer;
mod storm;
mod sys;
mod table;
mod timers;
mod wire;
mod worker;

pub use client::{ProxyClient, ProxyError};
pub use process::{Programs, collect_own, find, spawn, spawn_program};
pub use wire::{Applied, FailedListener, FaultInForce, ProxyState};

use crate::socket_tables::SocketTables;
use acceptor::Acceptor;
use control::{Control, End};
pub(crate) use engine::abilities;
use engine::{Crew, Engine};
use handover::{Base, Fetched, Line, Word, fetch};
use identify::Lookup;
use rule_set::Board;
use splice::PIPES_MAX;
pub(crate) use sys::bound_backoff;
#[cfg(test)]
pub(crate) use sys::{drops, set_deaf};
#[cfg(test)]
pub(crate) use tests::eventually_within;
use worker::{Mailbox, Share, WAITING_MAX, Worker};

/// More workers than this gain nothing for a lab on one machine.
const WORKERS_MAX: usize = 4;

/// Runs as the proxy process of `dir` until it is told to stop through `socket`, or until another
/// one takes over. Takes over from one that runs.
#[must_use]
pub fn main(dir: &Path, socket: &Path) -> ExitCode {
    tracing_subscriber::fmt().with_ansi(false).with_writer(io::stderr).init();
    // A session of its own: what ends the agent's session or its terminal does not end this.
    let _leads_already = rustix::process::setsid();
    // Started through /proc/self/exe it would be called `exe` where ports and processes are listed.
    let _as_before = rustix::thread::set_name(c"faultbed-proxy");
    crate::heap::stay_small();
    sys::raise_descriptor_limit();
    // A thread that panics leaves connections that nobody carries: the agent must start another
    // process, which has the rules before it has listeners.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    let started = match lock_dir(dir) {
        Ok(Some(lock)) => Proxy::start_locked(dir, socket, lock),
        Ok(None) => Proxy::take_over(dir, socket),
        Err(error) => Err(error),
    };
    let started = started.and_then(|proxy| {
        process::record_self(dir)?;
        proxy.dismiss_predecessor();
        Ok(proxy)
    });
    match started {
        Ok(proxy) => {
            if proxy.wait() == End::Stopped {
                process::forget_self(dir);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(%error, "start the proxy");
            ExitCode::FAILURE
        }
    }
}

/// A running data plane: threads of this process. Dropping it stops them.
#[derive(Debug)]
pub struct Proxy {
    control: Option<JoinHandle<End>>,
    threads: Vec<JoinHandle<()>>,
    crew: Crew,
    stop: OwnedFd,
    socket: PathBuf,
    /// The process that it took over from, which waits until it may go.
    predecessor: Option<Line>,
    /// The control socket on disk is this one's to remove.
    owns_socket: bool,
    /// Held while the data plane runs: a directory has one.
    lock: File,
}

impl Proxy {
    /// Starts the data plane of `dir`: makes `proxy.json` true, then serves `socket`. A file that
    /// cannot be understood is an error, since its cuts would be missing.
    ///
    /// # Errors
    /// Where another one serves `dir`, or as the system says.
    pub fn start(dir: &Path, socket: &Path) -> io::Result<Self> {
        let lock = lock_dir(dir)?;
        let lock = lock.ok_or_else(|| io::Error::other("another proxy serves this directory"))?;
        Self::start_locked(dir, socket, lock)
    }

    fn start_locked(dir: &Path, socket: &Path, lock: File) -> io::Result<Self> {
        let (crew, workers) = gather_crew()?;
        let mut engine = Engine::new(dir, crew.clone())?;
        engine.load().map_err(io::Error::other)?;
        let mut proxy = Self::new(socket, crew, lock)?;
        proxy.start_crew(workers)?;
        engine.make_true().map_err(io::Error::other)?;
        proxy.serve(engine, bind_control(socket)?)?;
        Ok(proxy)
    }

    /// Takes over from the process that serves `dir` through `socket`: its listeners, connections
    /// and rules. Where that fails it goes on as before. It waits for [`Self::dismiss_predecessor`].
    ///
    /// # Errors
    /// Where none can be reached, or it refuses; or as the system says.
    pub fn take_over(dir: &Path, socket: &Path) -> io::Result<Self> {
        let (crew, mut workers) = gather_crew()?;
        let Fetched { base, doors, pairs, line } = fetch(socket)?;
        let Base { lock, control, inheritance } = base;
        let count = workers.len();
        for (at, pair) in pairs.into_iter().enumerate() {
            workers[at % count].inherit(pair)?;
        }
        let mut engine = Engine::inherit(dir, crew.clone(), inheritance, doors)?;
        engine.load().map_err(io::Error::other)?;
        Fetched::begin(&line)?;
        let mut proxy = Self::new(socket, crew, File::from(lock))?;
        proxy.predecessor = Some(line);
        proxy.start_crew(workers)?;
        if let Err(why) = engine.make_true() {
            tracing::error!(why, "put the rules in force");
        }
        engine.open_inherited();
        proxy.serve(engine, UnixListener::from(control))?;
        Ok(proxy)
    }

    /// Lets the process go that this one took over from.
    pub fn dismiss_predecessor(&self) {
        if let Some(line) = &self.predecessor {
            // It goes by itself if it does not hear this.
            let _gone_already = line.say(&Word::Taken);
        }
    }

    fn new(socket: &Path, crew: Crew, lock: File) -> io::Result<Self> {
        Ok(Self {
            control: None,
            threads: Vec::new(),
            crew,
            stop: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            socket: socket.to_owned(),
            predecessor: None,
            owns_socket: false,
            lock,
        })
    }

    fn start_crew(&mut self, workers: Vec<Worker>) -> io::Result<()> {
        let Crew { board, mailboxes, acceptor, lookup } = self.crew.clone();
        for (index, worker) in workers.into_iter().enumerate() {
            self.threads.push(spawn_thread(&format!("worker-{index}"), move || worker.run())?);
        }
        let seen = Arc::clone(&board);
        self.threads.push(spawn_thread("acceptor", move || acceptor.run(&seen, &mailboxes))?);
        // Opened before control serves: whoever counts descriptors then counts all there are at rest.
        let tables = SocketTables::open().ok();
        self.threads.push(spawn_thread("identify", move || lookup.run(&board, tables))?);
        Ok(())
    }

    fn serve(&mut self, engine: Engine, listener: UnixListener) -> io::Result<()> {
        let (lock, stop) = (self.lock.try_clone()?, self.stop.try_clone()?);
        let control = Control::new(engine, listener, lock, stop)?;
        self.control = Some(spawn_thread("control", move || control.run())?);
        self.owns_socket = true;
        Ok(())
    }

    /// Waits until it is told to stop through its socket, or another process serves.
    fn wait(mut self) -> End {
        self.join_control()
    }

    fn join_control(&mut self) -> End {
        let end = self.control.take().map(JoinHandle::join);
        let end = end.and_then(Result::ok).unwrap_or(End::Stopped);
        self.owns_socket &= end != End::HandedOver;
        end
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _full = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        self.join_control();
        let Crew { board, mailboxes, acceptor, lookup } = &self.crew;
        board.stop();
        mailboxes.iter().for_each(|mailbox| mailbox.wake());
        acceptor.wake();
        lookup.wake();
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
        if self.owns_socket {
            let _gone_already = fs::remove_file(&self.socket);
        }
    }
}

/// What the threads of a data plane share, and its workers, which do not run yet.
fn gather_crew() -> io::Result<(Crew, Vec<Worker>)> {
    let count = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let board = Arc::new(Board::new(count));
    let lookup = Arc::new(Lookup::default());
    let acceptor = Arc::new(Acceptor::new()?);
    let mailboxes: Vec<_> =
        (0..count).map(|_| Mailbox::new().map(Arc::new)).collect::<io::Result<_>>()?;
    let worker = |(index, mailbox): (usize, &Arc<Mailbox>)| {
        let share =
            Share { index, pipes: PIPES_MAX / count, waiting: (WAITING_MAX / count).max(1) };
        Worker::new(share, Arc::clone(mailbox), Arc::clone(&board), Arc::clone(&lookup))
    };
    let workers = mailboxes.iter().enumerate().map(worker).collect::<io::Result<_>>()?;
    Ok((Crew { board, mailboxes, acceptor, lookup }, workers))
}

fn spawn_thread<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// Takes the lock that keeps two data planes off one directory; it goes with the process. `None`
/// where another process has it.
fn lock_dir(dir: &Path) -> io::Result<Option<File>> {
    fs::create_dir_all(dir)?;
    let lock = File::create(dir.join("proxy.lock"))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The control socket, for this user only. One that is there already was left by a dead process:
/// this one holds the lock.
fn bind_control(path: &Path) -> io::Result<UnixListener> {
    let _none = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests;
