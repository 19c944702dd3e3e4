//! One thread that carries connections: an event loop of its own, no lock on the way of a byte.

mod carry;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::SyncSender,
    },
};

use faultbed_common::link::{Link, Party};
use rustix::{
    buffer::spare_capacity,
    event::{
        EventfdFlags,
        epoll::{self, EventData, EventFlags},
        eventfd,
    },
    io::Errno,
};

use serde::{Deserialize, Serialize};

use crate::proxy::{
    acceptor::{Arrival, Door, leaves_reserve},
    evidence::Ledger,
    handover::Freeze,
    identify::{Asker, Lookup, Question},
    lookout::Lookout,
    pair::{Fate, Pair, Which},
    rule_set::{Board, RuleSet, lock},
    side::{INTEREST, new_socket},
    slab::Slab,
    splice::PipePool,
    sys,
    timers::{Alarm, Timers},
};

pub(crate) use crate::proxy::slab::Key;

/// Bytes read at once.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Events taken at once.
const EVENTS_MAX: usize = 256;
/// Connections of one cut link that are kept without a node behind them, in the whole process.
pub(crate) const WAITING_MAX: usize = 64;
/// Alarms that ring before events and other connections have their turn.
const ALARMS_MAX: u32 = 1024;
const WAKE: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// What a connection needs of its worker.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) scratch: Box<[u8]>,
    pub(crate) pipes: PipePool,
    pub(crate) ledger: Ledger,
    /// Connections reset because nobody could say who had dialled.
    pub(crate) unknown_reset: u64,
    /// Connections reset because there was no descriptor left for their way to the node.
    pub(crate) refused: u64,
    timers: Timers,
    current: Key,
}

impl Tools {
    /// Looks at the present connection again at a moment of CLOCK_MONOTONIC.
    pub(crate) fn wake_at(&mut self, at_ns: u64, alarm: Alarm) {
        self.timers.set(at_ns, self.current, alarm);
    }
}

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Message {
    Adopt {
        door: Arc<Door>,
        arrival: Arrival,
    },
    Identified {
        key: Key,
        party: Option<Party>,
    },
    Sample(SyncSender<Sample>),
    /// Stand still and send everything to another process.
    Freeze(Arc<Freeze>),
}

/// What a worker has counted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) ledger: Ledger,
    pub(crate) connections: u64,
    pub(crate) unknown_reset: u64,
    /// Connections reset because there was no descriptor left for their way to the node.
    pub(crate) refused: u64,
}

impl Sample {
    /// Adds what another worker, or process, has counted.
    pub(crate) fn absorb(&mut self, other: &Self) {
        let Self { ledger, connections, unknown_reset, refused } = other;
        self.ledger.absorb(ledger);
        self.connections += connections;
        self.unknown_reset += unknown_reset;
        self.refused += refused;
    }
}

/// The way to a worker.
#[derive(Debug)]
pub(crate) struct Mailbox {
    messages: Mutex<Vec<Message>>,
    wake: OwnedFd,
    load: AtomicUsize,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { messages: Mutex::default(), wake, load: AtomicUsize::new(0) })
    }

    pub(crate) fn post(&self, message: Message) {
        if matches!(message, Message::Adopt { .. }) {
            self.load.fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.messages).push(message);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        // A counter that is full wakes as well.
        let _full = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Connections it has or will have.
    pub(crate) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }
}

/// A worker, before its thread runs.
#[derive(Debug)]
pub(crate) struct Worker {
    index: usize,
    mailbox: Arc<Mailbox>,
    board: Arc<Board>,
    lookup: Arc<Lookup>,
    rules: Arc<RuleSet>,
    epoll: OwnedFd,
    pairs: Slab<Pair>,
    tools: Tools,
    ready: VecDeque<Key>,
    waiting: BTreeMap<Arc<Link>, VecDeque<Key>>,
    waiting_max: usize,
    /// It has connections of another process, which have not met any rules here.
    is_heir: bool,
}

/// How much of what the process may have is one worker's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub(crate) index: usize,
    pub(crate) pipes: usize,
    pub(crate) waiting: usize,
}

impl Worker {
    pub(crate) fn new(
        share: Share,
        mailbox: Arc<Mailbox>,
        board: Arc<Board>,
        lookup: Arc<Lookup>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timers = Timers::new()?;
        epoll::add(&epoll, &mailbox.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        epoll::add(&epoll, timers.fd(), EventData::new_u64(TIMER), EventFlags::IN)?;
        Ok(Self {
            index: share.index,
            rules: board.newest(),
            mailbox,
            board,
            lookup,
            epoll,
            pairs: Slab::default(),
            tools: Tools {
                scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
                pipes: PipePool::new(share.pipes),
                ledger: Ledger::default(),
                unknown_reset: 0,
                refused: 0,
                timers,
                current: Key::default(),
            },
            ready: VecDeque::new(),
            waiting: BTreeMap::new(),
            waiting_max: share.waiting,
            is_heir: false,
        })
    }

    /// Carries connections until the board says stop.
    pub(crate) fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut lookout = Lookout::default();
        while !self.board.is_stopped() {
            let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
            let sleeps = self.ready.is_empty() && !lookout.is_awake();
            let timeout = if sleeps { None } else { Some(&now) };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout) {
                Ok(count) => lookout.saw(count),
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "wait for events");
                    return;
                }
            }
            self.obey_newest();
            if events.is_empty() && lookout.is_awake() {
                // Who would send the next bytes may need this processor.
                std::thread::yield_now();
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    WAKE => self.read_mail(),
                    TIMER => self.ring(),
                    token => self.event(token, event.flags),
                }
            }
            for _ in 0..self.ready.len() {
                let Some(key) = self.ready.pop_front() else { break };
                self.obey_newest();
                self.look_at(key, Pair::pump);
            }
        }
    }

    /// Puts newer rules in force: on every connection that they concern, before a byte of any moves.
    fn obey_newest(&mut self) {
        if self.board.epoch() == self.rules.epoch {
            return;
        }
        let rules = self.board.newest();
        let is_heir = std::mem::take(&mut self.is_heir);
        let is_next = rules.epoch == self.rules.epoch + 1 && !is_heir;
        self.rules = Arc::clone(&rules);
        let mut keys = self.pairs.keys();
        if is_next {
            keys.retain(|key| {
                self.pairs.find(*key).is_some_and(|pair| pair.is_concerned(&rules.changed))
            });
            // All that wait for a link are concerned, or none.
            self.waiting.retain(|link, _| {
                !rules.changed.contains(&**link) && !rules.changed.contains(&link.reversed())
            });
        } else {
            self.waiting.clear();
        }
        for key in keys {
            self.look_at(key, |pair, tools| pair.apply(&rules, tools));
            self.after_rules(key);
        }
        self.tools.ledger.keep(&rules.told);
        self.board.acknowledge(self.index, rules.epoch);
    }

    /// After rules met a connection: asks whose it is where that matters, and keeps the bound on
    /// connections that wait for a heal.
    fn after_rules(&mut self, key: Key) {
        let Some(pair) = self.pairs.find(key) else { return };
        if !pair.is_known() {
            let urgent = self.rules.tells_sources_apart(&pair.door().listener.node);
            let (theirs, ours) = pair.ends();
            let mailbox = Arc::clone(&self.mailbox);
            let asker = Asker::Worker(key, mailbox);
            self.lookup.ask(Question { asker, theirs, ours, urgent });
            return;
        }
        let Some(link) = pair.waiting_link() else { return };
        let queue = self.waiting.entry(link).or_default();
        queue.push_back(key);
        if queue.len() > self.waiting_max
            && let Some(oldest) = queue.pop_front()
        {
            self.look_at(oldest, |pair, _| match pair.waiting_link() {
                Some(_) => pair.reset(),
                None => Fate::Live,
            });
        }
    }

    fn read_mail(&mut self) {
        let mut count = [0_u8; 8];
        let _nothing = rustix::io::read(&self.mailbox.wake, &mut count[..]);
        // After the counter was read, never before: rules put up in between wake nobody again.
        self.obey_newest();
        let messages = std::mem::take(&mut *lock(&self.mailbox.messages));
        for message in messages {
            // A storm of new connections is many messages.
            self.obey_newest();
            match message {
                Message::Adopt { door, arrival } => self.adopt(door, arrival),
                Message::Identified { key, party: Some(party) } => self.identified(key, party),
                // It is asked again when rules change; until then the connection's own alarm holds.
                Message::Identified { key: _, party: None } => {}
                Message::Sample(reply) => self.sample(&reply),
                Message::Freeze(freeze) => self.freeze(&freeze),
            }
        }
    }

    fn adopt(&mut self, door: Arc<Door>, arrival: Arrival) {
        let dialler = self.rules.dialler(arrival.peer);
        let mut pair = Pair::new(door, arrival);
        if let Some(party) = dialler {
            pair.identify(party);
        }
        let key = self.pairs.insert(pair);
        let Some(pair) = self.pairs.find(key) else { return };
        let token = EventData::new_u64(key.token(Which::Near));
        if let Err(error) = epoll::add(&self.epoll, pair.near_fd(), token, INTEREST) {
            tracing::error!(%error, "watch a connection");
            self.look_at(key, |pair, _| pair.reset());
            return;
        }
        self.first_rules(key);
    }

    fn identified(&mut self, key: Key, party: Party) {
        let Some(pair) = self.pairs.find(key).filter(|pair| !pair.is_known()) else { return };
        pair.identify(party);
        self.first_rules(key);
    }

    /// Rules meet a connection of which it has just become known that it is there, or whose it is.
    fn first_rules(&mut self, key: Key) {
        let rules = Arc::clone(&self.rules);
        self.look_at(key, |pair, tools| {
            let fate = pair.apply(&rules, tools);
            if pair.waiting_link().is_some() {
                pair.count_refused(tools);
            }
            fate
        });
        self.after_rules(key);
    }

    fn sample(&mut self, reply: &SyncSender<Sample>) {
        for key in self.pairs.keys() {
            // Thousands of connections are several system calls each.
            self.obey_newest();
            self.look_at(key, |pair, tools| {
                pair.sample(tools);
                Fate::Live
            });
        }
        // Who asked may have given up waiting.
        let _gone = reply.try_send(Sample {
            ledger: self.tools.ledger.clone(),
            connections: self.pairs.len() as u64,
            unknown_reset: self.tools.unknown_reset,
            refused: self.tools.refused,
        });
    }

    fn ring(&mut self) {
        let mut count = [0_u8; 8];
        let _nothing = rustix::io::read(self.tools.timers.fd(), &mut count[..]);
        let now_ns = sys::monotonic_ns();
        for _ in 0..ALARMS_MAX {
            let Some((key, alarm)) = self.tools.timers.next_due(now_ns) else { break };
            self.obey_newest();
            self.look_at(key, |pair, tools| pair.alarm(alarm, tools));
        }
        // Where more are due, the timer fires at once.
        self.tools.timers.rearm();
    }

    fn event(&mut self, token: u64, flags: EventFlags) {
        // Rules are looked for before each connection, not only at each wake-up: under load one
        // batch of events moves many megabytes.
        self.obey_newest();
        let (key, which) = Key::of_token(token);
        self.look_at(key, |pair, tools| pair.event(which, flags, tools));
    }

    /// Lets a connection act and does what it needs then.
    fn look_at(&mut self, key: Key, act: impl FnOnce(&mut Pair, &mut Tools) -> Fate) {
        self.tools.current = key;
        let Some(pair) = self.pairs.find(key) else { return };
        let fate = act(pair, &mut self.tools);
        match fate {
            Fate::Live => {}
            Fate::Again => self.ready.push_back(key),
            Fate::Dial => self.dial(key),
            Fate::Over => {
                if let Some(mut pair) = self.pairs.remove(key) {
                    pair.release(&mut self.tools);
                    self.mailbox.load.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Dials the node behind a connection. The dialler gets a reset where that fails: as near to a
    /// refusal as an accepted connection can come, and never a hang.
    fn dial(&mut self, key: Key) {
        let Some(pair) = self.pairs.find(key) else { return };
        let upstream = pair.door().listener.upstream;
        let source = self.rules.diallers.source(pair.peer(), upstream);
        match self.open_far(key, upstream, source) {
            Ok((fd, connected)) => {
                self.look_at(key, |pair, tools| pair.dialled(fd, connected, tools));
            }
            Err(error) => {
                tracing::debug!(%error, %upstream, "dial node");
                let is_short = |code| [Errno::MFILE, Errno::NFILE].contains(&code);
                let code = error.raw_os_error().map(Errno::from_raw_os_error);
                self.tools.refused += u64::from(code.is_some_and(is_short));
                self.look_at(key, |pair, _| pair.reset());
            }
        }
    }

    fn open_far(
        &self,
        key: Key,
        upstream: SocketAddr,
        source: Option<IpAddr>,
    ) -> io::Result<(OwnedFd, bool)> {
        let fd = new_socket(upstream)?;
        if !leaves_reserve(&fd) {
            return Err(Errno::MFILE.into());
        }
        if let Some(Err(error)) = source.map(|source| sys::come_from(&fd, source)) {
            // The node may let it in all the same, and says so if not.
            tracing::debug!(%error, ?source, %upstream, "dial from a host's address");
        }
        let connected = match rustix::net::connect(&fd, &upstream) {
            Ok(()) => true,
            Err(Errno::INPROGRESS) => false,
            Err(error) => return Err(error.into()),
        };
        epoll::add(&self.epoll, &fd, EventData::new_u64(key.token(Which::Far)), INTEREST)?;
        Ok((fd, connected))
    }
}
