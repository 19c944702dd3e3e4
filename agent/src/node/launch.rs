//! Starts a shim and waits until the node runs or cannot.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use super::{
    records::{EXIT_FILE, LAUNCH_FILE, LaunchSpec, ORDERS_FILE, RUN_FILE, RunRecord, ShimOrders},
    runs::try_lock,
    tags::{NODE_TAG, RUN_TAG},
};
use crate::node::records::write_record;

/// How long the shim's starter waits for the node to be executed, before it ends all of it.
pub const START_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long the agent waits for the starter, which has a bound of its own.
const STARTER_WAIT_MAX: Duration = Duration::from_secs(7);
/// What a starter reports is shorter.
const REPORT_BYTES_MAX: u64 = 64 * 1024;
/// The binary that is agent, shim and proxy; names the running one also after an upgrade of the file.
const OWN_BINARY: &str = "/proc/self/exe";

/// Why a node was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The run directory could not be prepared.
    #[error("prepare {}: {source}", dir.display())]
    Prepare {
        /// The run directory.
        dir: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// There was a run in this directory already; each is used once.
    #[error("prepare {}: it holds an earlier run", dir.display())]
    Used {
        /// The run directory.
        dir: PathBuf,
    },
    /// A shim or another launch holds the directory.
    #[error("prepare {}: a run is under way there", dir.display())]
    Busy {
        /// The run directory.
        dir: PathBuf,
    },
    /// Our own binary could not be started.
    #[error("start the shim: {0}")]
    Spawn(#[source] io::Error),
    /// The shim could not run the node: no such program, not allowed, no such user.
    #[error("{step}: {why}")]
    Refused {
        /// What it did, such as `run /usr/bin/etcd`.
        step: String,
        /// Why that failed.
        why: String,
        /// The error number, where there is one: tells a missing program from a forbidden one.
        errno: Option<i32>,
    },
    /// The shim did not answer in time, and was ended.
    #[error("start the shim: no answer within {} s", STARTER_WAIT_MAX.as_secs())]
    Timeout,
}

/// What a shim tells whoever started it: one JSON document on its standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartReport {
    /// The node was executed.
    Started(RunRecord),
    /// It was not, and nothing is left of the attempt.
    Refused {
        /// As in [`LaunchError::Refused`].
        step: String,
        /// As in [`LaunchError::Refused`].
        why: String,
        /// As in [`LaunchError::Refused`].
        errno: Option<i32>,
    },
}

/// Starts a node under a shim of its own, which outlives the caller. Blocks until the node was
/// executed (some milliseconds) or could not be, at most [`STARTER_WAIT_MAX`].
///
/// # Errors
/// On any of them nothing runs, save for [`LaunchError::Timeout`], after which `inspect` tells.
pub fn launch(
    run_dir: &Path,
    spec: &LaunchSpec,
    orders: &ShimOrders,
) -> Result<RunRecord, LaunchError> {
    launch_with(Path::new(OWN_BINARY), run_dir, spec, orders)
}

/// As [`launch`], with another binary than the running one.
///
/// # Errors
/// As [`launch`].
pub fn launch_with(
    binary: &Path,
    run_dir: &Path,
    spec: &LaunchSpec,
    orders: &ShimOrders,
) -> Result<RunRecord, LaunchError> {
    let dir = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    let prepare = |source| LaunchError::Prepare { dir: dir.clone(), source };
    fs::create_dir_all(&dir).map_err(prepare)?;
    let lock = try_lock(&dir).map_err(prepare)?;
    let lock = lock.ok_or_else(|| LaunchError::Busy { dir: dir.clone() })?;
    if [RUN_FILE, EXIT_FILE].iter().any(|file| dir.join(file).exists()) {
        return Err(LaunchError::Used { dir });
    }
    write_record(&dir, ORDERS_FILE, orders).map_err(prepare)?;
    write_record(&dir, LAUNCH_FILE, spec).map_err(prepare)?;

    // The locked file is the starter's standard input: a lock that is never let go in between.
    let mut starter = Command::new(binary)
        .arg("shim")
        .arg(&dir)
        .env(NODE_TAG, format!("{}/{}/{}", spec.lab, spec.node, spec.incarnation))
        .env(RUN_TAG, &dir)
        .stdin(Stdio::from(lock))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(LaunchError::Spawn)?;
    let report = match starter.stdout.take() {
        Some(mut stdout) => read_report(&mut stdout),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    };
    if report.is_err() {
        // The shim has asked to die with its starter as long as it has not reported.
        let _gone_already = starter.kill();
    }
    starter.wait().map_err(LaunchError::Spawn)?;
    match report {
        Ok(StartReport::Started(record)) => Ok(record),
        Ok(StartReport::Refused { step, why, errno }) => {
            Err(LaunchError::Refused { step, why, errno })
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(LaunchError::Timeout),
        Err(error) => Err(LaunchError::Spawn(error)),
    }
}

/// Reads until the starter closes its standard output, and no longer than [`STARTER_WAIT_MAX`].
fn read_report(stdout: &mut std::process::ChildStdout) -> io::Result<StartReport> {
    let deadline = Instant::now() + STARTER_WAIT_MAX;
    let mut bytes = Vec::new();
    loop {
        wait_readable(stdout, deadline.saturating_duration_since(Instant::now()))?;
        let mut chunk = [0; 4096];
        let count = stdout.read(&mut chunk)?;
        if count == 0 || bytes.len() as u64 > REPORT_BYTES_MAX {
            break;
        }
        bytes.extend_from_slice(&chunk[..count]);
    }
    if bytes.is_empty() {
        return Err(io::Error::other("it ended without a report"));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| io::Error::other(format!("read its report: {error}")))
}

/// Waits until there is something to read.
fn wait_readable(file: &impl std::os::fd::AsFd, wait: Duration) -> io::Result<()> {
    let wait = rustix::time::Timespec::try_from(wait).map_err(io::Error::other)?;
    let mut fds = [PollFd::new(file, PollFlags::IN)];
    match poll(&mut fds, Some(&wait)) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
