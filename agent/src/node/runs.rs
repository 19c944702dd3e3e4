//! The run directories of a node: one for each incarnation, numbered, the old ones pruned.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use faultbed_common::generation::Incarnation;
use rustix::fs::{FlockOperation, flock};

use super::records::LOCK_FILE;

/// How many runs of a node are kept for `logs --incarnation`.
pub const RUNS_KEPT: usize = 10;

/// The directory of one incarnation below the directory of its node.
#[must_use]
pub fn run_dir(node_dir: &Path, incarnation: Incarnation) -> PathBuf {
    node_dir.join("runs").join(format!("{:04}", incarnation.0))
}

/// All runs of a node, oldest first. What is not a number is not ours and left out.
///
/// # Errors
/// Where the directory cannot be read; one that does not exist has no runs.
pub fn all_runs(node_dir: &Path) -> io::Result<Vec<(Incarnation, PathBuf)>> {
    let entries = match fs::read_dir(node_dir.join("runs")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut runs = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(number) = name.and_then(|name| name.parse().ok()) {
            runs.push((Incarnation(number), path));
        }
    }
    runs.sort();
    Ok(runs)
}

/// The newest run of a node.
///
/// # Errors
/// As [`all_runs`].
pub fn newest_run(node_dir: &Path) -> io::Result<Option<(Incarnation, PathBuf)>> {
    Ok(all_runs(node_dir)?.pop())
}

/// Removes all runs but the newest `keep` (at least one) and those whose shim still lives.
///
/// # Errors
/// Where a directory cannot be read or removed.
pub fn prune_runs(node_dir: &Path, keep: usize) -> io::Result<()> {
    let runs = all_runs(node_dir)?;
    let surplus = runs.len().saturating_sub(keep.max(1));
    for (_, dir) in runs.into_iter().take(surplus) {
        if let Some(_lock) = try_lock(&dir)? {
            fs::remove_dir_all(&dir)?;
        }
    }
    Ok(())
}

/// Takes the lock of a run directory; `None` while a shim, or a launch under way, holds it.
///
/// The lock belongs to the open file, which a launch hands to the shim: there is no moment at which
/// a run is under way and nobody holds it.
///
/// # Errors
/// Where the directory cannot be written.
pub fn try_lock(run_dir: &Path) -> io::Result<Option<File>> {
    let path = run_dir.join(LOCK_FILE);
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
