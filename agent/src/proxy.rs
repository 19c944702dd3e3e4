//! The data plane: one process for each host, whose listeners own the advertised addresses.
//!
//! Bytes: `acceptor` takes connections and hands them to a `worker`, which keeps both sockets of
//! each `pair` and moves the bytes of its two `lane`s (`flow`, `splice`, `delay`). Rules: the
//! `control` thread reads `proxy.json` (`engine`), has `table` and `cut` decide, and puts the result
//! on the `rule_set` board, where workers find it by its number; `steer` keeps the new connections
//! of a cut dialler out. `identify` finds out who dialled where the address does not tell.
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
};

mod acceptor;
mod bucket;
mod client;
mod control;
mod cut;
mod delay;
mod dice;
mod engine;
mod evidence;
mod flow;
mod identify;
mod lane;
mod lossy;
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
pub use process::{find, spawn, spawn_program};
pub use wire::{Applied, FailedListener, FaultInForce, ProxyState};

use acceptor::Acceptor;
use control::Control;
use engine::{Crew, Engine};
use identify::Lookup;
use rule_set::Board;
use splice::PIPES_MAX;
use worker::{Mailbox, Share, WAITING_MAX, Worker};

/// More workers than this gain nothing for a lab on one machine.
const WORKERS_MAX: usize = 4;

/// Runs as the proxy process of `dir` until it is told to stop through `socket`.
#[must_use]
pub fn main(dir: &Path, socket: &Path) -> ExitCode {
    tracing_subscriber::fmt().with_ansi(false).with_writer(io::stderr).init();
    // A session of its own: what ends the agent's session or its terminal does not end this.
    let _leads_already = rustix::process::setsid();
    // Started through /proc/self/exe it would be called `exe` where ports and processes are listed.
    let _as_before = rustix::thread::set_name(c"faultbed-proxy");
    sys::raise_descriptor_limit();
    // A thread that panics leaves connections that nobody carries: the agent must start another
    // process, which has the rules before it has listeners.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    let started = Proxy::start(dir, socket).and_then(|proxy| {
        process::record_self(dir)?;
        Ok(proxy)
    });
    match started {
        Ok(proxy) => {
            proxy.wait();
            process::forget_self(dir);
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
    control: Option<JoinHandle<()>>,
    threads: Vec<JoinHandle<()>>,
    crew: Crew,
    stop: OwnedFd,
    socket: PathBuf,
    /// Held while the data plane runs: a directory has one.
    _lock: File,
}

impl Proxy {
    /// Starts the data plane of `dir`: makes `proxy.json` true, then serves `socket`. A file that
    /// cannot be understood is an error, since its cuts would be missing.
    ///
    /// # Errors
    /// Where another one serves `dir`, or as the system says.
    pub fn start(dir: &Path, socket: &Path) -> io::Result<Self> {
        let lock = lock_dir(dir)?;
        let count = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        let board = Arc::new(Board::new(count));
        let lookup = Arc::new(Lookup::default());
        let acceptor = Arc::new(Acceptor::new()?);
        let mailboxes: Vec<_> =
            (0..count).map(|_| Mailbox::new().map(Arc::new)).collect::<io::Result<_>>()?;
        let crew = Crew { board, mailboxes, acceptor, lookup };
        let mut engine = Engine::new(dir, crew.clone())?;
        engine.load().map_err(io::Error::other)?;
        let stop = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let mut proxy = Self {
            control: None,
            threads: Vec::new(),
            crew,
            stop,
            socket: socket.to_owned(),
            _lock: lock,
        };
        proxy.start_crew()?;
        engine.make_true().map_err(io::Error::other)?;
        let control = Control::new(engine, bind_control(socket)?, proxy.stop.try_clone()?)?;
        proxy.control = Some(spawn_thread("control", move || control.run())?);
        Ok(proxy)
    }

    fn start_crew(&mut self) -> io::Result<()> {
        let Crew { board, mailboxes, acceptor, lookup } = self.crew.clone();
        let count = mailboxes.len();
        for (index, mailbox) in mailboxes.iter().enumerate() {
            let share =
                Share { index, pipes: PIPES_MAX / count, waiting: (WAITING_MAX / count).max(1) };
            let worker =
                Worker::new(share, Arc::clone(mailbox), Arc::clone(&board), Arc::clone(&lookup))?;
            self.threads.push(spawn_thread(&format!("worker-{index}"), move || worker.run())?);
        }
        let seen = Arc::clone(&board);
        self.threads.push(spawn_thread("acceptor", move || acceptor.run(&seen, &mailboxes))?);
        self.threads.push(spawn_thread("identify", move || lookup.run(&board))?);
        Ok(())
    }

    /// Waits until it is told to stop through its socket.
    pub fn wait(mut self) {
        if let Some(control) = self.control.take() {
            let _panicked = control.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _full = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(control) = self.control.take() {
            let _panicked = control.join();
        }
        let Crew { board, mailboxes, acceptor, lookup } = &self.crew;
        board.stop();
        mailboxes.iter().for_each(|mailbox| mailbox.wake());
        acceptor.wake();
        lookup.wake();
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
        let _gone_already = fs::remove_file(&self.socket);
    }
}

fn spawn_thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// Takes the lock that keeps two data planes off one directory; it goes with the process.
fn lock_dir(dir: &Path) -> io::Result<File> {
    fs::create_dir_all(dir)?;
    let lock = File::create(dir.join("proxy.lock"))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| io::Error::other("another proxy serves this directory"))?;
    Ok(lock)
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
