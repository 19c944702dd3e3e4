//! One push: pieces go to a file beside, which takes its place once it is whole and verified.

use std::{collections::BTreeSet, fs, io, os::unix::fs::DirBuilderExt as _, path::Path, sync::Arc};

use faultbed_common::program::{Content, PushHead, Sha256};
use tokio::io::AsyncWriteExt as _;

use super::{ContentError, Contents};

/// A push that is under way. What it brought stays when it breaks off.
#[derive(Debug)]
pub struct Receiving {
    contents: Arc<Contents>,
    content: Content,
    file: tokio::fs::File,
    bytes: u64,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl Contents {
    /// Begins a push, or goes on with one; `None` where all of it is here. `used` is what clusters
    /// name, and stays when room is made.
    ///
    /// # Errors
    /// There is no room, or it does not begin where an earlier push ended.
    pub async fn receive(
        self: &Arc<Self>,
        head: &PushHead,
        used: &BTreeSet<Sha256>,
    ) -> Result<Option<Receiving>, ContentError> {
        let PushHead { content, offset } = head;
        // Whoever comes second waits here, and finds it done.
        let turn = self.lock_of(&content.sha256).lock_owned().await;
        let held = self.held(content);
        if held.whole {
            return Ok(None);
        }
        let part = self.part(&content.sha256);
        let disk = |source| self.disk("write", &part, source);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(disk)?;
        if *offset == 0 {
            fs::File::create(&part).map_err(disk)?;
        } else if *offset != held.bytes {
            return Err(ContentError::Gap { offset: *offset, held: held.bytes });
        }
        self.make_room(content.bytes - offset, used)?;
        let file = fs::File::options().append(true).open(&part).map_err(disk)?;
        Ok(Some(Receiving {
            contents: Arc::clone(self),
            content: content.clone(),
            file: file.into(),
            bytes: *offset,
            _turn: turn,
        }))
    }

    fn disk(&self, verb: &'static str, path: &Path, source: io::Error) -> ContentError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                ContentError::NoSpace { dir: self.dir.clone(), source }
            }
            _ => ContentError::Disk { verb, path: path.to_owned(), source },
        }
    }
}

impl Receiving {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// They are more than was announced, or the disk does not take them.
    pub async fn take(&mut self, data: &[u8]) -> Result<(), ContentError> {
        let part = self.contents.part(&self.content.sha256);
        self.bytes += data.len() as u64;
        if self.bytes > self.content.bytes {
            // Nothing of it can be trusted.
            fs::remove_file(&part).ok();
            return Err(ContentError::TooMuch { bytes: self.content.bytes });
        }
        let written = self.file.write_all(data).await;
        written.map_err(|source| self.contents.disk("write", &part, source))
    }

    /// Ends the push: verifies what came, and puts it in its place. What is not whole stays as it
    /// is, for the next push. Returns how many bytes are here.
    ///
    /// # Errors
    /// It is not what was announced, or the disk does not take it.
    pub async fn finish(mut self) -> Result<u64, ContentError> {
        let part = self.contents.part(&self.content.sha256);
        let flushed = self.file.flush().await;
        flushed.map_err(|source| self.contents.disk("write", &part, source))?;
        if self.bytes < self.content.bytes {
            return Ok(self.bytes);
        }
        let whole = tokio::task::spawn_blocking(move || self.settle());
        whole.await.map_err(|error| ContentError::Disk {
            verb: "verify",
            path: part,
            source: io::Error::other(error),
        })?
    }

    fn settle(self) -> Result<u64, ContentError> {
        let Self { contents, content, .. } = &self;
        let part = contents.part(&content.sha256);
        let disk = |source| contents.disk("verify", &part, source);
        let mut file = fs::File::open(&part).map_err(disk)?;
        let came = Content::read(&mut file).map_err(disk)?.sha256;
        if came != content.sha256 {
            fs::remove_file(&part).ok();
            return Err(ContentError::Mismatch { wanted: content.sha256.clone(), came });
        }
        file.sync_all().map_err(disk)?;
        fs::rename(&part, contents.file(&content.sha256)).map_err(disk)?;
        fs::File::open(&contents.dir).and_then(|dir| dir.sync_all()).map_err(disk)?;
        tracing::info!(sha256 = %content.sha256, bytes = content.bytes, "program pushed");
        Ok(content.bytes)
    }
}
