//! Programs of this machine on their way to the lab: looked at when it asks, pushed where it lacks them.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use faultbed_common::program::{Content, Files, Needs, PushHead};
use faultbed_proto::v1::Piece;
use futures::Stream;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use crate::cli::{
    client::Client,
    failure::{Exit, Failure},
    output,
};

/// Bytes of one piece.
const PIECE_BYTES: usize = 256 * 1024;

/// How often a push that breaks off is gone on with.
const TRIES_MAX: u32 = 6;

/// The first of these tries comes after this; each further one after twice as long.
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// How often one change may ask for programs: to look, to push, and once more where one changed.
pub const ROUNDS_MAX: usize = 4;

/// What tells a file from one that took its place or was overwritten.
type FileId = (u64, u64, u64, i64, i64);

/// Files this command has hashed: an upgrade asks for the same one before each node.
#[derive(Debug, Clone, Default)]
pub struct Looked(Arc<Mutex<BTreeMap<String, (FileId, Content)>>>);

/// Does what the lab needs before it can accept a change: says what files hold, and pushes them.
///
/// # Errors
/// A file cannot be read, or changes meanwhile; or the lab does not take it or cannot be reached.
pub async fn provide(client: &Client, files: &mut Files, needs: &Needs) -> Result<(), Failure> {
    for path in &needs.look {
        let content = client.looked.look(path).await?;
        files.found.insert(path.clone(), content);
    }
    for path in &needs.push {
        let Some(Some(content)) = files.found.get(path) else {
            return Err(Failure::no(format!("push {path}: the lab asks for it unasked")));
        };
        push(client, path, content).await?;
    }
    Ok(())
}

impl Looked {
    /// What a file holds; `None` where there is none.
    async fn look(&self, path: &str) -> Result<Option<Content>, Failure> {
        let (looked, name) = (self.clone(), path.to_owned());
        let look = tokio::task::spawn_blocking(move || looked.look_now(&name));
        let found = look.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        match found {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::io(format!("read {path}"), &error)),
        }
    }

    fn look_now(&self, path: &str) -> io::Result<Content> {
        let mut file = fs::File::open(path)?;
        let metadata = file.metadata()?;
        let id = (
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        if let Some((_, content)) = known.filter(|(of, _)| *of == id) {
            return Ok(content);
        }
        let content = Content::read(&mut file)?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(path.to_owned(), (id, content.clone()));
        Ok(content)
    }
}

/// Pushes a file, from where an earlier push of it broke off.
async fn push(client: &Client, path: &str, content: &Content) -> Result<(), Failure> {
    let begun = Instant::now();
    let progress = Progress::new(path, content.bytes);
    let mut first = None;
    let mut tries = 0;
    loop {
        tries += 1;
        match push_once(client, path, content, &progress, &mut first).await {
            Ok(()) => break,
            Err(failure) if failure.exit == Exit::UNREACHABLE && tries < TRIES_MAX => {
                tokio::time::sleep(RETRY_FIRST * 2_u32.pow(tries - 1)).await;
            }
            Err(failure) => return Err(failure),
        }
    }
    drop(progress);
    let there = first.unwrap_or(0);
    let went_on = match there {
        0 => String::new(),
        bytes => format!(", {} of it before", HumanBytes(bytes)),
    };
    output::say(format!(
        "pushed   {path} ({}, {}) in {:.1} s{went_on}",
        content.sha256.short(),
        HumanBytes(content.bytes),
        begun.elapsed().as_secs_f32()
    ));
    Ok(())
}

async fn push_once(
    client: &Client,
    path: &str,
    content: &Content,
    progress: &Progress,
    first: &mut Option<u64>,
) -> Result<(), Failure> {
    let held = client.content_held(content).await?;
    first.get_or_insert(held.bytes);
    if held.whole {
        return Ok(());
    }
    // Of one that is there to its last byte and is not whole, nothing was verified.
    let offset = if held.bytes < content.bytes { held.bytes } else { 0 };
    progress.set(offset);
    let describe = |error: io::Error| Failure::io(format!("read {path}"), &error);
    let mut file = tokio::fs::File::open(path).await.map_err(describe)?;
    file.seek(io::SeekFrom::Start(offset)).await.map_err(describe)?;
    let head = PushHead { content: content.clone(), offset };
    let head = serde_json::to_string(&head)
        .map_err(|error| Failure::no(format!("write the head of a push: {error}")))?;
    let held = client.content_push(pieces(file, head, progress.clone())).await?;
    if held.whole {
        return Ok(());
    }
    Err(Failure::no(format!("push {path}: it became shorter meanwhile"))
        .next("the same command again, once it is built"))
}

/// The file in pieces; it ends early where the file cannot be read.
fn pieces(
    mut file: tokio::fs::File,
    mut head: String,
    progress: Progress,
) -> impl Stream<Item = Piece> + Send + 'static {
    async_stream::stream! {
        loop {
            let mut data = Vec::with_capacity(PIECE_BYTES);
            match (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut data).await {
                Ok(0) | Err(_) => return,
                Ok(read) => progress.add(read as u64),
            }
            yield Piece { head: std::mem::take(&mut head), data };
        }
    }
}

/// How far a push is, for whoever watches.
#[derive(Debug, Clone)]
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new(path: &str, bytes: u64) -> Self {
        if !output::is_watched() {
            return Self(None);
        }
        let bar = ProgressBar::new(bytes).with_message(format!("pushing {path}"));
        let style = "{msg} {bar:20} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self(Some(bar))
    }

    fn set(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(bytes);
        }
    }

    fn add(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // The stream holds another one, and goes first.
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_hashed_again_only_when_it_changed_and_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program").display().to_string();
        let looked = Looked::default();
        assert_eq!(looked.look(&path).await.unwrap(), None);
        fs::write(&path, "one").unwrap();
        let one = looked.look(&path).await.unwrap().unwrap();
        assert_eq!(one.bytes, 3);
        assert_eq!(looked.look(&path).await.unwrap().as_ref(), Some(&one));
        fs::write(&path, "another").unwrap();
        assert_ne!(looked.look(&path).await.unwrap(), Some(one));
        assert!(looked.look(&dir.path().display().to_string()).await.is_err(), "no file");
    }
}
