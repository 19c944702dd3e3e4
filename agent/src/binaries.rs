//! Programs of nodes: found, pinned and hashed, so that a crash never brings up another program.
//!
//! A commanded start runs the file that is at its path. It is pinned by a hard link or a reflink
//! under `bins/SHA256/`, never by copying gigabytes; where neither can be had, a crash restart
//! refuses a file that has changed.

pub mod fetch;
pub mod version;
mod web;

use std::{
    collections::BTreeSet,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
};

use faultbed_common::program::Content;
use serde::{Deserialize, Serialize};

/// How many files' hashes are remembered.
const CACHE_MAX: usize = 64;

/// Pinned programs that no node runs and that stay,
const UNUSED_MAX: usize = 4;

/// as long as they take no more than this together.
const UNUSED_BYTES_MAX: u64 = 2 << 30;

/// The line of a program's version, beside its pin.
const VERSION_FILE: &str = "version.txt";

/// What may wait for everything else.
const PRIORITY_LOWEST: i32 = 19;

/// A program that a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binary {
    /// Where it was found.
    pub path: PathBuf,
    /// Which file was there.
    pub file: FileId,
    /// Its content, in hexadecimal, once it is known.
    #[serde(default)]
    pub sha256: Option<String>,
    /// The same file under a name that nobody replaces.
    #[serde(default)]
    pub pinned: Option<PathBuf>,
    /// The line it prints of its version.
    #[serde(default)]
    pub version: Option<String>,
    /// Where it was on the machine it was pushed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
}

/// What tells a file from one that took its place or was overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    dev: u64,
    inode: u64,
    size: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self {
            dev: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        }
    }

    /// A reflink is another inode with the same content and times of its own.
    fn has_size_of(&self, other: &Self) -> bool {
        self.size == other.size
    }
}

impl Binary {
    /// The path that people know it by.
    #[must_use]
    pub fn shown(&self) -> &Path {
        self.from.as_ref().unwrap_or(&self.path)
    }

    /// Whether both are of the same file.
    #[must_use]
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.path == other.path && self.file == other.file
    }
}

/// Why a program cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BinaryError {
    /// No directory of PATH has it.
    #[error("find `{program}`: it is in none of the directories of PATH ({searched})")]
    NotInPath {
        /// What was looked for.
        program: String,
        /// Where.
        searched: String,
    },
    /// It is there and cannot be run.
    #[error("run {}: {why}", path.display())]
    Unusable {
        /// Where it is.
        path: PathBuf,
        /// Why it cannot be run.
        why: String,
    },
    /// It is not what the node ran.
    #[error(
        "start {} again: the file has changed since the node was started; `restart` takes the new one",
        path.display()
    )]
    Changed {
        /// Where it was.
        path: PathBuf,
    },
}

/// Where a program is: with a slash a file, else a name looked up in `search`, as in PATH.
///
/// # Errors
/// It is not there, or is no program.
pub fn find(program: &str, search: &str) -> Result<Binary, BinaryError> {
    if program.contains('/') {
        return usable(Path::new(program));
    }
    let candidates = search.split(':').filter(|dir| !dir.is_empty());
    let mut unusable = None;
    for path in candidates.map(|dir| Path::new(dir).join(program)) {
        match usable(&path) {
            Ok(binary) => return Ok(binary),
            Err(error) if path.exists() => unusable = Some(error),
            Err(_) => {}
        }
    }
    Err(unusable.unwrap_or_else(|| BinaryError::NotInPath {
        program: program.to_owned(),
        searched: search.to_owned(),
    }))
}

fn usable(path: &Path) -> Result<Binary, BinaryError> {
    let unusable = |why: String| BinaryError::Unusable { path: path.to_owned(), why };
    if !path.is_absolute() {
        return Err(unusable("it must be an absolute path or a name in PATH".to_owned()));
    }
    let metadata = fs::metadata(path).map_err(|error| unusable(error.to_string()))?;
    if !metadata.is_file() {
        return Err(unusable("it is not a file".to_owned()));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(unusable("it is not executable; `chmod +x` makes it so".to_owned()));
    }
    let file = FileId::of(&metadata);
    Ok(Binary {
        path: path.to_owned(),
        file,
        sha256: None,
        pinned: None,
        version: None,
        from: None,
    })
}

/// The file to run after a crash: the one that the node ran before.
///
/// # Errors
/// It is not there any more.
pub fn again(before: &Binary) -> Result<PathBuf, BinaryError> {
    let is_same = |path: &Path| fs::metadata(path).is_ok_and(|m| FileId::of(&m) == before.file);
    if is_same(&before.path) {
        return Ok(before.path.clone());
    }
    let changed = BinaryError::Changed { path: before.path.clone() };
    let pinned = before.pinned.as_ref().ok_or_else(|| changed.clone())?;
    // A hard link is the same inode: overwritten in place it has changed as well. A reflink is not,
    // and nobody but us writes there.
    match fs::metadata(pinned).map(|metadata| FileId::of(&metadata)) {
        Ok(file) if file == before.file => Ok(pinned.clone()),
        Ok(file) if file.inode != before.file.inode && file.has_size_of(&before.file) => {
            Ok(pinned.clone())
        }
        Ok(_) | Err(_) => Err(changed),
    }
}

/// What was found out of programs before.
#[derive(Debug, Default)]
pub struct Hashes {
    known: Vec<Binary>,
}

impl Hashes {
    /// The same binary with what is known of it: its version, and once it is hashed its hash and pin.
    #[must_use]
    pub fn known(&self, binary: &Binary) -> Option<Binary> {
        self.known.iter().find(|known| known.is_same_file(binary)).cloned()
    }

    /// Forgets programs of these hashes.
    pub fn forget(&mut self, gone: &[String]) {
        let is_gone = |sha256: &Option<String>| sha256.as_ref().is_some_and(|s| gone.contains(s));
        self.known.retain(|known| !is_gone(&known.sha256));
    }

    /// Remembers it, in place of what was known of it; a version alone takes no hash away.
    pub fn learn(&mut self, binary: &Binary) {
        let is_hashed = |known: Binary| known.sha256.is_some();
        if binary.sha256.is_none() && self.known(binary).is_some_and(is_hashed) {
            return;
        }
        self.known.retain(|known| !known.is_same_file(binary));
        if self.known.len() >= CACHE_MAX {
            self.known.remove(0);
        }
        self.known.push(binary.clone());
    }
}

/// Hashes a program and pins it below `bins`; its version is what was noted there, where nobody knows it.
///
/// # Errors
/// It cannot be read, or has changed since it was started.
pub fn identify(binary: &Binary, bins: &Path) -> Result<Binary, String> {
    let describe = |error: io::Error| format!("hash {}: {error}", binary.path.display());
    let mut file = File::open(&binary.path).map_err(describe)?;
    if FileId::of(&file.metadata().map_err(describe)?) != binary.file {
        return Err(format!("hash {}: it was replaced meanwhile", binary.path.display()));
    }
    let sha256 = hash(&mut file).map_err(describe)?;
    let dir = bins.join(&sha256);
    let pinned = match pin(binary, &file, &dir) {
        Ok(pinned) => Some(pinned),
        Err(error) => {
            tracing::debug!(%error, path = %binary.path.display(), "cannot pin the program");
            None
        }
    };
    let noted = || fs::read_to_string(dir.join(VERSION_FILE)).ok().filter(|text| !text.is_empty());
    let version = binary.version.clone().or_else(noted);
    Ok(Binary { sha256: Some(sha256), pinned, version, ..binary.clone() })
}

/// Notes the version of an identified program beside its pin, which saves asking it again.
pub fn note_version(binary: &Binary, bins: &Path) {
    if let (Some(sha256), Some(version)) = (&binary.sha256, &binary.version) {
        fs::write(bins.join(sha256).join(VERSION_FILE), version).ok();
    }
}

/// In a thread of the lowest priority, that nothing else uses: nodes start meanwhile.
fn hash(file: &mut File) -> io::Result<String> {
    let content = thread::scope(|scope| {
        let hashing = scope.spawn(|| {
            rustix::process::setpriority_process(None, PRIORITY_LOWEST).ok();
            Content::read(file)
        });
        hashing.join().unwrap_or_else(|_| Err(io::Error::other("it ended early")))
    })?;
    Ok(content.sha256.to_string())
}

/// Removes pins that no node runs, but the newest few: what is being pinned right now is no node's
/// yet. Returns the hashes that are gone.
///
/// # Errors
/// The directory cannot be read, or does not let go of a pin.
pub fn prune(bins: &Path, used: &BTreeSet<String>) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(bins) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut unused = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(sha256) = entry.file_name().into_string() else { continue };
        if !used.contains(&sha256) {
            unused.push((entry.metadata()?.modified()?, sha256));
        }
    }
    unused.sort();
    let (mut gone, mut stay, mut bytes) = (Vec::new(), 0, 0_u64);
    for (_, sha256) in unused.into_iter().rev() {
        bytes = bytes.saturating_add(own_bytes(&bins.join(&sha256)));
        if stay < UNUSED_MAX && bytes <= UNUSED_BYTES_MAX {
            stay += 1;
            continue;
        }
        fs::remove_dir_all(bins.join(&sha256))?;
        gone.push(sha256);
    }
    gone.reverse();
    Ok(gone)
}

/// What a pin takes of the disk by itself: a link to a file that is elsewhere too takes nothing.
fn own_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let files = entries.flatten().filter_map(|entry| entry.metadata().ok());
    files.filter(|file| file.nlink() == 1).map(|file| file.len()).sum()
}

/// Keeps its name: some programs look for their files beside themselves, and people read `ps`.
fn pin(binary: &Binary, file: &File, dir: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let name = binary.path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let pinned = dir.join(name);
    if let Ok(metadata) = fs::metadata(&pinned) {
        // A link of another path's file of the same content is as good, while it is whole.
        if metadata.size() == binary.file.size && metadata.permissions().mode() & 0o111 != 0 {
            return Ok(pinned);
        }
        fs::remove_file(&pinned)?;
    }
    match fs::hard_link(&binary.path, &pinned) {
        Ok(()) if fs::metadata(&pinned).is_ok_and(|m| FileId::of(&m) == binary.file) => {
            return Ok(pinned);
        }
        // It was replaced between the hash and the link.
        Ok(()) => fs::remove_file(&pinned)?,
        Err(_) => {}
    }
    reflink(file, &pinned)?;
    Ok(pinned)
}

fn reflink(file: &File, to: &Path) -> io::Result<()> {
    let target = File::create(to)?;
    let cloned = rustix::fs::ioctl_ficlone(&target, file);
    if let Err(error) = cloned {
        fs::remove_file(to)?;
        return Err(error.into());
    }
    target.set_permissions(fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests;
