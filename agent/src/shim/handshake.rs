//! What the forked child tells the shim before it becomes the node: its connect listener, or why not.
//!
//! Packets over a socket pair that is closed by the execution itself: end of file is success.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

use super::start::timespec;

/// What the child does between fork and exec, as far as it can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ChildStep {
    /// Arguments and environment.
    Arguments,
    /// The user's entry.
    FindUser,
    /// A session of its own.
    Session,
    /// Resource limits.
    Limits,
    /// Standard input, output and error.
    Streams,
    /// The user switch.
    BecomeUser,
    /// The working directory.
    ChangeDir,
    /// The parent-death signal.
    ParentDeath,
    /// The execution.
    Run,
}

impl ChildStep {
    const ALL: [Self; 9] = [
        Self::Arguments,
        Self::FindUser,
        Self::Session,
        Self::Limits,
        Self::Streams,
        Self::BecomeUser,
        Self::ChangeDir,
        Self::ParentDeath,
        Self::Run,
    ];
}

/// One thing that the child tells.
#[derive(Debug)]
pub(super) enum Word {
    /// Its connects are to be answered here.
    Listener(OwnedFd),
    /// It runs without a listener, which the kernel refused with this error.
    NoListener(Errno),
    /// It does not run.
    Refused(ChildStep, Errno),
}

/// How the child's beginning went.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was executed, with a listener or the reason why there is none.
    Executed(Result<OwnedFd, Errno>),
    /// It failed here.
    Refused(ChildStep, Errno),
    /// It said nothing more for too long.
    TooSlow,
}

/// A packet: kind, step, and the error number.
const PACKET_BYTES: usize = 6;
const LISTENER: u8 = b'L';
const NO_LISTENER: u8 = b'N';
const REFUSED: u8 = b'R';

/// Both ends: the shim's, and the child's.
pub(super) fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// In the child: says one thing.
pub(super) fn tell(channel: BorrowedFd<'_>, word: &Word) -> io::Result<()> {
    let (kind, step, errno, listener) = match word {
        Word::Listener(fd) => (LISTENER, 0, 0, Some(fd.as_fd())),
        Word::NoListener(errno) => (NO_LISTENER, 0, errno.raw_os_error(), None),
        Word::Refused(step, errno) => (REFUSED, *step as u8, errno.raw_os_error(), None),
    };
    let mut packet = [kind, step, 0, 0, 0, 0];
    packet[2..].copy_from_slice(&errno.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &listener {
        ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    sendmsg(channel, &[IoSlice::new(&packet)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// In the shim: listens until the child was executed or gave up, at most `wait`.
pub(super) fn await_execution(channel: &OwnedFd, wait: Duration) -> io::Result<Outcome> {
    let deadline = Instant::now() + wait;
    let mut listener = Err(Errno::NOSYS);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(channel, PollFlags::IN)];
        match poll(&mut fds, timespec(left).as_ref()) {
            Ok(0) => return Ok(Outcome::TooSlow),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match hear(channel)? {
            None => return Ok(Outcome::Executed(listener)),
            Some(Word::Listener(fd)) => listener = Ok(fd),
            Some(Word::NoListener(errno)) => listener = Err(errno),
            Some(Word::Refused(step, errno)) => return Ok(Outcome::Refused(step, errno)),
        }
    }
}

/// The next word; `None` when the child has closed its end.
fn hear(channel: &OwnedFd) -> io::Result<Option<Word>> {
    let mut packet = [0; PACKET_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut packet)];
    let received = recvmsg(channel, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let listener = fds.next().and_then(|mut fds| fds.next());
    let [kind, step, errno @ ..] = packet;
    let errno = i32::from_le_bytes(errno);
    let errno = if errno > 0 { Errno::from_raw_os_error(errno) } else { Errno::IO };
    let step = ChildStep::ALL.get(usize::from(step)).copied();
    match (kind, listener, step) {
        (LISTENER, Some(fd), _) => Ok(Some(Word::Listener(fd))),
        (NO_LISTENER, ..) => Ok(Some(Word::NoListener(errno))),
        (REFUSED, _, Some(step)) => Ok(Some(Word::Refused(step, errno))),
        _ => Err(io::Error::other("the child said something that has no meaning")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_decides() {
        let wait = Duration::from_secs(5);
        for step in ChildStep::ALL {
            let (ours, theirs) = channel().unwrap();
            tell(theirs.as_fd(), &Word::NoListener(Errno::BUSY)).unwrap();
            tell(theirs.as_fd(), &Word::Refused(step, Errno::NOENT)).unwrap();
            let outcome = await_execution(&ours, wait).unwrap();
            assert!(matches!(outcome, Outcome::Refused(s, Errno::NOENT) if s == step));
        }
        let (ours, theirs) = channel().unwrap();
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        tell(theirs.as_fd(), &Word::Listener(fd)).unwrap();
        drop(theirs);
        assert!(matches!(await_execution(&ours, wait).unwrap(), Outcome::Executed(Ok(_))));
        let (ours, _theirs) = channel().unwrap();
        assert!(matches!(await_execution(&ours, Duration::ZERO).unwrap(), Outcome::TooSlow));
    }
}
