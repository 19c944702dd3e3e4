//! Programs that were pushed: fetched from a coordinator by their hash, from where an earlier fetch
//! broke off, and verified before anything runs.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use faultbed_common::{
    name::HostName,
    program::{Content, FetchRequest, Pushed, Sha256},
};
use faultbed_proto::v1::{Document, Piece, agent_client::AgentClient};
use rustix::fs::{StatVfsMountFlags, statvfs};
use tokio::io::AsyncWriteExt as _;
use tonic::Streaming;

use crate::{reconcile::Fetching, session::Known};

/// What is being fetched, beside the program it becomes.
const PART: &str = ".part";

/// A disk keeps so many bytes free: databases suffer from a full disk more than from a late start.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// How long the next piece may take; what came stays.
const PIECE_WITHIN: Duration = Duration::from_secs(30);

/// Why a program cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody to ask.
    #[error("no coordinator can be reached; it goes on when one can")]
    NoCoordinator,
    /// The coordinator does not give it.
    #[error("{0}")]
    Refused(String),
    /// The stream broke off.
    #[error("it broke off after {bytes} bytes: {why}")]
    Broken {
        /// What is here.
        bytes: u64,
        /// Why.
        why: String,
    },
    /// The disk is too full.
    #[error(
        "{} has {free} MB free and {needed} MB are needed; make room there, or give the agent \
         another --dir", dir.display()
    )]
    NoRoom {
        /// Where.
        dir: PathBuf,
        /// Megabytes that are free.
        free: u64,
        /// Megabytes that it takes, with what stays free.
        needed: u64,
    },
    /// Nothing may be executed there.
    #[error("{} is mounted noexec: nothing can run from there; give the agent another --dir", dir.display())]
    NoExec {
        /// Where.
        dir: PathBuf,
    },
    /// What came is something else.
    #[error("what came has SHA-256 {came}, not {wanted}; it is fetched again")]
    Mismatch {
        /// What was asked for.
        wanted: Sha256,
        /// What came.
        came: Sha256,
    },
    /// The disk does not take it.
    #[error("write {}: {source}", path.display())]
    Disk {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Fetches programs for one host, one at a time: nodes of a host often run the same one.
#[derive(Debug)]
pub struct Fetcher {
    dir: PathBuf,
    host: HostName,
    known: Known,
    turn: tokio::sync::Mutex<()>,
    now: Mutex<Option<Fetching>>,
}

/// Says that nothing is fetched any more, however a fetch ends.
struct Shown<'a>(&'a Fetcher);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.show(None);
    }
}

/// Whether a program is here, whole. Its hash was verified before it got its name.
#[must_use]
pub fn is_here(dir: &Path, pushed: &Pushed) -> bool {
    fs::metadata(pushed.file(dir)).is_ok_and(|file| {
        file.is_file()
            && file.len() == pushed.content.bytes
            && file.permissions().mode() & 0o111 != 0
    })
}

impl Fetcher {
    /// One that keeps programs below `dir`, and asks these coordinators one after the other.
    #[must_use]
    pub fn new(dir: PathBuf, host: HostName, known: Known) -> Self {
        Self { dir, host, known, turn: tokio::sync::Mutex::default(), now: Mutex::default() }
    }

    /// What is being fetched now.
    #[must_use]
    pub fn now(&self) -> Option<Fetching> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn show(&self, now: Option<Fetching>) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Makes a program be here. Can be dropped at any moment and begun again.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub async fn fetch(&self, pushed: &Pushed) -> Result<(), FetchError> {
        let _turn = self.turn.lock().await;
        let (dir, wanted) = (self.dir.clone(), pushed.clone());
        if let Some(part) = blocking(move || prepare(&dir, &wanted)).await? {
            let _shown = Shown(self);
            self.receive(pushed, &part).await?;
            let (dir, wanted) = (self.dir.clone(), pushed.clone());
            blocking(move || settle(&dir, &wanted, &part)).await?;
            tracing::info!(path = pushed.path, sha256 = %pushed.content.sha256, "program fetched");
        }
        Ok(())
    }

    /// Brings the part to its full length.
    async fn receive(&self, pushed: &Pushed, part: &Path) -> Result<(), FetchError> {
        let disk = |source| disk(part, source);
        let mut file =
            tokio::fs::File::options().create(true).append(true).open(part).await.map_err(disk)?;
        let mut bytes = file.metadata().await.map_err(disk)?.len();
        if bytes > pushed.content.bytes {
            file.set_len(0).await.map_err(disk)?;
            bytes = 0;
        }
        let sha256 = &pushed.content.sha256;
        let show = |bytes| self.show(Some(Fetching { sha256: sha256.clone(), bytes }));
        show(bytes);
        if bytes == pushed.content.bytes {
            return Ok(());
        }
        let mut pieces = self.ask(pushed, bytes).await?;
        loop {
            let piece = tokio::time::timeout(PIECE_WITHIN, pieces.message()).await;
            let data = match piece {
                Ok(Ok(Some(piece))) => piece.data,
                Ok(Ok(None)) => break,
                Ok(Err(status)) => {
                    file.flush().await.map_err(disk)?;
                    return Err(FetchError::Broken { bytes, why: status.message().to_owned() });
                }
                Err(_) => {
                    file.flush().await.map_err(disk)?;
                    let why = format!("no piece within {} s", PIECE_WITHIN.as_secs());
                    return Err(FetchError::Broken { bytes, why });
                }
            };
            bytes += data.len() as u64;
            file.write_all(&data).await.map_err(disk)?;
            show(bytes);
            if bytes > pushed.content.bytes {
                break;
            }
        }
        file.flush().await.map_err(disk)
    }

    /// Asks one coordinator after the other: each has what was pushed to it. The connection is one
    /// of its own, so that orders never wait behind a program.
    async fn ask(&self, pushed: &Pushed, offset: u64) -> Result<Streaming<Piece>, FetchError> {
        let request =
            FetchRequest { host: self.host.clone(), sha256: pushed.content.sha256.clone(), offset };
        let json = serde_json::to_string(&request)
            .map_err(|error| FetchError::Refused(format!("write the request: {error}")))?;
        let mut refused = None;
        for coordinator in &self.known.all() {
            let Ok(channel) = self.known.connect(coordinator).await else { continue };
            let mut client = AgentClient::new(channel);
            let answer = client.fetch_content(Document { json: json.clone() });
            match tokio::time::timeout(PIECE_WITHIN, answer).await {
                Ok(Ok(pieces)) => return Ok(pieces.into_inner()),
                Ok(Err(status)) => refused = Some(status.message().to_owned()),
                Err(_) => {}
            }
        }
        Err(refused.map_or(FetchError::NoCoordinator, FetchError::Refused))
    }
}

/// Runs what may block for long beside the loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(FetchError::Refused(format!("it ended early: {error}"))))
}

/// Makes sure that it could run from here; where the part is, unless all of it is here.
fn prepare(dir: &Path, pushed: &Pushed) -> Result<Option<PathBuf>, FetchError> {
    let file = pushed.file(dir);
    let Some(home) = file.parent() else { return Ok(None) };
    if is_here(dir, pushed) || link_another(home, &file, pushed) {
        return Ok(None);
    }
    fs::create_dir_all(home).map_err(|source| disk(home, source))?;
    let part = home.join(PART);
    let there = fs::metadata(&part).map_or(0, |metadata| metadata.len());
    check_disk(home, pushed.content.bytes.saturating_sub(there))?;
    Ok(Some(part))
}

fn check_disk(dir: &Path, bytes: u64) -> Result<(), FetchError> {
    let system = statvfs(dir).map_err(|error| disk(dir, error.into()))?;
    if system.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Err(FetchError::NoExec { dir: dir.to_owned() });
    }
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    let needed = bytes.saturating_add(FREE_BYTES_MIN);
    if free < needed {
        let (free, needed) = (free / 1_000_000, needed.div_ceil(1_000_000));
        return Err(FetchError::NoRoom { dir: dir.to_owned(), free, needed });
    }
    Ok(())
}

/// The same content under another name needs no fetch. It may be a link to a file of the host's
/// that was overwritten since, so its hash is looked at.
fn link_another(home: &Path, file: &Path, pushed: &Pushed) -> bool {
    let Ok(entries) = fs::read_dir(home) else { return false };
    let is_same = |path: &Path| {
        let is_whole = fs::metadata(path).is_ok_and(|metadata| {
            metadata.is_file()
                && metadata.len() == pushed.content.bytes
                && metadata.permissions().mode() & 0o111 != 0
        });
        let content = || fs::File::open(path).and_then(|mut file| Content::read(&mut file));
        is_whole && content().is_ok_and(|content| content == pushed.content)
    };
    let others = entries.flatten().map(|entry| entry.path()).filter(|path| path != file);
    others.filter(|path| is_same(path)).any(|path| {
        // One of the same name that is broken makes room.
        fs::remove_file(file).ok();
        fs::hard_link(path, file).is_ok()
    })
}

/// Verifies what came and gives it its name.
fn settle(dir: &Path, pushed: &Pushed, part: &Path) -> Result<(), FetchError> {
    let describe = |source| disk(part, source);
    let mut file = fs::File::open(part).map_err(describe)?;
    let bytes = file.metadata().map_err(describe)?.len();
    if bytes < pushed.content.bytes {
        return Err(FetchError::Broken { bytes, why: "the coordinator sent no more".to_owned() });
    }
    let came = Content::read(&mut file).map_err(describe)?.sha256;
    let wanted = pushed.content.sha256.clone();
    if came != wanted {
        fs::remove_file(part).map_err(describe)?;
        return Err(FetchError::Mismatch { wanted, came });
    }
    file.set_permissions(fs::Permissions::from_mode(0o755)).map_err(describe)?;
    file.sync_all().map_err(describe)?;
    fs::rename(part, pushed.file(dir)).map_err(describe)
}

fn disk(path: &Path, source: io::Error) -> FetchError {
    FetchError::Disk { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
