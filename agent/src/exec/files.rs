//! Files of nodes for operators. The kernel itself keeps every path below the node's directory:
//! no `..`, no absolute path and no symbolic link leads out of it.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Component, Path, PathBuf},
};

use faultbed_common::exec::{Done, PIECE_BYTES_MAX};
use faultbed_proto::v1::{ExecPart, exec_part::Kind};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::{Next, Place, next};
use crate::{probe::command::Ids, reconcile::real::prepare::user};

/// What is left of a file's permissions: nothing that makes a program another user's.
const MODE_MASK: u32 = 0o777;

/// Directories in a node's own that are the agent's records, and not for writing.
const RECORDS: [&str; 2] = ["runs", "runs.old"];

/// Sends a file.
pub(super) async fn send(place: &Place, path: &str, up: &mpsc::Sender<ExecPart>) -> Done {
    let opened = relative(place, path).and_then(|path| open(&place.dir, &path));
    let (mut file, mode) = match opened {
        Ok(opened) => opened,
        Err(why) => return Done::failed(why),
    };
    loop {
        // A disk may be slow; nobody else must wait for it.
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE_BYTES_MAX];
            let count = file.read(&mut piece);
            (file, piece, count)
        });
        let (back, mut piece, count) = match read.await {
            Ok(read) => read,
            Err(error) => return Done::failed(format!("read {path}: {error}")),
        };
        file = back;
        match count {
            Ok(0) => return Done { mode: Some(mode), ..Done::default() },
            Ok(count) => piece.truncate(count),
            Err(error) => return Done::failed(format!("read {path}: {error}")),
        }
        if up.send(ExecPart { kind: Some(Kind::Data(piece)) }).await.is_err() {
            return Done::failed("whoever asked has gone");
        }
    }
}

/// Takes a file: it is there as a whole, or as it was before.
pub(super) async fn take(
    place: &Place,
    path: &str,
    mode: u32,
    down: &mut Streaming<ExecPart>,
) -> Done {
    let begun = relative(place, path)
        .and_then(|path| Ok((path, user(place.spec.launch.user.as_deref())?)))
        .and_then(|(path, owner)| Taken::begin(&place.dir, &path, mode & MODE_MASK, owner));
    let mut taken = match begun {
        Ok(taken) => taken,
        Err(why) => return Done::failed(why),
    };
    loop {
        match next(down).await {
            Next::Data(bytes) => {
                let written = tokio::task::spawn_blocking(move || {
                    let written = taken.file.write_all(&bytes);
                    (taken, written)
                });
                match written.await {
                    Ok((back, Ok(()))) => taken = back,
                    Ok((_, Err(error))) => return Done::failed(format!("write {path}: {error}")),
                    Err(error) => return Done::failed(format!("write {path}: {error}")),
                }
            }
            Next::End => {
                return match taken.finish() {
                    Ok(()) => Done::default(),
                    Err(error) => Done::failed(format!("write {path}: {error}")),
                };
            }
            Next::Gone => return Done::failed("whoever asked has gone"),
        }
    }
}

/// A path below the node's directory. One that names the directory itself from the root is as good.
fn relative(place: &Place, path: &str) -> Result<PathBuf, String> {
    let asked = Path::new(path);
    let below = asked.strip_prefix(&place.dir).unwrap_or(asked);
    if below.is_absolute() || below.components().any(|part| part == Component::ParentDir) {
        return Err(outside(path, place));
    }
    Ok(below.to_owned())
}

fn outside(path: &str, place: &Place) -> String {
    format!(
        "{path} is not below the directory of {}; name a file in it, such as data/FILE or \
         runs/…/output.log",
        place.name
    )
}

fn beneath(dir: &Path, path: &Path, flags: OFlags, links: ResolveFlags) -> Result<OwnedFd, String> {
    let describe = |what: &Path, errno: Errno| match errno {
        Errno::XDEV | Errno::LOOP => {
            format!("{} leads out of the node's directory", path.display())
        }
        errno => format!("open {}: {}", what.display(), io::Error::from(errno)),
    };
    let root = rustix::fs::openat(
        CWD,
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| describe(dir, errno))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | links;
    // The directory itself has no name below it.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
        .map_err(|errno| describe(path, errno))
}

/// Opens a plain file for reading, with its permissions.
fn open(dir: &Path, path: &Path) -> Result<(File, u32), String> {
    // A FIFO would else keep us waiting for its writer.
    let file =
        File::from(beneath(dir, path, OFlags::RDONLY | OFlags::NONBLOCK, ResolveFlags::empty())?);
    let meta = file.metadata().map_err(|error| format!("open {}: {error}", path.display()))?;
    if meta.is_dir() {
        return Err(format!("{} is a directory; name one file", path.display()));
    }
    if !meta.is_file() {
        return Err(format!("{} is no plain file", path.display()));
    }
    Ok((file, meta.mode() & MODE_MASK))
}

/// A file that is being taken, beside the place it goes to.
#[derive(Debug)]
struct Taken {
    dir: OwnedFd,
    file: File,
    temporary: String,
    name: std::ffi::OsString,
    is_done: bool,
}

impl Taken {
    fn begin(dir: &Path, path: &Path, mode: u32, owner: Option<Ids>) -> Result<Self, String> {
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
            return Err(format!("{} names no file", path.display()));
        };
        let mut parts = parent.components().filter(|part| *part != Component::CurDir);
        let first = parts.next();
        let is_records = |part: Component<'_>| {
            RECORDS.iter().any(|records| part.as_os_str() == std::ffi::OsStr::new(records))
        };
        if first.is_none_or(is_records) {
            return Err(format!(
                "{} is among the records of the agent; write below data, or another directory of \
                 the node",
                path.display()
            ));
        }
        // The node's own processes make links in its data; none may lead us to the records.
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let into = beneath(dir, parent, flags, ResolveFlags::NO_SYMLINKS)?;
        let temporary =
            format!(".{}.faultbed-{:08x}", name.to_string_lossy(), rand::random::<u32>());
        let describe = |error: io::Error| format!("create {}: {error}", path.display());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&into, temporary.as_str(), flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| describe(errno.into()))?;
        let taken = Self {
            dir: into,
            file: File::from(fd),
            temporary,
            name: name.to_owned(),
            is_done: false,
        };
        if let Some(Ids { uid, gid }) = owner {
            std::os::unix::fs::fchown(&taken.file, Some(uid), Some(gid)).map_err(describe)?;
        }
        taken.file.set_permissions(std::fs::Permissions::from_mode(mode)).map_err(describe)?;
        Ok(taken)
    }

    fn finish(mut self) -> io::Result<()> {
        rustix::fs::renameat(&self.dir, self.temporary.as_str(), &self.dir, &*self.name)?;
        self.is_done = true;
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.is_done {
            // The disk may be gone; there is nobody to tell.
            rustix::fs::unlinkat(&self.dir, self.temporary.as_str(), AtFlags::empty()).ok();
        }
    }
}

#[cfg(test)]
mod tests;
