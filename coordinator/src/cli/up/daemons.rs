//! Starts the daemons of a local lab, each in a session of its own, so that no Ctrl-C reaches them.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::cli::{context::Context, failure::Failure};

/// A log that is larger at a start begins anew; the old one is kept as `.1`.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Lines of a daemon's log that are shown where it does not come up.
const LAST_LINES: usize = 12;

/// The daemons beside this program.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `faultbed-coordinator`.
    pub coordinator: PathBuf,
    /// `faultbed-agent`.
    pub agent: PathBuf,
    /// This program.
    pub own: PathBuf,
}

impl Programs {
    /// Finds them beside this program.
    ///
    /// # Errors
    /// One is missing: names where it was looked for.
    pub fn find() -> Result<Self, Failure> {
        let own = std::env::current_exe()
            .map_err(|e| Failure::io("find the directory of this program", &e))?;
        let dir = own.parent().unwrap_or(Path::new("/")).to_owned();
        let beside = |name: &str| {
            let path = dir.join(name);
            if path.is_file() {
                return Ok(path);
            }
            Err(Failure::refused(format!(
                "`{name}` is not beside this program: {} does not exist",
                path.display()
            ))
            .next("cargo build --release   # builds all three programs into one directory"))
        };
        Ok(Self {
            coordinator: beside("faultbed-coordinator")?,
            agent: beside("faultbed-agent")?,
            own,
        })
    }
}

/// A daemon that was started.
#[derive(Debug)]
pub struct Daemon {
    /// What it is, for messages.
    pub what: String,
    /// The process.
    pub child: Child,
    /// Where it writes.
    pub log: PathBuf,
}

impl Daemon {
    /// Why it is no more; `None` while it runs.
    pub fn ended(&mut self) -> Option<Failure> {
        let status = self.child.try_wait().ok().flatten()?;
        let mut message = format!("{} ended at once: {status}", self.what);
        for line in last_lines(&self.log) {
            message.push_str(&format!("\n  | {line}"));
        }
        Some(Failure::no(message).next(format!("less {}", self.log.display())))
    }
}

/// Starts the coordinator of a lab.
///
/// # Errors
/// It cannot be started.
pub fn coordinator(programs: &Programs, context: &Context) -> Result<Daemon, Failure> {
    let dir = context.coordinator_dir();
    let mut command = Command::new(&programs.coordinator);
    command
        .args(["--lab", context.name.as_str(), "--dir"])
        .arg(&dir)
        .arg("--runtime")
        .arg(&context.runtime)
        .args(["--octet", &context.octet.to_string(), "--store", &context.store])
        .args(context.etcd.flags());
    spawn(command, "coordinator", &dir, "coordinator.log")
}

/// Starts the agent of host `number`.
///
/// # Errors
/// It cannot be started.
pub fn agent(programs: &Programs, context: &Context, number: u32) -> Result<Daemon, Failure> {
    let dir = context.host_dir(number);
    let mut command = Command::new(&programs.agent);
    command
        .args(["agent", "--lab", context.name.as_str()])
        .args(["--host", &format!("h{number}")])
        .args(["--address", &format!("127.77.{}.{number}", context.octet), "--dir"])
        .arg(&dir)
        .arg("--runtime")
        .arg(&context.runtime)
        .args(["--coordinator", &format!("unix:{}", context.socket().display())]);
    spawn(command, &format!("agent of h{number}"), &dir, "agent.log")
}

fn spawn(mut command: Command, what: &str, dir: &Path, log: &str) -> Result<Daemon, Failure> {
    let say = |e: std::io::Error| Failure::io(format!("start the {what}"), &e);
    fs::create_dir_all(dir).map_err(say)?;
    let log = dir.join(log);
    let out = open_log(&log).map_err(say)?;
    let err = out.try_clone().map_err(say)?;
    command.current_dir(dir).stdin(Stdio::null()).stdout(out).stderr(err);
    let child = in_own_session(&mut command).spawn().map_err(say)?;
    Ok(Daemon { what: format!("the {what}"), child, log })
}

/// Makes a command the leader of a session of its own: a terminal's signals do not reach it.
#[allow(unsafe_code, reason = "a session can only be begun between fork and exec")]
pub fn in_own_session(command: &mut Command) -> &mut Command {
    // SAFETY: setsid is async-signal-safe, and the closure touches no memory of ours.
    unsafe { command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into)) }
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        fs::rename(path, old)?;
    }
    File::options().create(true).append(true).open(path)
}

/// The last lines of a log.
#[must_use]
pub fn last_lines(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(LAST_LINES);
    lines[skipped..].iter().map(|line| (*line).to_owned()).collect()
}
