//! Programs that were pushed: files named by their hash, bounded, and collected once no cluster names them.
//!
//! They are beside the store, not in it: etcd holds a few gigabytes at most. Each coordinator has
//! those that were pushed to it. An agent that does not find one here asks the next coordinator.

mod chore;
mod receive;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use faultbed_common::{
    lab::Lab,
    name::HostName,
    program::{Content, Held, Sha256},
};

pub use chore::collect_for_ever;
pub use receive::Receiving;

/// How much all programs may take together where nothing is said.
pub const CONTENT_BYTES_MAX: u64 = 16 << 30;

/// How long a program stays that no cluster names: it was just pushed, or is about to come back.
pub const GRACE: Duration = Duration::from_secs(3600);

/// How long a push that broke off can be gone on with.
pub const PART_GRACE: Duration = Duration::from_secs(24 * 3600);

/// The end of the name of a file that is being pushed.
const PART: &str = "part";

/// Why a program cannot be taken or given.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// There is no such content here.
    #[error("content {0} is not here; `faultbed restart` of its nodes pushes it again")]
    Missing(Sha256),
    /// The bound is reached.
    #[error(
        "the coordinator's programs would take {needed} bytes, and {bound} are allowed; delete \
         clusters, or start the coordinator with a larger --content-max"
    )]
    Full {
        /// What all would take.
        needed: u64,
        /// What is allowed.
        bound: u64,
    },
    /// The disk is full.
    #[error("the coordinator's disk is full at {}: {source}; make room there", dir.display())]
    NoSpace {
        /// Where.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk does not take or give it.
    #[error("{verb} {}: {source}", path.display())]
    Disk {
        /// What was tried.
        verb: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What came is something else.
    #[error("what came has SHA-256 {came}, not {wanted}: the file changed meanwhile; try again")]
    Mismatch {
        /// What was announced.
        wanted: Sha256,
        /// What came.
        came: Sha256,
    },
    /// A push goes on at another place than an earlier one ended.
    #[error("the push begins at byte {offset}, and {held} bytes are here; ask again what is here")]
    Gap {
        /// Where it begins.
        offset: u64,
        /// How many are here.
        held: u64,
    },
    /// It does not keep to what it announced.
    #[error("the push sends more than the {bytes} bytes it announced")]
    TooMuch {
        /// What it announced.
        bytes: u64,
    },
}

/// The programs of one coordinator.
#[derive(Debug)]
pub struct Contents {
    dir: PathBuf,
    bytes_max: u64,
    /// One push of a content at a time; others wait for it and find it done.
    pushes: Mutex<BTreeMap<Sha256, Arc<tokio::sync::Mutex<()>>>>,
}

impl Contents {
    /// The programs below `dir`, which is made with the first one.
    #[must_use]
    pub fn new(dir: PathBuf, bytes_max: u64) -> Self {
        Self { dir, bytes_max, pushes: Mutex::default() }
    }

    fn file(&self, sha256: &Sha256) -> PathBuf {
        self.dir.join(sha256.as_str())
    }

    fn part(&self, sha256: &Sha256) -> PathBuf {
        self.file(sha256).with_extension(PART)
    }

    /// What is here of a content. One that is here as a whole stays for another [`GRACE`].
    #[must_use]
    pub fn held(&self, content: &Content) -> Held {
        let size = |path: &Path| fs::metadata(path).map(|metadata| metadata.len()).ok();
        let whole = self.file(&content.sha256);
        if size(&whole) == Some(content.bytes) {
            touch(&whole);
            return Held { whole: true, bytes: content.bytes };
        }
        let bytes = size(&self.part(&content.sha256)).unwrap_or(0);
        Held { whole: false, bytes: if bytes > content.bytes { 0 } else { bytes } }
    }

    /// Opens a content to be read.
    ///
    /// # Errors
    /// It is not here, or cannot be read.
    pub fn open(&self, sha256: &Sha256) -> Result<fs::File, ContentError> {
        let path = self.file(sha256);
        fs::File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ContentError::Missing(sha256.clone()),
            _ => ContentError::Disk { verb: "open", path, source },
        })
    }

    /// The lock of one content's pushes.
    fn lock_of(&self, sha256: &Sha256) -> Arc<tokio::sync::Mutex<()>> {
        let mut pushes = self.pushes.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits for a lock that only this map holds.
        pushes.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(pushes.entry(sha256.clone()).or_default())
    }

    /// Makes room for so many bytes more: what no cluster names goes, the oldest first.
    ///
    /// # Errors
    /// What clusters name takes too much.
    fn make_room(&self, bytes: u64, used: &BTreeSet<Sha256>) -> Result<(), ContentError> {
        let mut files = self.files(used);
        let mut taken: u64 = files.iter().map(|file| file.bytes).sum();
        files.sort_by_key(|file| file.at);
        for file in files.iter().filter(|file| !file.is_used) {
            if taken.saturating_add(bytes) <= self.bytes_max {
                break;
            }
            if fs::remove_file(&file.path).is_ok() {
                taken -= file.bytes;
            }
        }
        let needed = taken.saturating_add(bytes);
        if needed > self.bytes_max {
            return Err(ContentError::Full { needed, bound: self.bytes_max });
        }
        Ok(())
    }

    /// Removes what no cluster names and nobody touched for its grace. Returns how many files went.
    pub fn collect(&self, used: &BTreeSet<Sha256>, now: SystemTime) -> usize {
        let is_over = |file: &&Found| {
            let grace = if file.is_part { PART_GRACE } else { GRACE };
            !file.is_used && now.duration_since(file.at).is_ok_and(|age| age > grace)
        };
        let files = self.files(used);
        files.iter().filter(is_over).filter(|file| fs::remove_file(&file.path).is_ok()).count()
    }

    /// Everything in the directory, wanted or not: a clock that jumped must not make it vanish.
    fn files(&self, used: &BTreeSet<Sha256>) -> Vec<Found> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let mut files = Vec::new();
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let path = entry.path();
            let is_part = path.extension().is_some_and(|extension| extension == PART);
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            let is_used =
                !is_part && name.parse().is_ok_and(|sha256: Sha256| used.contains(&sha256));
            let is_pushed = is_part
                && name.parse().is_ok_and(|sha256: Sha256| {
                    let pushes = self.pushes.lock().unwrap_or_else(PoisonError::into_inner);
                    pushes.get(&sha256).is_some_and(|lock| lock.try_lock().is_err())
                });
            files.push(Found {
                bytes: metadata.len(),
                at: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                is_part,
                is_used: is_used || is_pushed,
                path,
            });
        }
        files
    }
}

/// One file of the directory.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    bytes: u64,
    at: SystemTime,
    is_part: bool,
    /// A cluster names it, or it is being pushed.
    is_used: bool,
}

/// Only its grace depends on it.
fn touch(path: &Path) {
    let now = fs::FileTimes::new().set_modified(SystemTime::now());
    let touched = fs::File::open(path).and_then(|file| file.set_times(now));
    if let Err(error) = touched {
        tracing::debug!(%error, path = %path.display(), "note that a program was asked for");
    }
}

/// The contents that clusters name.
#[must_use]
pub fn used(lab: &Lab) -> BTreeSet<Sha256> {
    let pushed = lab.nodes().filter_map(|node| node.placement.pushed.as_ref());
    pushed.map(|pushed| pushed.content.sha256.clone()).collect()
}

/// Whether a host's share of the lab names a content: no host reads what is not its own.
#[must_use]
pub fn may_fetch(lab: &Lab, host: &HostName, sha256: &Sha256) -> bool {
    lab.nodes().any(|node| {
        let pushed = node.placement.pushed.as_ref();
        node.placement.host == *host && pushed.is_some_and(|p| p.content.sha256 == *sha256)
    })
}
