//! The control thread: serves the agent on a unix socket, and enforces deadlines when nobody is there.
//!
//! It waits for workers only to acknowledge rules, never for a byte of a connection.

use std::{
    fs::File,
    io::{self, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt::socket_peercred,
    },
    time::{
        TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    },
};
use serde::Serialize;

use crate::proxy::{
    engine::Engine,
    handover::{Estate, FORMAT, Given, give},
    sys,
    timers::moment,
    wire::{Op, Request, VERSION},
};

/// The longest request.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Agents connected at once; more than one is already odd.
const PEERS_MAX: usize = 16;
const READ_BYTES: usize = 4096;
/// Replies that wait for a peer to read them; until then it is not heard.
const REPLY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Workers that carry bytes keep every processor busy for as long as there are any, and a change of
/// a thousand rules is several milliseconds of work: without this the control thread shares with them.
const NICENESS: i32 = -10;
/// A moment that never comes, for a timer that is not needed.
const NEVER_NS: u64 = i64::MAX as u64;

/// The control socket and who is connected.
#[derive(Debug)]
pub(crate) struct Control {
    engine: Engine,
    listener: UnixListener,
    lock: File,
    stop: OwnedFd,
    timer: OwnedFd,
    peers: Vec<Peer>,
    /// It was told to end, and has yet to say so.
    stopping: bool,
}

/// Why the control thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was told to, or cannot go on.
    Stopped,
    /// Another process has everything, the control socket too.
    HandedOver,
}

#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// The newest that came with its words.
    descriptor: Option<OwnedFd>,
    /// Nothing more is read; it is closed when all was written.
    leaving: bool,
}

impl Control {
    /// `lock` is the directory's; `stop` becomes readable when the thread must end.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn new(
        engine: Engine,
        listener: UnixListener,
        lock: File,
        stop: OwnedFd,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        Ok(Self { engine, listener, lock, stop, timer, peers: Vec::new(), stopping: false })
    }

    /// Serves until it is told to stop, or another process serves; before others, where it may.
    pub(crate) fn run(mut self) -> End {
        if let Err(error) = sys::set_niceness(NICENESS) {
            tracing::debug!(%error, "go before threads that carry bytes");
        }
        loop {
            if let Some(end) = self.turn(None) {
                return end;
            }
        }
    }

    /// Waits for news, at most for `patience`, and does what they ask; says why it was the last time.
    pub(crate) fn turn(&mut self, patience: Option<&Timespec>) -> Option<End> {
        let due = moment(self.engine.due_ns().unwrap_or(NEVER_NS));
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &due) {
            tracing::error!(%error, "arm the timer for the next deadline");
        }
        let Some(news) = self.wait(patience) else { return Some(End::Stopped) };
        if news.stop {
            return Some(End::Stopped);
        }
        if news.deadline {
            // An error is logged; the workers obey as soon as they can.
            if let Err(why) = self.engine.make_true() {
                tracing::error!(why, "end a fault at its deadline");
            }
        }
        if news.peer {
            self.accept();
        }
        for at in news.peers {
            match self.serve(at) {
                Asked::Nothing => {}
                Asked::Stop => self.stopping = true,
                Asked::Gone => return Some(End::HandedOver),
            }
        }
        self.peers.retain_mut(|peer| !peer.write_out());
        let is_over = self.stopping && self.peers.iter().all(|peer| peer.output.is_empty());
        is_over.then_some(End::Stopped)
    }

    fn wait(&mut self, patience: Option<&Timespec>) -> Option<News> {
        let mut watched = vec![
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.timer, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        for peer in &self.peers {
            let is_heard = !peer.leaving && peer.output.len() <= REPLY_BYTES_MAX;
            let wanted = if is_heard { PollFlags::IN } else { PollFlags::empty() };
            let more = if peer.output.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            watched.push(PollFd::new(&peer.stream, wanted | more));
        }
        match poll(&mut watched, patience) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "wait for the agent");
                return None;
            }
        }
        let happened = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let peers = watched[3..].iter().enumerate().filter(|(_, fd)| happened(fd));
        Some(News {
            stop: happened(&watched[0]),
            deadline: happened(&watched[1]),
            peer: happened(&watched[2]),
            peers: peers.map(|(at, _)| at).collect(),
        })
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if self.peers.len() >= PEERS_MAX || !is_ours(&stream) {
            return;
        }
        if stream.set_nonblocking(true).is_ok() {
            let (input, output) = (Vec::new(), Vec::new());
            self.peers.push(Peer { stream, input, output, descriptor: None, leaving: false });
        }
    }

    /// Reads what a peer says and answers each line.
    fn serve(&mut self, at: usize) -> Asked {
        let Some(peer) = self.peers.get_mut(at) else { return Asked::Nothing };
        if peer.output.len() <= REPLY_BYTES_MAX {
            peer.read_in();
        }
        let mut asked = Asked::Nothing;
        while let Some(line) = self.peers[at].next_line() {
            let reply = match request(&line) {
                Ok(Request { op: Op::Stop, .. }) => {
                    asked = Asked::Stop;
                    grant(&serde_json::Map::new())
                }
                Ok(Request { op: Op::Handover, formats, .. }) => {
                    match self.hand_over(at, formats) {
                        Given::Gone => return Asked::Gone,
                        Given::Kept(why) => refusal(&why),
                    }
                }
                Ok(Request { op: Op::Apply, .. }) => apply(&mut self.engine),
                Ok(Request { op: Op::Report, .. }) => grant(&self.engine.report()),
                Err(why) => refusal(&why),
            };
            self.peers[at].output.extend_from_slice(reply.as_bytes());
            self.peers[at].output.push(b'\n');
        }
        let peer = &mut self.peers[at];
        if peer.input.len() > REQUEST_BYTES_MAX {
            peer.output.extend_from_slice(refusal("the request is too long").as_bytes());
            peer.output.push(b'\n');
            peer.input = Vec::new();
            peer.leaving = true;
        }
        asked
    }

    /// Gives everything to the process whose line came with a peer's words.
    fn hand_over(&mut self, at: usize, formats: Option<(u32, u32)>) -> Given {
        let (oldest, newest) = formats.unwrap_or_default();
        if !(oldest..=newest).contains(&FORMAT) {
            let why =
                format!("hands over in version {FORMAT}, the successor takes {oldest} to {newest}");
            return Given::Kept(why);
        }
        let Some(successor) = self.peers.get_mut(at).and_then(|peer| peer.descriptor.take()) else {
            return Given::Kept("no line came with the request".to_owned());
        };
        let estate = Estate { lock: &self.lock, control: &self.listener };
        give(&mut self.engine, estate, successor)
    }
}

/// What a peer asked for that concerns the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Stop,
    /// Another process serves now.
    Gone,
}

/// What woke the thread.
struct News {
    stop: bool,
    deadline: bool,
    peer: bool,
    peers: Vec<usize>,
}

impl Peer {
    fn read_in(&mut self) {
        let mut bytes = [0; READ_BYTES];
        while !self.leaving && self.input.len() <= REQUEST_BYTES_MAX {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let into = &mut [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.stream, into, &mut beside, RecvFlags::CMSG_CLOEXEC) {
                Ok(heard) => {
                    for item in beside.drain() {
                        if let RecvAncillaryMessage::ScmRights(rights) = item {
                            self.descriptor = rights.last();
                        }
                    }
                    self.leaving |= heard.bytes == 0;
                    self.input.extend_from_slice(&bytes[..heard.bytes]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.leaving = true,
            }
        }
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.input.iter().position(|byte| *byte == b'\n')?;
        let rest = self.input.split_off(end + 1);
        Some(std::mem::replace(&mut self.input, rest))
    }

    /// Writes what the peer takes; says whether the peer is done with.
    fn write_out(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {
                    self.output.clear();
                    return true;
                }
            }
        }
        self.leaving
    }
}

/// Only the user that the proxy runs as, and root, may give it orders.
fn is_ours(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    match socket_peercred(stream.as_fd()) {
        Ok(peer) => peer.uid == own || peer.uid.is_root(),
        Err(_) => false,
    }
}

/// What a line asks for, if that is understood.
fn request(line: &[u8]) -> Result<Request, String> {
    let request: Request =
        serde_json::from_slice(line).map_err(|error| format!("parse request: {error}"))?;
    if request.v != VERSION {
        return Err(format!("version {} is not spoken here, only {VERSION}", request.v));
    }
    Ok(request)
}

fn apply(engine: &mut Engine) -> String {
    match engine.load().and_then(|()| engine.make_true()) {
        Ok(()) => grant(&engine.applied()),
        Err(why) => refusal(&why),
    }
}

fn grant(reply: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Granted<'a, T> {
        ok: bool,
        #[serde(flatten)]
        reply: &'a T,
    }
    serde_json::to_string(&Granted { ok: true, reply })
        .unwrap_or_else(|error| refusal(&format!("write reply: {error}")))
}

fn refusal(why: &str) -> String {
    serde_json::json!({ "ok": false, "error": why }).to_string()
}
