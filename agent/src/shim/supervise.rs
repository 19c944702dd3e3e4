//! The shim's main loop: signals, the log pipe, the end of a pause, and the end of the run.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use faultbed_common::report::NO_LISTENER;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use super::{
    child::{StartedNode, next_signal},
    connects::{self, Shared},
    output::Output,
    sockaddr::DialTable,
    start::timespec,
    tree,
};
use crate::node::{
    clock,
    records::{
        EXIT_FILE, ExitRecord, IDENTITY_FILE, IdentityRecord, LaunchSpec, ORDERS_FILE, Pause,
        ShimOrders, read_record, record_file, write_record,
    },
};

/// What is read from the log pipe at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks read in a row before signals are looked at again.
const CHUNKS_MAX: u32 = 16;
/// The most that is still read once no process of the node is left; no pipe holds more.
const DRAIN_BYTES_MAX: u64 = 8 << 20;
/// The identity record is not written more often than this.
const IDENTITY_EVERY: Duration = Duration::from_secs(1);
/// Pauses between two rounds of killing: they double from the first to the last, and a child's end
/// cuts them short.
const KILL_ROUND_MIN: Duration = Duration::from_millis(1);
/// See [`KILL_ROUND_MIN`].
const KILL_ROUND_MAX: Duration = Duration::from_millis(500);
/// Room set aside on disk for the exit record, so that a full disk cannot lose it.
const EXIT_BYTES: usize = 512;
/// How often, and how far apart, the exit record is tried on a disk that refuses.
const EXIT_TRIES: u32 = 20;
/// See [`EXIT_TRIES`].
const EXIT_TRY: Duration = Duration::from_millis(250);

/// A node and everything that is kept about it.
pub(super) struct Shim {
    dir: PathBuf,
    node: i32,
    signals: OwnedFd,
    log: OwnedFd,
    output: Output,
    timer: OwnedFd,
    paused: bool,
    pause: Option<Pause>,
    stall: Option<Pause>,
    shared: Arc<Shared>,
    no_listener: Option<String>,
    identity_written: Option<(IdentityRecord, Instant)>,
    exit_file: Option<File>,
    /// How the node's main process ended.
    ended: Option<(tree::Ended, u64)>,
    told_to_end: bool,
}

impl Shim {
    /// Takes charge of a node that was just executed.
    pub(super) fn new(
        dir: &Path,
        spec: &LaunchSpec,
        orders: ShimOrders,
        node: StartedNode,
        signals: OwnedFd,
        log: OwnedFd,
    ) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared::new(DialTable::of(&orders), wake));
        let no_listener = match node.listener {
            Ok(listener) => {
                connects::spawn(listener, Arc::clone(&shared), spec.private)?;
                None
            }
            Err(errno) => Some(format!("{NO_LISTENER}: {}", io::Error::from(errno))),
        };
        let timer_flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            dir: dir.to_owned(),
            node: node.pid.as_raw_pid(),
            signals,
            log,
            output: Output::new(dir, spec.log_bytes_max, spec.log_files),
            timer: timerfd_create(TimerfdClockId::Boottime, timer_flags)?,
            paused: false,
            pause: orders.pause,
            stall: orders.stall,
            shared,
            no_listener,
            identity_written: None,
            exit_file: reserve_exit_file(dir).ok(),
            ended: None,
            told_to_end: false,
        })
    }

    /// Stays with the node until nothing of it is left and that is on disk.
    pub(super) fn run(&mut self) {
        self.apply_pauses();
        let mut chunk = vec![0; CHUNK_BYTES];
        while self.ended.is_none() && !self.told_to_end {
            let wait = self.write_identity();
            self.wait_for_events(wait);
            self.hear_signals();
            self.read_log(&mut chunk, CHUNKS_MAX);
            self.end_pauses_in_time();
        }
        let killed = self.end_tree(&mut chunk);
        self.drain_log(&mut chunk);
        // Where the machine goes down, all are told at about the same time: the node may be faster.
        self.hear_end();
        self.write_identity_now();
        self.write_exit(killed);
    }

    /// Sleeps until something happens, at most `wait`.
    fn wait_for_events(&self, wait: Option<Duration>) {
        let fds = [&self.signals, &self.log, &self.timer, self.shared.wake_fd()];
        let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::IN));
        let _interrupted = poll(&mut fds, wait.and_then(timespec).as_ref());
    }

    fn hear_signals(&mut self) {
        while let Some(signal) = next_signal(&self.signals) {
            match signal {
                libc::SIGTERM | libc::SIGINT => self.told_to_end = true,
                libc::SIGHUP => self.read_orders(),
                _ => {}
            }
        }
        self.collect_dead();
    }

    /// Notes whether it is told to end while the run ends anyway.
    fn hear_end(&mut self) {
        while let Some(signal) = next_signal(&self.signals) {
            self.told_to_end |= matches!(signal, libc::SIGTERM | libc::SIGINT);
        }
    }

    /// Collects children; true when there is none left.
    fn collect_dead(&mut self) -> bool {
        let (ended, none_left) = tree::collect();
        for dead in ended {
            if dead.pid == self.node && self.ended.is_none() {
                self.ended = Some((dead, clock::boottime_ms()));
            }
        }
        none_left
    }

    /// Follows new orders. Those that cannot be read change nothing: the agent writes them again.
    fn read_orders(&mut self) {
        let Ok(Some(orders)) = read_record::<ShimOrders>(&self.dir, ORDERS_FILE) else { return };
        self.shared.set_dials(DialTable::of(&orders));
        (self.pause, self.stall) = (orders.pause, orders.stall);
        self.apply_pauses();
    }

    /// Makes the tree and its disk stand or go on as ordered, and sets the timer for the next end.
    fn apply_pauses(&mut self) {
        let now = clock::boottime_ns();
        let holds = |pause: Option<Pause>| {
            pause.filter(|pause| pause.until_boottime_ns.is_none_or(|until| until > now))
        };
        let (holds, stall) = (holds(self.pause), holds(self.stall));
        // Before the tree stands still, so that nothing can come between the two.
        let ends = [holds, stall].into_iter().flatten().filter_map(|pause| pause.until_boottime_ns);
        self.set_timer(ends.min());
        self.shared.stall(stall.is_some());
        match (holds.is_some(), self.paused) {
            (true, false) => tree::stop_all(),
            (false, true) => tree::continue_all(),
            _ => {}
        }
        self.paused = holds.is_some();
    }

    fn set_timer(&self, until_ns: Option<u64>) {
        // All zero disarms it.
        let until = Timespec {
            tv_sec: i64::try_from(until_ns.unwrap_or(0) / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: (until_ns.unwrap_or(0) % 1_000_000_000) as _,
        };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval: never, it_value: until };
        let _cannot_fail = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once);
    }

    fn end_pauses_in_time(&mut self) {
        let mut count = [0; 8];
        if rustix::io::read(&self.timer, &mut count).is_ok() {
            self.apply_pauses();
        }
    }

    /// Writes down how connections are named, unless the last time was just before. Says after how
    /// long it wants to be called again; `None` is when the counters' eventfd says so.
    fn write_identity(&mut self) -> Option<Duration> {
        self.shared.hear_wake();
        let since = self.identity_written.as_ref().map(|(_, at)| at.elapsed());
        match since.and_then(|since| IDENTITY_EVERY.checked_sub(since)) {
            Some(wait) => Some(wait),
            None => self.write_identity_now().then_some(IDENTITY_EVERY),
        }
    }

    /// Writes down how connections are named, if that changed; says whether it did.
    fn write_identity_now(&mut self) -> bool {
        let record = self.shared.record(self.no_listener.as_deref().map_or(Ok(()), Err));
        let written = self.identity_written.as_ref().map(|(written, _)| written);
        if written == Some(&record) {
            return false;
        }
        let _tried_again_at_the_next_change = write_record(&self.dir, IDENTITY_FILE, &record);
        self.identity_written = Some((record, Instant::now()));
        true
    }

    /// Reads what the node printed; false when there is no more for now.
    fn read_log(&mut self, chunk: &mut [u8], chunks: u32) -> bool {
        for _ in 0..chunks {
            match rustix::io::read(&self.log, &mut *chunk) {
                Ok(count) if count > 0 => {
                    self.output.write(chunk.get(..count).unwrap_or_default());
                }
                Err(rustix::io::Errno::INTR) => {}
                _ => return false,
            }
        }
        true
    }

    /// Ends every process of the node; returns how many besides the main one it took.
    ///
    /// There is no bound on the whole: as long as a process lives that the kernel cannot end
    /// (asleep on a dead disk), the run is not over, and a second copy must not start.
    fn end_tree(&mut self, chunk: &mut [u8]) -> u32 {
        let mut killed = BTreeSet::new();
        let mut pause = KILL_ROUND_MIN;
        loop {
            tree::kill_all(&mut killed);
            if self.collect_dead() {
                break;
            }
            self.read_log(chunk, CHUNKS_MAX);
            let mut fds = [PollFd::new(&self.signals, PollFlags::IN)];
            let _interrupted = poll(&mut fds, timespec(pause).as_ref());
            self.hear_end();
            pause = (pause * 2).min(KILL_ROUND_MAX);
        }
        killed.remove(&self.node);
        u32::try_from(killed.len()).unwrap_or(u32::MAX)
    }

    /// Reads what is left in the pipe. Nobody writes any more, save one who was handed the pipe.
    fn drain_log(&mut self, chunk: &mut [u8]) {
        let mut read = 0;
        while read < DRAIN_BYTES_MAX && self.read_log(chunk, 1) {
            read += CHUNK_BYTES as u64;
        }
    }

    fn write_exit(&mut self, killed_descendants: u32) {
        let (ended, at_boot_ms) =
            self.ended.map_or((None, clock::boottime_ms()), |(e, at)| (Some(e), at));
        let exit = ExitRecord {
            code: ended.and_then(|ended| ended.code),
            signal: ended.and_then(|ended| ended.signal),
            at_boot_ms,
            killed_descendants,
            log_bytes_dropped: self.output.dropped(),
            unseen: ended.is_none().then(|| "the main process was collected unseen".to_owned()),
            told_to_end: self.told_to_end,
        };
        for _ in 0..EXIT_TRIES {
            let written = write_exit_file(&self.dir, self.exit_file.take(), &exit).is_ok();
            // A directory that was wiped meanwhile wants no record.
            if written || !self.dir.exists() {
                return;
            }
            std::thread::sleep(EXIT_TRY);
        }
    }
}

/// The exit record before it has its name.
fn exit_tmp(dir: &Path) -> PathBuf {
    dir.join(format!(".{EXIT_FILE}.tmp"))
}

/// Takes the room on disk that the exit record will need.
fn reserve_exit_file(dir: &Path) -> io::Result<File> {
    let mut file = record_file(&exit_tmp(dir))?;
    file.write_all(&[b' '; EXIT_BYTES])?;
    Ok(file)
}

/// Writes the exit record for good: after its name exists, its content does, also after a crash of
/// the machine. Blanks fill it up to the room that was reserved; JSON does not mind.
fn write_exit_file(dir: &Path, reserved: Option<File>, exit: &ExitRecord) -> io::Result<()> {
    let file = match reserved {
        Some(file) => file,
        None => reserve_exit_file(dir)?,
    };
    let mut bytes = serde_json::to_vec(exit)?;
    bytes.resize(bytes.len().max(EXIT_BYTES), b' ');
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    fs::rename(exit_tmp(dir), dir.join(EXIT_FILE))
}
