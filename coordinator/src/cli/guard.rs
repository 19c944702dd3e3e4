//! `faultbed __guard`: a small detached process that takes a lab down when the command that made it
//! is killed, or when the lab's time is up. Nobody else is left to do it then.

use std::{
    fs::File,
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal},
};

use crate::cli::{
    Session,
    context::{CONTEXT_FILE, Context},
    down::{self, inventory},
    failure::{Exit, Failure, Outcome},
    up::{
        self,
        command::RUN_TAG,
        daemons::{self, Programs},
    },
};

/// A parent that still lives takes the lab down itself; the guard gives it this much longer.
const PARENT_FIRST: Duration = Duration::from_secs(30);

/// How long what a dead parent's command has started may take to end after SIGTERM.
const COMMAND_MAX: Duration = Duration::from_secs(3);

/// What ends is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The longest single poll, so that no time overflows.
const POLL_MAX: Duration = Duration::from_secs(3600);

/// Arguments of the guard.
#[derive(Debug, clap::Args)]
pub struct GuardArgs {
    /// The lab's directory
    #[arg(long)]
    dir: PathBuf,
    /// Which life of the lab
    #[arg(long)]
    token: String,
    /// The process whose end is the lab's
    #[arg(long)]
    parent: Option<i32>,
    /// When that process began
    #[arg(long)]
    parent_ticks: Option<u64>,
    /// When the lab's time is up
    #[arg(long)]
    deadline_ms: Option<u64>,
    /// Which of the times that were set it is
    #[arg(long, default_value_t = 0)]
    term: u32,
}

/// Starts a guard of a lab.
///
/// # Errors
/// It cannot be started.
pub fn spawn(
    programs: &Programs,
    context: &Context,
    parent: Option<u32>,
    lifetime: Option<Duration>,
) -> Result<(), Failure> {
    let say = |e: std::io::Error| Failure::io("start the guard of the lab", &e);
    let log = File::options()
        .create(true)
        .append(true)
        .open(context.dir.join("guard.log"))
        .map_err(say)?;
    let mut command = Command::new(&programs.own);
    command.arg("__guard").arg("--dir").arg(&context.dir).args(["--token", &context.token]);
    command.args(["--term", &context.terms.to_string()]);
    if let Some(pid) = parent.and_then(|pid| i32::try_from(pid).ok()) {
        let ticks = inventory::start_ticks(pid).unwrap_or_default();
        command.args(["--parent", &pid.to_string(), "--parent-ticks", &ticks.to_string()]);
    }
    if let Some(lifetime) = lifetime {
        let grace = if parent.is_some() { PARENT_FIRST } else { Duration::ZERO };
        let ms = faultbed_common::duration::millis(lifetime + grace);
        command.args(["--deadline-ms", &ms.to_string()]);
    }
    let err = log.try_clone().map_err(say)?;
    command.current_dir("/").stdin(Stdio::null()).stdout(log).stderr(err);
    daemons::in_own_session(&mut command).spawn().map(drop).map_err(say)
}

/// Runs the guard: waits, then takes the lab down if it is still the one it was made for.
///
/// # Errors
/// Something of the lab is left.
pub fn run(session: &Session, args: &GuardArgs) -> Outcome {
    let begun = Instant::now();
    let mut lifetime = args.deadline_ms.map(Duration::from_millis);
    let report = loop {
        let woken = wait(args, begun, lifetime);
        if woken == Woken::ByParent {
            end_command(&args.token);
        }
        let same = |context: &Context| context.token == args.token;
        let Some(context) = Context::read(&args.dir)?.filter(same) else { return Ok(Exit::DONE) };
        // Nobody sets another time from here on.
        let _held = up::lock(&session.places, &context.name)?;
        let Some(context) = Context::read(&args.dir)?.filter(same) else { return Ok(Exit::DONE) };
        if woken == Woken::ByTime && context.terms != args.term {
            // The time was set anew, and has a guard of its own.
            if args.parent.is_none() {
                return Ok(Exit::DONE);
            }
            lifetime = None;
            continue;
        }
        break down::take::take_down_held(&session.places, &context, context.ephemeral)?;
    };
    if report.left.is_empty() {
        return Ok(Exit::DONE);
    }
    Err(Failure::no(format!(
        "something of the lab of {} is left: {}",
        args.dir.join(CONTEXT_FILE).display(),
        report.left.join(", ")
    )))
}

/// Why the guard woke up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// The parent is dead.
    ByParent,
    /// The time is up.
    ByTime,
}

/// Ends what a command in the lab has started: its parent is not there to do it.
fn end_command(token: &str) {
    let tag = format!("{RUN_TAG}={token}");
    for signal in [Signal::TERM, Signal::KILL] {
        let begun = Instant::now();
        for process in inventory::tagged(&tag) {
            inventory::signal(&process, signal);
        }
        while begun.elapsed() < COMMAND_MAX && !inventory::tagged(&tag).is_empty() {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Returns when the parent is dead or the time is up.
fn wait(args: &GuardArgs, begun: Instant, lifetime: Option<Duration>) -> Woken {
    let parent = args.parent.and_then(Pid::from_raw);
    let parent_fd = parent.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    if let (Some(pid), Some(opened)) = (args.parent, &parent_fd) {
        // Dead already, or its number is another's now.
        if opened.is_err() || inventory::start_ticks(pid) != args.parent_ticks {
            return Woken::ByParent;
        }
    }
    let parent_fd = parent_fd.and_then(Result::ok);
    loop {
        let left = lifetime.map_or(POLL_MAX, |lifetime| lifetime.saturating_sub(begun.elapsed()));
        if left.is_zero() {
            return Woken::ByTime;
        }
        let timeout = left.min(POLL_MAX);
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let ready = match &parent_fd {
            Some(fd) => {
                let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
                poll(&mut fds, Some(&timeout)).unwrap_or(0)
            }
            None => poll(&mut [], Some(&timeout)).unwrap_or(0),
        };
        if ready > 0 {
            return Woken::ByParent;
        }
    }
}
