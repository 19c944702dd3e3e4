//! The control thread: serves the agent on a unix socket, and enforces deadlines when nobody is there.
//!
//! It waits for workers only to acknowledge rules, never for a byte of a connection.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::sockopt::socket_peercred,
    time::{TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime},
};
use serde::Serialize;

use crate::proxy::{
    engine::Engine,
    timers::moment,
    wire::{Op, Request, VERSION},
};

/// The longest request.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Agents connected at once; more than one is already odd.
const PEERS_MAX: usize = 16;
const READ_BYTES: usize = 4096;
/// A moment that never comes, for a timer that is not needed.
const NEVER_NS: u64 = i64::MAX as u64;

/// The control socket and who is connected.
#[derive(Debug)]
pub(crate) struct Control {
    engine: Engine,
    listener: UnixListener,
    stop: OwnedFd,
    timer: OwnedFd,
    peers: Vec<Peer>,
}

#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Nothing more is read; it is closed when all was written.
    leaving: bool,
}

impl Control {
    /// `stop` becomes readable when the thread must end.
    pub(crate) fn new(engine: Engine, listener: UnixListener, stop: OwnedFd) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        Ok(Self { engine, listener, stop, timer, peers: Vec::new() })
    }

    /// Serves until it is told to stop.
    pub(crate) fn run(mut self) {
        let mut stopping = false;
        while !(stopping && self.peers.iter().all(|peer| peer.output.is_empty())) {
            let due = moment(self.engine.due_ns().unwrap_or(NEVER_NS));
            if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &due) {
                tracing::error!(%error, "arm the timer for the next deadline");
            }
            let Some(news) = self.wait() else { return };
            if news.stop {
                return;
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
                stopping |= self.serve(at);
            }
            self.peers.retain_mut(|peer| !peer.write_out());
        }
    }

    fn wait(&mut self) -> Option<News> {
        let mut watched = vec![
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.timer, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        for peer in &self.peers {
            let wanted = if peer.leaving { PollFlags::empty() } else { PollFlags::IN };
            let more = if peer.output.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            watched.push(PollFd::new(&peer.stream, wanted | more));
        }
        match poll(&mut watched, None) {
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
            self.peers.push(Peer { stream, input: Vec::new(), output: Vec::new(), leaving: false });
        }
    }

    /// Reads what a peer says and answers each line. Says whether it asked to stop.
    fn serve(&mut self, at: usize) -> bool {
        let Some(peer) = self.peers.get_mut(at) else { return false };
        peer.read_in();
        let mut stop = false;
        while let Some(line) = self.peers[at].next_line() {
            let (reply, stops) = answer(&mut self.engine, &line);
            self.peers[at].output.extend_from_slice(reply.as_bytes());
            self.peers[at].output.push(b'\n');
            stop |= stops;
        }
        let peer = &mut self.peers[at];
        if peer.input.len() > REQUEST_BYTES_MAX {
            peer.output.extend_from_slice(refusal("the request is too long").as_bytes());
            peer.output.push(b'\n');
            peer.input = Vec::new();
            peer.leaving = true;
        }
        stop
    }
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
            match self.stream.read(&mut bytes) {
                Ok(0) => self.leaving = true,
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
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

/// The reply to one line, and whether the process must end after it.
fn answer(engine: &mut Engine, line: &[u8]) -> (String, bool) {
    let request: Request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => return (refusal(&format!("parse request: {error}")), false),
    };
    if request.v != VERSION {
        let why = format!("version {} is not spoken here, only {VERSION}", request.v);
        return (refusal(&why), false);
    }
    match request.op {
        Op::Apply => match engine.load().and_then(|()| engine.make_true()) {
            Ok(()) => (grant(&engine.applied()), false),
            Err(why) => (refusal(&why), false),
        },
        Op::Report => (grant(&engine.report()), false),
        Op::Stop => (grant(&serde_json::Map::new()), true),
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
