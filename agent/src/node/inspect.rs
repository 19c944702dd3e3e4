//! What a run directory says, checked against the processes that exist: adoption.
//!
//! A node is believed to run only where everything agrees; any doubt is `Unknown`, on which nobody
//! starts a second copy.

use std::{io, path::Path};

use super::{
    clock,
    leftovers::tagged_with,
    process::ProcessId,
    records::{
        ASKED_FILE, AskedRecord, EXIT_FILE, ExitRecord, LAUNCH_FILE, RUN_FILE, RunRecord, VERSION,
        read_record, write_record,
    },
    runs::try_lock,
};

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// Nothing was ever run there.
    None,
    /// It runs.
    Running {
        /// Which processes it is.
        record: RunRecord,
        /// Whether its main process is stopped (by a pause, or by anybody).
        paused: bool,
        /// That its end was asked for.
        asked: Option<AskedRecord>,
    },
    /// It is over, and no process of it is left.
    Exited {
        /// How.
        exit: ExitRecord,
        /// That its end was asked for; see [`ExitRecord::was_asked`].
        asked: Option<AskedRecord>,
        /// Whether the machine was started again since it ran.
        rebooted: bool,
    },
    /// Processes of it may or may not live. For a moment also while a run begins or ends.
    Unknown {
        /// Why that cannot be told.
        why: String,
    },
}

/// Tells what became of a run. Costs some file reads; a run whose shim was killed is settled once,
/// by a search through all processes, and gets an exit record that says so.
#[must_use]
pub fn inspect(run_dir: &Path) -> RunState {
    look(run_dir).unwrap_or_else(|error| RunState::Unknown { why: error.to_string() })
}

fn unknown(why: impl Into<String>) -> io::Result<RunState> {
    Ok(RunState::Unknown { why: why.into() })
}

/// The exit record, if there is one.
fn exited(run_dir: &Path) -> io::Result<Option<RunState>> {
    let Some(exit) = read_record::<ExitRecord>(run_dir, EXIT_FILE)? else { return Ok(None) };
    let record = read_record::<RunRecord>(run_dir, RUN_FILE)?;
    let this_boot = clock::boot_id()?;
    let rebooted = record.is_some_and(|record| record.boot_id != this_boot);
    Ok(Some(RunState::Exited { exit, asked: read_record(run_dir, ASKED_FILE)?, rebooted }))
}

fn look(run_dir: &Path) -> io::Result<RunState> {
    if let Some(over) = exited(run_dir)? {
        return Ok(over);
    }
    let Some(record) = read_record::<RunRecord>(run_dir, RUN_FILE)? else {
        return before_the_record(run_dir);
    };
    if record.version > VERSION {
        return unknown(format!("its shim is of a later release (records {})", record.version));
    }
    if record.boot_id != clock::boot_id()? {
        return settle(run_dir, "the machine was started again", true);
    }
    let shim = record.shim.open()?.filter(|(_, stat)| !stat.ended());
    let node = record.node.open()?.filter(|(_, stat)| !stat.ended());
    match (shim, node) {
        (Some(_), Some((_, node))) if node.parent == record.shim.pid => {
            let asked = read_record(run_dir, ASKED_FILE)?;
            Ok(RunState::Running { record, paused: node.stopped(), asked })
        }
        (Some(_), Some((_, node))) => unknown(format!(
            "pid {} is not a child of its shim {} but of {}",
            record.node.pid, record.shim.pid, node.parent
        )),
        (Some(_), None) => unknown("the node has ended, its shim is clearing up"),
        (None, Some(_)) => {
            unknown(format!("its shim is gone, but pid {} still lives", record.node.pid))
        }
        (None, None) => settle(run_dir, "its shim was killed", false),
    }
}

/// A directory without a run record: a start is under way, or it came to nothing.
fn before_the_record(run_dir: &Path) -> io::Result<RunState> {
    if !run_dir.join(LAUNCH_FILE).exists() {
        return Ok(RunState::None);
    }
    match try_lock(run_dir)? {
        None => unknown("it is being started"),
        // Between the first look and the lock it may have run and ended.
        Some(_lock) if run_dir.join(RUN_FILE).exists() => unknown("it was being started just now"),
        Some(_lock) => Ok(exited(run_dir)?.unwrap_or(RunState::None)),
    }
}

/// Nobody saw the end: makes sure that nothing is left, and writes the exit record for the shim.
fn settle(run_dir: &Path, why: &str, rebooted: bool) -> io::Result<RunState> {
    let Some(_lock) = try_lock(run_dir)? else {
        return unknown("its shim is gone, but something still holds its lock");
    };
    // The shim may have written it after we looked first, and then ended.
    if let Some(over) = exited(run_dir)? {
        return Ok(over);
    }
    let left = tagged_with(run_dir);
    if !left.is_empty() {
        let pids: Vec<String> = left.iter().map(|ProcessId { pid, .. }| pid.to_string()).collect();
        return unknown(format!("{why}, and of its processes still live: pid {}", pids.join(", ")));
    }
    let exit = ExitRecord {
        at_boot_ms: clock::boottime_ms(),
        unseen: Some(why.to_owned()),
        told_to_end: rebooted,
        ..ExitRecord::default()
    };
    write_record(run_dir, EXIT_FILE, &exit)?;
    Ok(RunState::Exited { exit, asked: read_record(run_dir, ASKED_FILE)?, rebooted })
}
