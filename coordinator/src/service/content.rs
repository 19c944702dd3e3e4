//! Programs over the wire: pushed by people, fetched by agents.

use std::{pin::Pin, sync::Arc, time::Duration};

use faultbed_common::program::{Content, FetchRequest, Held, PROGRAM_BYTES_MAX, PushHead};
use faultbed_proto::v1::{Document, Piece};
use futures::Stream;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tonic::{Status, Streaming};

use super::{decode, encode};
use crate::{
    content::{ContentError, Contents, may_fetch, used},
    mirror::MirrorHandle,
};

/// Bytes of one piece.
const PIECE_BYTES: usize = 256 * 1024;

/// How long the next piece of a push may take; what came stays.
const PIECE_WITHIN: Duration = Duration::from_secs(30);

/// Pieces as they are sent to an agent.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Piece, Status>> + Send>>;

impl From<ContentError> for Status {
    fn from(error: ContentError) -> Self {
        let text = error.to_string();
        match error {
            ContentError::Missing(_) => Self::not_found(text),
            ContentError::Full { .. } | ContentError::NoSpace { .. } => {
                Self::resource_exhausted(text)
            }
            ContentError::Disk { .. } => Self::internal(text),
            ContentError::Mismatch { .. } | ContentError::TooMuch { .. } => {
                Self::invalid_argument(text)
            }
            ContentError::Gap { .. } => Self::failed_precondition(text),
        }
    }
}

/// Answers what is here of a content.
///
/// # Errors
/// It is no content that can be pushed.
pub fn held(contents: &Contents, document: &Document) -> Result<Document, Status> {
    let content: Content = decode("content", &document.json)?;
    check(&content)?;
    encode(&contents.held(&content))
}

fn check(content: &Content) -> Result<(), Status> {
    let bytes = content.bytes;
    if bytes == 0 || bytes > PROGRAM_BYTES_MAX {
        let why = format!("{bytes} bytes; a program has 1 to {PROGRAM_BYTES_MAX}");
        return Err(Status::invalid_argument(why));
    }
    Ok(())
}

/// Takes a push to its end, or to where it breaks off.
///
/// # Errors
/// It is not what was announced, does not fit, or broke off; what came stays for the next one.
pub async fn push(
    contents: &Arc<Contents>,
    mirror: &MirrorHandle,
    mut pieces: Streaming<Piece>,
) -> Result<Document, Status> {
    let first = next(&mut pieces).await?.unwrap_or_default();
    let head: PushHead = decode("the head of a push", &first.head)?;
    check(&head.content)?;
    if head.offset >= head.content.bytes {
        return Err(Status::invalid_argument("the push begins behind its end"));
    }
    let receiving = contents.receive(&head, &used(&mirror.now().lab)).await?;
    let Some(mut receiving) = receiving else {
        return encode(&Held { whole: true, bytes: head.content.bytes });
    };
    receiving.take(&first.data).await?;
    loop {
        match next(&mut pieces).await {
            Ok(Some(piece)) => receiving.take(&piece.data).await?,
            Ok(None) => break,
            Err(broken) => {
                // What came must be on disk before the next push asks for it.
                receiving.finish().await?;
                return Err(broken);
            }
        }
    }
    let bytes = receiving.finish().await?;
    encode(&Held { whole: bytes == head.content.bytes, bytes })
}

async fn next(pieces: &mut Streaming<Piece>) -> Result<Option<Piece>, Status> {
    tokio::time::timeout(PIECE_WITHIN, pieces.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no piece of the push within 30 s"))?
}

/// Sends a content to an agent.
///
/// # Errors
/// The host's share does not name it, or it is not here.
pub async fn fetch(
    contents: &Contents,
    mirror: &MirrorHandle,
    request: FetchRequest,
) -> Result<Pieces, Status> {
    let FetchRequest { host, sha256, offset } = request;
    if !may_fetch(&mirror.now().lab, &host, &sha256) {
        return Err(Status::permission_denied(format!(
            "no node of host {host} runs content {}",
            sha256.short()
        )));
    }
    let mut file = tokio::fs::File::from_std(contents.open(&sha256)?);
    file.seek(std::io::SeekFrom::Start(offset)).await?;
    Ok(Box::pin(async_stream::try_stream! {
        loop {
            let mut data = Vec::with_capacity(PIECE_BYTES);
            let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut data).await?;
            if read == 0 {
                return;
            }
            yield Piece { head: String::new(), data };
        }
    }))
}
