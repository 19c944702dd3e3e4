//! The line between a proxy process and its successor: words, and parcels of state with descriptors.
//!
//! A socket that keeps the borders of messages (SOCK_SEQPACKET). A parcel is one document, and bulk
//! bytes, both in one memory file whose descriptor comes with the parcel's first message, and any
//! number of other descriptors.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    time::{Duration, Instant},
};

use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize};

use crate::proxy::carry::Luggage;

/// The version of what is said here and of the documents. It is raised where a field is added that an
/// older successor must not overlook; every other new field has a default.
pub(crate) const FORMAT: u32 = 1;
/// The oldest version that this release takes over from.
pub(crate) const FORMAT_OLDEST: u32 = 1;
/// Descriptors in one message; the kernel's bound is 253.
const DESCRIPTORS_MAX: usize = 240;
/// Descriptors of one parcel: more than any listener has.
const PARCEL_DESCRIPTORS_MAX: usize = 4096;
/// The document and the bytes of one parcel, each.
const PARCEL_BYTES_MAX: u64 = 1 << 30;
const MESSAGE_BYTES_MAX: usize = 1024;
/// Descriptors on their way count against a limit of the user; it is tried again after this time.
const CROWDED: Duration = Duration::from_millis(1);

/// What the two say to each other, in this order: parcels, `End`, `Ready`, `Yours`, `Taken`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// The old one sends state.
    Parcel(Bill),
    /// More descriptors of the same parcel.
    More,
    /// The old one has sent everything.
    End {
        /// So many connections.
        connections: u64,
    },
    /// The new one has everything and could begin.
    Ready,
    /// The old one will never touch any of it again.
    Yours,
    /// The new one serves; the old one may go.
    Taken,
}

/// What is in a parcel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bill {
    pub(crate) content: Content,
    pub(crate) document: u64,
    pub(crate) bytes: u64,
    pub(crate) descriptors: usize,
}

/// What a parcel's document is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Content {
    /// Rules, deadlines, evidence.
    Base,
    /// Listeners.
    Doors,
    /// Connections.
    Pairs,
}

/// A parcel that has arrived.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) document: Vec<u8>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

#[derive(Serialize, Deserialize)]
struct Envelope<W> {
    v: u32,
    word: W,
}

/// One end of the line. Every wait ends at one moment.
#[derive(Debug)]
pub(crate) struct Line {
    socket: OwnedFd,
    end: Instant,
}

impl Line {
    pub(crate) fn new(socket: OwnedFd, patience: Duration) -> Self {
        Self { socket, end: Instant::now() + patience }
    }

    /// Begins the time for every wait anew.
    pub(crate) fn extend(&mut self, patience: Duration) {
        self.end = Instant::now() + patience;
    }

    /// Says a word.
    ///
    /// # Errors
    /// `BrokenPipe` where nobody is there any more; `TimedOut`.
    pub(crate) fn say(&self, word: &Word) -> io::Result<()> {
        self.send(word, &[])
    }

    /// Sends a parcel.
    ///
    /// # Errors
    /// As [`Self::say`].
    pub(crate) fn ship(
        &self,
        content: Content,
        document: &[u8],
        luggage: &Luggage,
    ) -> io::Result<()> {
        let memory = memfd_create("faultbed-handover", MemfdFlags::CLOEXEC)?;
        let mut memory = File::from(memory);
        memory.write_all(document)?;
        memory.write_all(&luggage.bytes)?;
        let bill = Bill {
            content,
            document: document.len() as u64,
            bytes: luggage.bytes.len() as u64,
            descriptors: luggage.descriptors.len(),
        };
        let all: Vec<BorrowedFd<'_>> = std::iter::once(memory.as_fd())
            .chain(luggage.descriptors.iter().map(AsFd::as_fd))
            .collect();
        let mut word = Word::Parcel(bill);
        for part in all.chunks(DESCRIPTORS_MAX) {
            self.send(&word, part)?;
            word = Word::More;
        }
        Ok(())
    }

    /// Hears a word; with the first message of a parcel come the rest of it.
    ///
    /// # Errors
    /// `UnexpectedEof` where the other end was closed in order, `ConnectionReset` where it was closed
    /// before it had heard everything; `InvalidData`; `TimedOut`.
    pub(crate) fn hear(&self) -> io::Result<(Word, Option<Parcel>)> {
        let (word, descriptors) = self.receive()?;
        let Word::Parcel(bill) = &word else {
            if descriptors.is_empty() {
                return Ok((word, None));
            }
            return Err(malformed("descriptors without a parcel"));
        };
        let parcel = self.unload(bill, descriptors)?;
        Ok((word, Some(parcel)))
    }

    fn unload(&self, bill: &Bill, mut descriptors: Vec<OwnedFd>) -> io::Result<Parcel> {
        if bill.descriptors > PARCEL_DESCRIPTORS_MAX {
            return Err(malformed("a parcel with too many descriptors"));
        }
        while descriptors.len() < bill.descriptors + 1 {
            match self.receive()? {
                (Word::More, more) if !more.is_empty() => descriptors.extend(more),
                (_, _) => return Err(malformed("a parcel that is not whole")),
            }
        }
        if descriptors.len() != bill.descriptors + 1 {
            return Err(malformed("more descriptors than a parcel has"));
        }
        let memory = File::from(descriptors.remove(0));
        let (document, bytes) = (bill.document, bill.bytes);
        // Looked at before anything is allocated for it.
        let fits = document <= PARCEL_BYTES_MAX && bytes <= PARCEL_BYTES_MAX;
        if !fits || memory.metadata()?.len() != document + bytes {
            return Err(malformed("a parcel of another size"));
        }
        let read = |start: u64, length: u64| -> io::Result<Vec<u8>> {
            let mut part = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            memory.read_exact_at(&mut part, start)?;
            Ok(part)
        };
        Ok(Parcel { document: read(0, document)?, bytes: read(document, bytes)?, descriptors })
    }

    fn send(&self, word: &Word, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let message = serde_json::to_vec(&Envelope { v: FORMAT, word })?;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut beside = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(malformed("more descriptors than a message takes"));
            }
            match sendmsg(&self.socket, &[IoSlice::new(&message)], &mut beside, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(Errno::TOOMANYREFS) => {
                    self.left()?;
                    std::thread::sleep(CROWDED);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive(&self) -> io::Result<(Word, Vec<OwnedFd>)> {
        let mut message = [0_u8; MESSAGE_BYTES_MAX];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        loop {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let into = &mut [IoSliceMut::new(&mut message)];
            match recvmsg(&self.socket, into, &mut beside, flags) {
                Ok(heard) => {
                    let mut descriptors = Vec::new();
                    for item in beside.drain() {
                        if let RecvAncillaryMessage::ScmRights(rights) = item {
                            descriptors.extend(rights);
                        }
                    }
                    if heard.bytes == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    if heard.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                        return Err(malformed("a message that is not whole"));
                    }
                    return Ok((open(&message[..heard.bytes])?, descriptors));
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::IN)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait(&self, what: PollFlags) -> io::Result<()> {
        let left = Timespec::try_from(self.left()?).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.socket, what)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.end.checked_duration_since(Instant::now());
        left.filter(|left| !left.is_zero()).ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}

fn open(message: &[u8]) -> io::Result<Word> {
    let unclear = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let Envelope { v, word } =
        serde_json::from_slice::<Envelope<serde_json::Value>>(message).map_err(unclear)?;
    if !(FORMAT_OLDEST..=FORMAT).contains(&v) {
        return Err(malformed(&format!("version {v} of the hand-over is not spoken here")));
    }
    serde_json::from_value(word).map_err(unclear)
}

pub(crate) fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
