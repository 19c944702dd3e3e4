//! From the agent's request to a supervised node: lock, fork, session, and the report of success.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    io::{Errno, fcntl_dupfd_cloexec},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, kill_process, set_child_subreaper, set_parent_process_death_signal},
};

use super::{
    child::{self, Forked, NodeChild},
    supervise::Shim,
    tree,
};
use crate::{
    heap,
    node::{
        clock,
        launch::{START_WAIT_MAX, StartReport},
        process::ProcessId,
        records::{
            EXIT_FILE, ExitRecord, LAUNCH_FILE, LOCK_FILE, LaunchSpec, ORDERS_FILE, RUN_FILE,
            RunRecord, ShimOrders, VERSION, read_record, write_record,
        },
        runs::try_lock,
    },
};

/// Why a node is not started, for people.
#[derive(Debug)]
pub(super) struct Refusal {
    /// What was tried.
    pub(super) step: String,
    /// Why that failed.
    pub(super) why: String,
    /// The error number, where there is one.
    pub(super) errno: Option<i32>,
}

impl Refusal {
    /// A step that a system call refused.
    pub(super) fn of(step: &str, error: &io::Error) -> Self {
        Self { step: step.to_owned(), why: error.to_string(), errno: error.raw_os_error() }
    }
}

/// Turns system errors into refusals that name the step.
trait Step<T> {
    fn step(self, step: &str) -> Result<T, Refusal>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &str) -> Result<T, Refusal> {
        self.map_err(|error| Refusal::of(step, &error.into()))
    }
}

/// See [`super::main`].
pub(super) fn main(run_dir: &Path) -> ExitCode {
    child::close_inherited();
    let report = match prepare(run_dir) {
        Ok(Prepared::Starter(report)) => report,
        Ok(Prepared::Shim(seed)) => return run_shim(*seed),
        Err(refusal) => refused(refusal),
    };
    let started = matches!(report, StartReport::Started(_));
    let told = serde_json::to_vec(&report).is_ok_and(|bytes| {
        let mut stdout = io::stdout();
        stdout.write_all(&bytes).and_then(|()| stdout.flush()).is_ok()
    });
    if started && told { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn refused(Refusal { step, why, errno }: Refusal) -> StartReport {
    StartReport::Refused { step, why, errno }
}

/// The two processes that come out of the fork.
enum Prepared {
    /// The first one, with what the other reported.
    Starter(StartReport),
    /// The other.
    Shim(Box<Seed>),
}

/// What the shim begins with.
struct Seed {
    dir: PathBuf,
    spec: LaunchSpec,
    orders: ShimOrders,
    report: File,
    lock: OwnedFd,
}

/// Checks the run directory, then forks.
fn prepare(run_dir: &Path) -> Result<Prepared, Refusal> {
    let dir = std::path::absolute(run_dir).step("find the run directory")?;
    let spec: Option<LaunchSpec> = read_record(&dir, LAUNCH_FILE).step("read the launch spec")?;
    let spec = spec.ok_or(io::Error::from(io::ErrorKind::NotFound)).step("read launch.json")?;
    if spec.version > VERSION {
        return Err(Refusal {
            step: "read launch.json".to_owned(),
            why: format!("it is of a later release (version {})", spec.version),
            errno: None,
        });
    }
    let orders = read_record(&dir, ORDERS_FILE).step("read the orders")?.unwrap_or_default();
    let lock = inherit_lock(&dir)?;
    if [RUN_FILE, EXIT_FILE].iter().any(|file| dir.join(file).exists()) {
        return Err(Refusal {
            step: "take the run directory".to_owned(),
            why: "it holds an earlier run".to_owned(),
            errno: None,
        });
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).step("make a pipe")?;
    match child::fork().step("fork the shim")? {
        Forked::Parent(shim) => {
            drop(write);
            Ok(Prepared::Starter(await_report(shim, File::from(read))))
        }
        Forked::Child => {
            drop(read);
            let report = File::from(write);
            Ok(Prepared::Shim(Box::new(Seed { dir, spec, orders, report, lock })))
        }
    }
}

/// The lock comes as standard input; by hand, without an agent, it is taken here.
fn inherit_lock(dir: &Path) -> Result<OwnedFd, Refusal> {
    let stdin = io::stdin();
    let given = rustix::fs::fstat(&stdin).ok();
    let wanted = rustix::fs::stat(dir.join(LOCK_FILE)).ok();
    let same = given.zip(wanted).is_some_and(|(a, b)| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino));
    if same {
        return fcntl_dupfd_cloexec(&stdin, 3).step("keep the lock");
    }
    match try_lock(dir).step("take the lock")? {
        Some(file) => Ok(file.into()),
        None => Err(Refusal {
            step: "take the lock".to_owned(),
            why: "a run is under way in this directory".to_owned(),
            errno: None,
        }),
    }
}

/// In the starter: waits for the shim's word. One that takes too long is ended, and by its death
/// the node's child too, so that nothing can come up later that nobody waits for.
fn await_report(shim: Pid, mut pipe: File) -> StartReport {
    let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
    let wait = rustix::time::Timespec::try_from(START_WAIT_MAX).ok();
    let ready = loop {
        match poll(&mut fds, wait.as_ref()) {
            Err(Errno::INTR) => {}
            other => break other.unwrap_or(0) > 0,
        }
    };
    let mut bytes = Vec::new();
    if ready
        && pipe.read_to_end(&mut bytes).is_ok()
        && let Ok(report) = serde_json::from_slice(&bytes)
    {
        return report;
    }
    let _gone_already = kill_process(shim, Signal::KILL);
    let why = if ready { "the shim ended without a word" } else { "it took too long" };
    refused(Refusal { step: "start the shim".to_owned(), why: why.to_owned(), errno: None })
}

/// In the shim: everything until the end of the run.
fn run_shim(seed: Seed) -> ExitCode {
    let Seed { dir, spec, orders, mut report, lock } = seed;
    let started = become_shim().and_then(|()| start_node(&dir, &spec, orders));
    let (word, shim) = match started {
        Ok((record, shim)) => (StartReport::Started(record), Some(shim)),
        Err(refusal) => {
            tree::end_quickly();
            // So that an agent that comes later, and did not see the answer, knows it too.
            let exit = ExitRecord {
                at_boot_ms: clock::boottime_ms(),
                unseen: Some(format!("{}: {}", refusal.step, refusal.why)),
                ..ExitRecord::default()
            };
            let _best_effort = write_record(&dir, EXIT_FILE, &exit);
            (refused(refusal), None)
        }
    };
    // From here on the starter may end; before, its end was to be ours.
    let _cannot_fail = set_parent_process_death_signal(None);
    let _starter_gone = report.write_all(&serde_json::to_vec(&word).unwrap_or_default());
    drop(report);
    let Some(mut shim) = shim else { return ExitCode::FAILURE };
    child::shield_from_oom_killer();
    shim.run();
    drop(lock);
    ExitCode::SUCCESS
}

/// Leaves the agent's session, its descriptors and its fate.
fn become_shim() -> Result<(), Refusal> {
    set_parent_process_death_signal(Some(Signal::KILL)).step("tie the start to its starter")?;
    rustix::process::setsid().step("begin a session")?;
    set_child_subreaper(Some(rustix::process::getpid())).step("become a subreaper")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .step("open /dev/null")?;
    child::set_standard_streams(null.as_fd(), null.as_fd())
        .step("let go of the agent's streams")?;
    // The node's directories may be unmounted or removed while it runs; ours is the root.
    rustix::process::chdir("/").step("change to /")?;
    heap::stay_small();
    Ok(())
}

/// Forks the node, sees it executed, and writes the run record.
fn start_node(
    dir: &Path,
    spec: &LaunchSpec,
    orders: ShimOrders,
) -> Result<(RunRecord, Shim), Refusal> {
    let boot_id = clock::boot_id().step("read the boot id")?;
    let signals = child::block_signals().step("block signals")?;
    let (log_read, log_write) = pipe_with(PipeFlags::CLOEXEC).step("make the log pipe")?;
    rustix::fs::fcntl_setfl(&log_read, OFlags::NONBLOCK).step("set up the log pipe")?;
    let node = NodeChild::prepare(spec, log_write)?.start(START_WAIT_MAX)?;
    let record = RunRecord {
        version: VERSION,
        boot_id,
        shim: ProcessId::of(rustix::process::getpid().as_raw_pid()).step("identify the shim")?,
        node: ProcessId::of(node.pid.as_raw_pid()).step("identify the node")?,
        incarnation: spec.incarnation,
        started_boot_ms: clock::boottime_ms(),
    };
    let shim = Shim::new(dir, spec, orders, node, signals, log_read).step("set up the shim")?;
    write_record(dir, RUN_FILE, &record).step("write the run record")?;
    Ok((record, shim))
}

/// Takes a descriptor number that a system call just returned.
#[allow(
    unsafe_code,
    reason = "descriptors that come as numbers from system calls without wrappers"
)]
pub(super) fn own(raw: i32) -> io::Result<OwnedFd> {
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller got `raw` from a system call that made it, and passes it on only here.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A duration as poll(2) wants it.
pub(super) fn timespec(wait: Duration) -> Option<rustix::time::Timespec> {
    rustix::time::Timespec::try_from(wait).ok()
}
