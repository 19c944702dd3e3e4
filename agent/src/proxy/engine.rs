//! Makes a table true: rules on all workers, listeners, steering, in the order that never leaks.

mod carry;

pub(crate) use carry::Inheritance;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use faultbed_common::{
    name::{FaultName, NodeName},
    proxy_spec::{Cut, Listener, ProxyFile},
    report::{FaultReport, LinkEvidence, ProxyReport},
};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::proxy::{
    acceptor::{Acceptor, Door},
    carry::shared,
    diallers::Diallers,
    evidence::Ledger,
    identify::Lookup,
    pair::losing,
    processes,
    rule_set::{Board, RuleSet, touched},
    side::new_socket,
    steer::{Gate, charged},
    sys::{self, bpf},
    table::{self, Abilities, Acting, FaultState, Here, KeptOut, Life, Memory, Standing, Table},
    wire::{Applied, FailedListener, FaultInForce, ProxyState},
    worker::{Mailbox, Message, Sample},
};

/// Workers that take longer to put rules in force are stuck.
const IN_FORCE_MAX: Duration = Duration::from_secs(2);
/// Workers that take longer to say what they counted are left out of the report.
const SAMPLE_MAX: Duration = Duration::from_millis(500);
/// A listener that could not be opened is tried again after this time.
const RETRY_NS: u64 = 1_000_000_000;
/// Faults that have ended and are still told of.
const ENDED_MAX: usize = 100;
/// The version of the file that this release understands.
const FILE_VERSION: u32 = 1;

/// The threads that the engine gives its orders to.
#[derive(Debug, Clone)]
pub(crate) struct Crew {
    pub(crate) board: Arc<Board>,
    pub(crate) mailboxes: Vec<Arc<Mailbox>>,
    pub(crate) acceptor: Arc<Acceptor>,
    pub(crate) lookup: Arc<Lookup>,
}

/// The state of the process, owned by the control thread alone.
#[derive(Debug)]
pub(crate) struct Engine {
    path: PathBuf,
    boot_id: String,
    can: Abilities,
    crew: Crew,
    file: ProxyFile,
    /// Of each fault of the file, a field that this release does not know.
    unknown: BTreeMap<FaultName, String>,
    memory: Memory,
    table: Table,
    doors: BTreeMap<SocketAddr, OpenDoor>,
    failed: BTreeMap<SocketAddr, String>,
    /// When the failed ones are tried again, in nanoseconds of CLOCK_BOOTTIME.
    retry_ns: u64,
    /// Listeners that hold the connections of a cut dialler because they cannot drop its SYNs.
    unsteered: BTreeMap<SocketAddr, String>,
    refused: Ledger,
    /// What processes before this one have counted.
    before: Sample,
    past: BTreeMap<Life, (FaultName, FaultReport)>,
}

/// A listener that is open.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OpenDoor {
    #[serde(with = "shared")]
    door: Arc<Door>,
    /// Its number with the acceptor; `None` while that does not accept for it.
    #[serde(skip)]
    id: Option<u64>,
    gate: Gate,
}

impl Engine {
    /// An engine that has done nothing yet.
    ///
    /// # Errors
    /// Where the boot cannot be told.
    pub(crate) fn new(dir: &Path, crew: Crew) -> io::Result<Self> {
        Ok(Self {
            path: dir.join("proxy.json"),
            boot_id: clock::boot_id()?,
            can: abilities(),
            crew,
            file: ProxyFile { version: FILE_VERSION, ..ProxyFile::default() },
            unknown: BTreeMap::new(),
            memory: Memory::default(),
            table: Table::default(),
            doors: BTreeMap::new(),
            failed: BTreeMap::new(),
            retry_ns: 0,
            unsteered: BTreeMap::new(),
            refused: Ledger::default(),
            before: Sample::default(),
            past: BTreeMap::new(),
        })
    }

    /// Reads the file; what it says is not in force yet. Without a file nothing is wanted.
    ///
    /// # Errors
    /// Where the file cannot be read or understood: what was in force stays so.
    pub(crate) fn load(&mut self) -> Result<(), String> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(format!("read proxy.json: {error}")),
        };
        let (file, unknown) = parse(&text).map_err(|error| format!("parse proxy.json: {error}"))?;
        if file.version != FILE_VERSION {
            return Err(format!(
                "parse proxy.json: version {} is not {FILE_VERSION}",
                file.version
            ));
        }
        let lookup = &self.crew.lookup;
        lookup.set_lab(file.lab.clone());
        if let Some(dir) = self.path.parent() {
            let known = Diallers::of(&file.spec);
            lookup.origin().follow(lookup, file.lab.clone(), (file.spec.desk, &known), dir);
        }
        (self.file, self.unknown) = (file, unknown);
        Ok(())
    }

    /// Makes the file true as of now. A new cut first closes the way for new connections, then
    /// stops those there are; a heal lets those there are hear again before new ones may come, since
    /// a socket that is still deaf would swallow the SYN of a dialler that uses its port again.
    ///
    /// # Errors
    /// Where a worker did not put the rules in force in time.
    pub(crate) fn make_true(&mut self) -> Result<(), String> {
        let here = Here {
            boot_id: &self.boot_id,
            now_ns: clock::boottime_ns(),
            can: self.can,
            unknown: &self.unknown,
        };
        let next = table::read(&self.file, &mut self.memory, here);
        self.count_refused();
        let old = std::mem::replace(&mut self.table, next);
        self.steer(Some(&old.kept_out));
        let in_force = self.publish();
        self.turn_doors();
        self.steer(None);
        self.try_steering();
        self.note_past();
        in_force
    }

    fn publish(&mut self) -> Result<(), String> {
        // A fault that stays in force for long must not keep the evidence of all that came and went.
        let told = self.past.keys().copied();
        let told = told.chain(self.table.faults.values().map(|state| state.life)).collect();
        let rules = RuleSet {
            epoch: 0,
            links: Arc::clone(&self.table.links),
            changed: self.table.changed.clone(),
            touched: touched(&self.table.links),
            diallers: Arc::clone(&self.table.diallers),
            told,
        };
        self.refused.keep(&rules.told);
        self.before.ledger.keep(&rules.told);
        let epoch = self.crew.board.publish(rules);
        self.crew.mailboxes.iter().for_each(|mailbox| mailbox.wake());
        if self.crew.board.wait_in_force(epoch, IN_FORCE_MAX) {
            return Ok(());
        }
        Err(format!("a worker has not put the rules in force after {} s", IN_FORCE_MAX.as_secs()))
    }

    /// Steers each open listener by the rules in force, and by those that were, where these are given.
    fn steer(&mut self, before: Option<&BTreeMap<NodeName, KeptOut>>) {
        let unnamed = self.crew.lookup.has_unnamed_nodes();
        for (address, open) in &mut self.doors {
            let node = &open.door.listener.node;
            let now = kept_out(&self.table, node);
            let before = before.and_then(|all| all.get(node)).filter(|before| **before != *now);
            let kept_out = match before {
                None => now,
                Some(before) => {
                    let mut both = before.clone();
                    for (party, dials) in &*now {
                        let known = both.entry(party.clone()).or_insert(*dials);
                        *known = *dials.max(known);
                    }
                    Cow::Owned(both)
                }
            };
            match open.gate.steer(&kept_out, &self.table.diallers, unnamed) {
                Ok(()) => drop(self.unsteered.remove(address)),
                Err(error) => {
                    tracing::warn!(listener = %address, %error, "steer new connections");
                    self.unsteered.insert(*address, error.to_string());
                }
            }
        }
    }

    /// Sees that what was steered is kept out. Not before the rules are in force: they come first.
    fn try_steering(&mut self) {
        for (address, open) in &mut self.doors {
            if let Err(error) = open.gate.try_out() {
                tracing::error!(listener = %address, %error, "try the steering");
                self.unsteered.insert(*address, error.to_string());
            }
        }
    }

    /// Closes and opens listeners.
    fn turn_doors(&mut self) {
        let open = self.doors.values().map(|open| &open.door.listener);
        let difference = table::diff(open, &self.table.listeners);
        for address in difference.close {
            if let Some(closed) = self.doors.remove(&address) {
                if let Some(id) = closed.id {
                    self.crew.acceptor.remove(id);
                }
                self.unsteered.remove(&address);
            }
        }
        self.failed.clear();
        let spec = &self.file.spec;
        if let Some(desk) = spec.desk.filter(|desk| table::is_at(spec, *desk)) {
            let why = "this host answers there who dialled: a port of control is no node's";
            self.failed.insert(desk, why.to_owned());
        }
        self.retry_ns = clock::boottime_ns() + RETRY_NS;
        for listener in difference.open {
            let address = listener.listen;
            if let Err(error) = self.open_door(listener) {
                let why = match (error.kind(), processes::holder(address)) {
                    (io::ErrorKind::AddrInUse, Some(holder)) => {
                        format!("port in use by {holder}")
                    }
                    (_, _) => format!("listen: {error}"),
                };
                self.failed.insert(address, why);
            }
        }
    }

    fn open_door(&mut self, listener: Listener) -> io::Result<()> {
        let address = listener.listen;
        let mut gate = Gate::open(address)?;
        let kept_out = kept_out(&self.table, &listener.node);
        let unnamed = self.crew.lookup.has_unnamed_nodes();
        if let Err(error) = gate.steer(&kept_out, &self.table.diallers, unnamed) {
            self.unsteered.insert(address, error.to_string());
            // Those who cannot be kept out are held when they are in; the others must get in.
            gate.steer(&KeptOut::new(), &self.table.diallers, unnamed)?;
        }
        let door = Arc::new(Door::new(listener));
        let id = self.crew.acceptor.add(Arc::clone(&door), Arc::clone(gate.real()))?;
        self.doors.insert(address, OpenDoor { door, id: Some(id), gate });
        Ok(())
    }

    /// Charges the SYNs that listeners dropped or refused to the faults that keep their diallers out.
    fn count_refused(&mut self) {
        let now_ms = clock::boottime_ms();
        for open in self.doors.values_mut() {
            for (party, attempts_refused) in open.gate.take_dropped() {
                let node = &open.door.listener.node;
                let Some((link, order)) = charged(&self.table.links, node, &party) else {
                    continue;
                };
                let more = LinkEvidence {
                    attempts_refused,
                    first_hit_ms: Some(now_ms),
                    last_hit_ms: Some(now_ms),
                    ..LinkEvidence::default()
                };
                let link = Arc::new(link.clone());
                let keeps_out = |one: &&Arc<Acting>| {
                    one.effect.cut == Some(Cut::Packets) || one.effect.dials.is_some()
                };
                for one in order.acting.iter().filter(keeps_out) {
                    self.refused.add(one.life, &link, &more);
                }
            }
        }
    }

    /// Keeps what is told of each fault after it has ended.
    fn note_past(&mut self) {
        let mut current = BTreeSet::new();
        for (name, state) in &self.table.faults {
            current.insert(state.life);
            let report = FaultReport {
                revision: state.revision,
                active: state.standing == Standing::Active,
                expired: state.standing == Standing::Expired,
                grade: Some(state.grade),
                remaining_ms: None,
                why: self.why(state),
                ..FaultReport::default()
            };
            self.past.insert(state.life, (name.clone(), report));
        }
        for (_, (_, report)) in self.past.iter_mut().filter(|(life, _)| !current.contains(life)) {
            report.active = false;
        }
        let ended: Vec<Life> =
            self.past.keys().filter(|life| !current.contains(life)).copied().collect();
        for life in ended.iter().rev().skip(ENDED_MAX) {
            self.past.remove(life);
        }
    }

    /// Why a fault does not act, or less than it should.
    fn why(&self, state: &FaultState) -> Option<String> {
        match &state.standing {
            Standing::Refused(why) => Some(why.clone()),
            Standing::Expired => None,
            Standing::Active => {
                let mut unsteered = self.unsteered.iter();
                let held = unsteered.find_map(|(address, why)| {
                    let node = &self.doors.get(address)?.door.listener.node;
                    let touched = state.links.iter().any(|link| link.touches(node));
                    touched.then(|| format!("new connections at {address} are held: {why}"))
                });
                held.or_else(|| state.note.clone())
            }
        }
    }

    /// When [`Self::make_true`] is due again, in nanoseconds of CLOCK_BOOTTIME.
    pub(crate) fn due_ns(&self) -> Option<u64> {
        let retry = (!self.failed.is_empty()).then_some(self.retry_ns);
        self.table.deadline_ns.into_iter().chain(retry).min()
    }

    pub(crate) fn applied(&self) -> Applied {
        let faults = self.table.faults.iter().map(|(name, state)| {
            let fault = FaultInForce {
                grade: Some(state.grade),
                active: state.standing == Standing::Active,
                why: self.why(state),
            };
            (name.clone(), fault)
        });
        Applied {
            generation: self.table.generation,
            failed: self.failed_listeners(),
            faults: faults.collect(),
        }
    }

    fn failed_listeners(&self) -> Vec<FailedListener> {
        let failed = self.failed.iter();
        failed
            .map(|(listener, why)| FailedListener { listener: *listener, why: why.clone() })
            .collect()
    }

    /// What is and was. Waits for each worker, but not for long.
    pub(crate) fn report(&mut self) -> ProxyState {
        self.count_refused();
        let mut total = self.before.clone();
        total.ledger.absorb(&self.refused);
        let (reply, samples) = mpsc::sync_channel(self.crew.mailboxes.len());
        for mailbox in &self.crew.mailboxes {
            mailbox.post(Message::Sample(reply.clone()));
        }
        drop(reply);
        let end = Instant::now() + SAMPLE_MAX;
        let left = || end.saturating_duration_since(Instant::now());
        while let Ok(sample) = samples.recv_timeout(left()) {
            total.absorb(&sample);
        }
        let now_ns = clock::boottime_ns();
        let mut faults = BTreeMap::new();
        for (life, (name, report)) in &self.past {
            let mut report = report.clone();
            report.links = total.ledger.links(*life);
            let state = self.table.faults.get(name).filter(|state| state.life == *life);
            let deadline_ns = state.filter(|_| report.active).and_then(|state| state.deadline_ns);
            report.remaining_ms = deadline_ns.map(|end| end.saturating_sub(now_ns) / 1_000_000);
            // A later life of the same name takes its place.
            faults.insert(name.clone(), report);
        }
        ProxyState {
            report: ProxyReport {
                pid: std::process::id(),
                generation: self.table.generation,
                listeners: u32::try_from(self.doors.len()).unwrap_or(u32::MAX),
                connections: total.connections,
                best_grade: Some(self.can.best()),
                outdated: None,
                refused: self.crew.acceptor.refused() + total.refused,
                unknown_reset: total.unknown_reset,
            },
            faults,
            failed: self.failed_listeners(),
            unnamed_nodes: self.crew.lookup.has_unnamed_nodes(),
        }
    }
}

/// The file, and of each fault a field that this release does not know: a later one may mean by it that
/// the fault does something else.
fn parse(text: &str) -> serde_json::Result<(ProxyFile, BTreeMap<FaultName, String>)> {
    let mut unknown = BTreeMap::new();
    let mut text = serde_json::Deserializer::from_str(text);
    let file = serde_ignored::deserialize(&mut text, |path| {
        let path = path.to_string();
        let of_fault = path.strip_prefix("spec.faults.").and_then(|path| path.split_once('.'));
        match of_fault.and_then(|(name, field)| Some((name.parse().ok()?, field))) {
            Some((name, field)) => drop(unknown.insert(name, field.to_owned())),
            None => tracing::warn!(field = path, "proxy.json has a field of a later release"),
        }
    })?;
    text.end()?;
    Ok((file, unknown))
}

/// Who is kept out at the listeners of a node.
fn kept_out<'a>(table: &'a Table, node: &NodeName) -> Cow<'a, KeptOut> {
    table.kept_out.get(node).map_or(Cow::Owned(KeptOut::new()), Cow::Borrowed)
}

/// What this process may do, found out by trying it on sockets of its own.
pub(crate) fn abilities() -> Abilities {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let may = |act: &dyn Fn(&OwnedFd) -> io::Result<()>| {
        new_socket(address).and_then(|fd| act(&fd)).is_ok()
    };
    let filters = may(&|fd| sys::attach_filter(fd, &losing(0)));
    Abilities {
        deafness: may(&|fd| sys::set_deaf(fd, address.ip(), true)),
        filters,
        programs: filters && bpf::is_allowed(),
    }
}
