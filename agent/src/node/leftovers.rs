//! Processes of runs that no shim holds any more, found by the tags in their environment.
//!
//! This finds what is left when a shim was killed and a detached child of its node was not.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{
    process::{ProcStat, ProcessId},
    records::{RUN_FILE, RunRecord, read_record},
    tags::{NODE_TAG, RUN_TAG, environment, variable},
};

/// A process of a run that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Which process.
    pub process: ProcessId,
    /// Its tag: `LAB/NODE/INCARNATION`.
    pub tag: String,
    /// The run directory it was started for.
    pub run_dir: PathBuf,
    /// Its command line, for people.
    pub command: String,
}

/// Levels between a process and its shim; deeper ones count as left over.
const ANCESTORS_MAX: usize = 64;

/// All processes that were started for a run below `under` and hang on no living shim of theirs.
///
/// # Errors
/// Where `/proc` cannot be read.
pub fn leftovers(under: &Path) -> io::Result<Vec<Leftover>> {
    let under = std::path::absolute(under)?;
    let mut shims = BTreeMap::<PathBuf, Option<i32>>::new();
    let mut found = Vec::new();
    for (process, run_dir, tag) in tagged()? {
        if !run_dir.starts_with(&under) {
            continue;
        }
        let shim = *shims.entry(run_dir.clone()).or_insert_with(|| living_shim(&run_dir));
        if shim.is_some_and(|shim| hangs_on(process.pid, shim)) || starting(&run_dir) {
            continue;
        }
        let command = command_line(process.pid);
        // The shim itself is the last of its run to end: it may have been seen before that.
        if is_ending(&process)? {
            continue;
        }
        found.push(Leftover { process, tag, run_dir, command });
    }
    Ok(found)
}

/// Living processes that carry the tag of this run.
pub(super) fn tagged_with(run_dir: &Path) -> Vec<ProcessId> {
    let Ok(run_dir) = std::path::absolute(run_dir) else { return Vec::new() };
    let tagged = tagged().unwrap_or_default();
    tagged.into_iter().filter(|(_, dir, _)| *dir == run_dir).map(|(process, ..)| process).collect()
}

/// Every living process with our tags, its run directory and its node tag.
fn tagged() -> io::Result<Vec<(ProcessId, PathBuf, String)>> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Of another user's processes the environment cannot be read; those are not ours.
        let Some(environ) = environment(pid.cast_unsigned()) else { continue };
        let Some(run_dir) = variable(&environ, RUN_TAG) else { continue };
        let tag = variable(&environ, NODE_TAG).unwrap_or_default();
        let Ok(process) = ProcessId::of(pid) else { continue };
        if pid != own && process.is_alive()? {
            let run_dir = PathBuf::from(std::ffi::OsStr::from_bytes(run_dir));
            found.push((process, run_dir, String::from_utf8_lossy(tag).into_owned()));
        }
    }
    Ok(found)
}

/// Whether a process has ended, or has let go of its program and is about to.
fn is_ending(process: &ProcessId) -> io::Result<bool> {
    Ok(!process.is_alive()? || fs::read_link(format!("/proc/{}/exe", process.pid)).is_err())
}

/// The pid of the shim that a run directory names, while it lives.
fn living_shim(run_dir: &Path) -> Option<i32> {
    let record = read_record::<RunRecord>(run_dir, RUN_FILE).ok().flatten()?;
    record.shim.is_alive().unwrap_or(true).then_some(record.shim.pid)
}

/// Whether a start or a shim still holds the directory although it has no record yet.
fn starting(run_dir: &Path) -> bool {
    !run_dir.join(RUN_FILE).exists()
        && run_dir.exists()
        && super::runs::try_lock(run_dir).is_ok_and(|lock| lock.is_none())
}

/// Whether `pid` is `shim` or descends from it.
fn hangs_on(pid: i32, shim: i32) -> bool {
    let mut at = pid;
    for _ in 0..ANCESTORS_MAX {
        if at == shim {
            return true;
        }
        match ProcStat::of(at) {
            Some(stat) if stat.parent > 1 => at = stat.parent,
            _ => return false,
        }
    }
    false
}

/// A command line as people read it.
fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    words.join(" ")
}
