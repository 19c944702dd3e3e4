//! The successor's side of a hand-over: asks, receives, and says when it serves.

use std::{
    io::{self, BufRead, BufReader, IoSlice, Read},
    mem::MaybeUninit,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use rustix::{
    cmsg_space,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
        SocketType, sendmsg, socketpair,
    },
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::proxy::{
    carry::{Arrived, unpack},
    engine::OpenDoor,
    handover::{
        Base, Carried, FORMAT, FORMAT_OLDEST,
        line::{Content, Line, Parcel, Word, malformed},
    },
    wire::{Op, Request, VERSION},
};

/// How long the old process may take to send everything, and to let go of it.
const TAKE_MAX: Duration = Duration::from_secs(10);
/// How long it may take to say why it does not.
const REASON_MAX: Duration = Duration::from_secs(2);
const REASON_BYTES_MAX: u64 = 64 * 1024;

/// Everything of the old process, which stands still and waits.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) base: Base,
    pub(crate) doors: Vec<OpenDoor>,
    pub(crate) pairs: Vec<Carried>,
    pub(crate) line: Line,
}

/// Asks the process behind a control socket for everything it has.
///
/// # Errors
/// With its reason where it refuses; it goes on as before then, as it does after every error here.
pub(crate) fn fetch(socket: &Path) -> io::Result<Fetched> {
    let (line, answer) = ask(socket)?;
    receive(line).map_err(|error| match error.kind() {
        // It hung up: it says why on the other socket.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => refusal(answer),
        _ => error,
    })
}

/// Sends the request, with one end of a line; the other, and where a refusal would be said.
pub(crate) fn ask(socket: &Path) -> io::Result<(Line, UnixStream)> {
    let control = UnixStream::connect(socket)?;
    control.set_read_timeout(Some(REASON_MAX))?;
    let kind = SocketType::SEQPACKET;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    let formats = Some((FORMAT_OLDEST, FORMAT));
    let mut request = serde_json::to_vec(&Request { v: VERSION, op: Op::Handover, formats })?;
    request.push(b'\n');
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let rights = [theirs.as_fd()];
    beside.push(SendAncillaryMessage::ScmRights(&rights));
    // One short line: it is taken whole.
    sendmsg(&control, &[IoSlice::new(&request)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok((Line::new(ours, TAKE_MAX), control))
}

fn refusal(answer: UnixStream) -> io::Error {
    #[derive(Deserialize)]
    struct Refused {
        error: String,
    }
    let mut text = String::new();
    let read = BufReader::new(answer.take(REASON_BYTES_MAX)).read_line(&mut text);
    let said = read.ok().and_then(|_| serde_json::from_str::<Refused>(&text).ok());
    io::Error::other(match said {
        Some(Refused { error }) => format!("the running proxy does not hand over: {error}"),
        None => "the running proxy hung up".to_owned(),
    })
}

/// Receives everything.
fn receive(line: Line) -> io::Result<Fetched> {
    let (mut base, mut doors, mut pairs) = (None, Vec::new(), Vec::new());
    let mut arrived = Arrived::default();
    let connections = loop {
        match line.hear()? {
            (Word::Parcel(bill), Some(parcel)) => match bill.content {
                Content::Base => base = Some(one(&mut arrived, parcel)?),
                Content::Doors => doors.extend(all(&mut arrived, parcel)?),
                Content::Pairs => pairs.extend(all(&mut arrived, parcel)?),
            },
            (Word::End { connections }, None) => break connections,
            (word, _) => return Err(malformed(&format!("the old process says {word:?}"))),
        }
    };
    if pairs.len() as u64 != connections {
        return Err(malformed("connections are missing"));
    }
    let base = base.ok_or_else(|| malformed("the rules are missing"))?;
    Ok(Fetched { base, doors, pairs, line })
}

fn one<T: DeserializeOwned>(arrived: &mut Arrived, parcel: Parcel) -> io::Result<T> {
    let mut all = all(arrived, parcel)?;
    all.pop().filter(|_| all.is_empty()).ok_or_else(|| malformed("there must be one"))
}

/// The things in a parcel. What shares something with another parcel shares it here too.
fn all<T: DeserializeOwned>(arrived: &mut Arrived, parcel: Parcel) -> io::Result<Vec<T>> {
    let Parcel { document, bytes, descriptors } = parcel;
    arrived.bytes = bytes;
    arrived.descriptors = descriptors.into_iter().map(Some).collect();
    let lines = document.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let things = lines.map(|line| unpack(arrived, line)).collect::<io::Result<Vec<T>>>()?;
    if arrived.descriptors.iter().any(Option::is_some) {
        return Err(malformed("descriptors that nobody owns"));
    }
    Ok(things)
}

impl Fetched {
    /// Everything is built: the old process may let go of it. After this it is ours.
    ///
    /// # Errors
    /// Where the old process goes on instead.
    pub(crate) fn begin(line: &Line) -> io::Result<()> {
        line.say(&Word::Ready)?;
        match line.hear()? {
            (Word::Yours, None) => Ok(()),
            (word, _) => Err(malformed(&format!("the old process says {word:?}"))),
        }
    }
}

#[cfg(test)]
mod tests;
