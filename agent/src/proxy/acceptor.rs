//! One thread that accepts for all listeners and hands each connection to the least loaded worker.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use faultbed_common::proxy_spec::Listener;
use rustix::{
    buffer::spare_capacity,
    event::{
        EventfdFlags,
        epoll::{self, EventData, EventFlags},
        eventfd,
    },
    io::Errno,
    net::{SocketFlags, acceptfrom_with, sockopt},
    process::{Resource, getrlimit},
};

use crate::clock;
use serde::{Deserialize, Serialize};

use crate::proxy::{
    rule_set::{Board, lock},
    worker::{Mailbox, Message},
};

/// Connections taken from one listener before the others have their turn.
const ACCEPTS_MAX: u32 = 64;
/// How long the thread rests where it can neither accept nor refuse.
const REST: Duration = Duration::from_millis(10);
/// Descriptors that no connection gets, so that the agent is heard, files are read and pipes are there
/// also when there are more connections than the process may have.
const RESERVED: u64 = 192;
/// Between two lines of the log about a want of descriptors.
const SAY_AGAIN_NS: u64 = 10_000_000_000;
const EVENTS_MAX: usize = 64;
const WAKE: u64 = 0;

/// What every connection of a listener knows of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Door {
    pub(crate) listener: Listener,
    /// Connections accepted.
    accepted: AtomicU64,
}

impl Door {
    pub(crate) fn new(listener: Listener) -> Self {
        Self { listener, accepted: AtomicU64::new(0) }
    }

    /// The number of the connection that is accepted now, for its dice: with the same order of
    /// accepts at a node's port, the same numbers.
    pub(crate) fn next_number(&self) -> u64 {
        let count = self.accepted.fetch_add(1, Ordering::Relaxed);
        let name = [self.listener.node.as_str(), "/", self.listener.port.as_str()];
        // FNV-1a (Fowler, Noll, Vo): connections of different ports do not share their luck.
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let port = name.iter().flat_map(|part| part.bytes()).fold(0xcbf2_9ce4_8422_2325, mix);
        port.wrapping_add(count)
    }
}

/// A connection that has been accepted.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) fd: OwnedFd,
    pub(crate) peer: SocketAddr,
    /// For its dice.
    pub(crate) number: u64,
    /// When, in nanoseconds of CLOCK_BOOTTIME.
    pub(crate) at_ns: u64,
}

/// A door and its listening socket.
type Open = (Arc<Door>, Arc<OwnedFd>);

/// The listeners that are open, and the thread's epoll.
#[derive(Debug)]
pub(crate) struct Acceptor {
    epoll: OwnedFd,
    wake: OwnedFd,
    doors: Mutex<BTreeMap<u64, Open>>,
    last: AtomicU64,
    /// Whether nothing is accepted; held by the thread while it accepts.
    paused: Mutex<bool>,
    /// Connections refused because there was no descriptor left.
    refused: AtomicU64,
    /// When that was last said.
    said_ns: AtomicU64,
    /// Given up for a moment when there is none left, so that a waiting connection can be refused.
    spare: Mutex<Option<OwnedFd>>,
}

impl Acceptor {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self {
            epoll,
            wake,
            doors: Mutex::default(),
            last: AtomicU64::new(WAKE),
            paused: Mutex::new(false),
            refused: AtomicU64::new(0),
            said_ns: AtomicU64::new(0),
            spare: Mutex::new(Some(spare()?)),
        })
    }

    /// Accepts for a listening socket from now on; the number names it.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn add(&self, door: Arc<Door>, fd: Arc<OwnedFd>) -> io::Result<u64> {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut doors = lock(&self.doors);
        epoll::add(&self.epoll, &*fd, EventData::new_u64(id), EventFlags::IN)?;
        doors.insert(id, (door, fd));
        Ok(id)
    }

    /// Accepts no more for a listener.
    pub(crate) fn remove(&self, id: u64) {
        if let Some((_, fd)) = lock(&self.doors).remove(&id) {
            let _closed_anyway = epoll::delete(&self.epoll, &*fd);
        }
    }

    /// Accepts nothing from now on: not after this has returned. Connections wait in the kernel.
    pub(crate) fn pause(&self) {
        *lock(&self.paused) = true;
        for (_, fd) in lock(&self.doors).values() {
            let _closed_anyway = epoll::delete(&self.epoll, &**fd);
        }
    }

    /// Accepts again.
    pub(crate) fn resume(&self) {
        *lock(&self.paused) = false;
        for (id, (door, fd)) in &*lock(&self.doors) {
            let watched = epoll::add(&self.epoll, &**fd, EventData::new_u64(*id), EventFlags::IN);
            if let Err(error) = watched {
                tracing::error!(%error, listener = %door.listener.listen, "watch a listener");
            }
        }
    }

    /// Counts from what another process had refused.
    pub(crate) fn count_refused_from(&self, refused: u64) {
        self.refused.store(refused, Ordering::Relaxed);
    }

    /// Connections refused because there was no descriptor left.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn wake(&self) {
        let _full = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Accepts until the board says stop.
    pub(crate) fn run(&self, board: &Board, workers: &[Arc<Mailbox>]) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while !board.is_stopped() {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "wait for connections");
                    return;
                }
            }
            let paused = lock(&self.paused);
            for event in events.drain(..).filter(|_| !*paused) {
                let found = lock(&self.doors).get(&event.data.u64()).cloned();
                if let Some((door, fd)) = found {
                    self.accept_all(&door, &fd, workers);
                }
            }
        }
    }

    fn accept_all(&self, door: &Arc<Door>, listening: &OwnedFd, workers: &[Arc<Mailbox>]) {
        for _ in 0..ACCEPTS_MAX {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match acceptfrom_with(listening, flags) {
                Ok((fd, Some(_))) if !leaves_reserve(&fd) => self.turn_away(fd),
                Ok((fd, Some(peer))) => {
                    let Ok(peer) = SocketAddr::try_from(peer) else { continue };
                    let idlest = workers.iter().min_by_key(|worker| worker.load());
                    if let Some(worker) = idlest {
                        let (number, at_ns) = (door.next_number(), clock::boottime_ns());
                        let arrival = Arrival { fd, peer, number, at_ns };
                        worker.post(Message::Adopt { door: Arc::clone(door), arrival });
                    }
                }
                Err(Errno::MFILE | Errno::NFILE) => {
                    if !self.refuse(listening) {
                        // Not even that was possible. The listener stays readable: without a rest
                        // the thread would spin until there is room.
                        std::thread::sleep(REST);
                        return;
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) | Ok((_, None)) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    tracing::warn!(%error, listener = %door.listener.listen, "accept");
                    return;
                }
            }
        }
    }

    /// Ends a connection that there is no descriptor for with a reset, counts it, and says so.
    fn turn_away(&self, fd: OwnedFd) {
        let _gone = sockopt::set_socket_linger(&fd, Some(Duration::ZERO));
        drop(fd);
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        let now_ns = clock::boottime_ns();
        let said_ns = self.said_ns.load(Ordering::Relaxed);
        if said_ns == 0 || now_ns.saturating_sub(said_ns) > SAY_AGAIN_NS {
            self.said_ns.store(now_ns, Ordering::Relaxed);
            let limit = getrlimit(Resource::Nofile).current;
            tracing::warn!(refused, limit, "reset new connections: no descriptor is left for them");
        }
    }

    /// Refuses one connection with a reset: without a descriptor it would wait for ever, and its
    /// listener would never fall silent. Says whether there was one.
    fn refuse(&self, listening: &OwnedFd) -> bool {
        let mut place = lock(&self.spare);
        drop(place.take());
        let accepted = acceptfrom_with(listening, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC);
        let refused = accepted.is_ok();
        if let Ok((fd, _)) = accepted {
            self.turn_away(fd);
        }
        *place = spare().ok();
        refused
    }
}

/// Whether a connection may have a new descriptor. Its number is the least that is free, so that all
/// below it are taken.
pub(crate) fn leaves_reserve(fd: &OwnedFd) -> bool {
    // Asked each time, which is cheap: the limit of a process can be changed from outside.
    let Some(limit) = getrlimit(Resource::Nofile).current else { return true };
    let reserved = RESERVED.min(limit / 4);
    u64::try_from(fd.as_raw_fd()).is_ok_and(|number| number + reserved < limit)
}

/// A descriptor that is worth nothing but its number.
fn spare() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC)?)
}
