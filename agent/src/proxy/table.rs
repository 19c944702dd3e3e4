//! Decides what the proxy must do: listeners, one rule for each link, the next deadline. Never does it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use faultbed_common::{
    fault::Grade,
    generation::{FaultRevision, Generation},
    link::{Link, Party},
    name::{FaultName, NodeName},
    proxy_spec::{Cut, Dials, LinkFault, Listener, ProxyFile, ProxySpec},
};

use serde::{Deserialize, Serialize};

use crate::proxy::{bucket::Bucket, carry::shared, diallers::Diallers};

pub(crate) use grade::Abilities;
use grade::{Kernel, Making, making};
pub(crate) use order::{Acting, Order, Part};

mod grade;
mod order;

/// One stay of a fault in the orders: a fault that ended and was injected again has another life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Life(pub(crate) u32);

/// One order for each link that a fault acts on.
pub(crate) type Orders = BTreeMap<Link, Arc<Order>>;
/// The parties whose SYNs are not to reach the listeners of a node, and what they meet instead.
pub(crate) type KeptOut = BTreeMap<Party, Dials>;

/// What must be true, from one file at one moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) generation: Generation,
    pub(crate) listeners: BTreeMap<SocketAddr, Listener>,
    #[serde(with = "shared")]
    pub(crate) diallers: Arc<Diallers>,
    #[serde(with = "shared")]
    pub(crate) links: Arc<Orders>,
    /// Links whose order is not what it was when the file was last read.
    pub(crate) changed: BTreeSet<Link>,
    /// Who may not connect to whom.
    pub(crate) kept_out: BTreeMap<NodeName, KeptOut>,
    pub(crate) faults: BTreeMap<FaultName, FaultState>,
    /// When the next fault ends, in nanoseconds of CLOCK_BOOTTIME.
    pub(crate) deadline_ns: Option<u64>,
}

/// One fault of the file, judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FaultState {
    pub(crate) life: Life,
    pub(crate) revision: FaultRevision,
    pub(crate) grade: Grade,
    pub(crate) standing: Standing,
    pub(crate) deadline_ns: Option<u64>,
    /// What it does less well than other hosts could.
    pub(crate) note: Option<String>,
    pub(crate) links: BTreeSet<Link>,
}

/// Whether a fault acts, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Standing {
    Active,
    Expired,
    Refused(String),
}

/// What outlasts one reading of the file: a deadline, once set, only a newer revision moves.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    known: BTreeMap<FaultName, Known>,
    lives: u32,
    /// Kept as they are as long as they say the same: what has not changed is the same allocation.
    acting: BTreeMap<FaultName, Arc<Acting>>,
    #[serde(with = "shared")]
    links: Arc<Orders>,
    #[serde(with = "shared")]
    diallers: Arc<Diallers>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    life: Life,
    /// When it was first read, in nanoseconds of CLOCK_BOOTTIME.
    began_ns: u64,
    revision: FaultRevision,
    deadline_ns: Option<u64>,
}

/// Where and when a file is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Here<'a> {
    pub(crate) boot_id: &'a str,
    /// Nanoseconds of CLOCK_BOOTTIME.
    pub(crate) now_ns: u64,
    pub(crate) can: Abilities,
    /// Of each fault of the file, a field that this release does not know.
    pub(crate) unknown: &'a BTreeMap<FaultName, String>,
}

/// Judges a file at a moment. Read again when [`Table::deadline_ns`] has come.
pub(crate) fn read(file: &ProxyFile, memory: &mut Memory, here: Here<'_>) -> Table {
    let spec = &file.spec;
    memory.known.retain(|name, _| spec.faults.contains_key(name));
    let mut faults = BTreeMap::new();
    let mut acting = BTreeMap::new();
    for (name, fault) in &spec.faults {
        let known = remember(memory, name, fault, deadline(file, name, here), here);
        let made = match here.unknown.get(name) {
            Some(field) => Err(format!("not in force: unknown field {field}; upgrade the proxy")),
            None => making(fault, here.can),
        };
        let standing = match (known.deadline_ns, &made) {
            (Some(end), _) if end <= here.now_ns => Standing::Expired,
            (_, Err(why)) => Standing::Refused(why.clone()),
            (_, Ok(_)) => Standing::Active,
        };
        let state = FaultState {
            life: known.life,
            revision: fault.revision,
            grade: made.as_ref().map_or(Grade::Stream, |made| made.grade),
            standing,
            deadline_ns: known.deadline_ns,
            note: made.as_ref().ok().and_then(|made| made.note.clone()),
            links: fault.links.clone(),
        };
        if let (Standing::Active, Ok(made)) = (&state.standing, made) {
            acting.insert(name.clone(), acts(memory, name, fault, &known, made));
        }
        faults.insert(name.clone(), state);
    }
    memory.acting = acting;
    let old = std::mem::take(&mut memory.links);
    memory.links = orders(file, &memory.acting, &old);
    if !memory.diallers.is_of(spec) {
        memory.diallers = Arc::new(Diallers::of(spec));
    }
    let active = |state: &&FaultState| state.standing == Standing::Active;
    Table {
        generation: spec.generation,
        // Where control answers, both would share the port, and a fault of that node would meet it.
        listeners: spec
            .listeners
            .iter()
            .filter(|listener| Some(listener.listen) != spec.desk)
            .map(|listener| (listener.listen, listener.clone()))
            .collect(),
        diallers: Arc::clone(&memory.diallers),
        changed: changed(&old, &memory.links),
        kept_out: kept_out(&memory.links),
        links: Arc::clone(&memory.links),
        deadline_ns: faults.values().filter(active).filter_map(|state| state.deadline_ns).min(),
        faults,
    }
}

/// Whether some node is to be reached at this address.
pub(crate) fn is_at(spec: &ProxySpec, address: SocketAddr) -> bool {
    spec.listeners.iter().any(|listener| listener.listen == address)
}

/// The share of a fault in the orders of its links; the one there was, where that says the same.
fn acts(
    memory: &Memory,
    name: &FaultName,
    fault: &LinkFault,
    known: &Known,
    made: Making,
) -> Arc<Acting> {
    let one = Acting {
        life: known.life,
        began_ns: known.began_ns,
        heal: fault.heal,
        effect: made.effect,
        kernel: made.kernel,
        probability: fault.probability,
        seed: fault.seed,
    };
    match memory.acting.get(name) {
        Some(before) if **before == one => Arc::clone(before),
        Some(_) | None => Arc::new(one),
    }
}

/// The deadline that the file sets for a fault; `None` where it sets none that counts here.
fn deadline(file: &ProxyFile, name: &FaultName, here: Here<'_>) -> Option<Option<u64>> {
    // Another boot's clock says nothing here. The fault stays in force until the agent has
    // rewritten the file: a link that opens by mistake is worse than one that stays cut.
    if file.boot_id != here.boot_id {
        return Some(None);
    }
    let revision = file.spec.faults.get(name)?.revision;
    let set = file.deadlines.get(name).filter(|deadline| deadline.revision == revision)?;
    Some(set.boottime_ns)
}

/// Keeps the deadline of a revision that is known, and takes in one that is not.
fn remember(
    memory: &mut Memory,
    name: &FaultName,
    fault: &LinkFault,
    set: Option<Option<u64>>,
    here: Here<'_>,
) -> Known {
    // Without a deadline in the file the fault's own duration counts from now: it must end.
    let own = || {
        let lasts = fault.lasts?.0;
        Some(here.now_ns.saturating_add(u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX)))
    };
    let Memory { known, lives, .. } = memory;
    let entry = known.entry(name.clone()).or_insert_with(|| {
        *lives += 1;
        let deadline_ns = set.unwrap_or_else(own);
        let (life, began_ns) = (Life(*lives), here.now_ns);
        Known { life, began_ns, revision: fault.revision, deadline_ns }
    });
    if fault.revision > entry.revision {
        entry.revision = fault.revision;
        entry.deadline_ns = set.unwrap_or_else(own);
    } else if let (None, Some(Some(end))) = (entry.deadline_ns, set) {
        // It was read while its deadline was another boot's: this one is the first that counts.
        entry.deadline_ns = Some(end);
    }
    entry.clone()
}

/// One order for each link that an active fault acts on. What says the same is the same.
fn orders(
    file: &ProxyFile,
    acting: &BTreeMap<FaultName, Arc<Acting>>,
    old: &Arc<Orders>,
) -> Arc<Orders> {
    let mut shares: BTreeMap<&Link, Vec<Arc<Acting>>> = BTreeMap::new();
    for (name, fault) in &file.spec.faults {
        let Some(one) = acting.get(name) else { continue };
        for link in &fault.links {
            shares.entry(link).or_default().push(Arc::clone(one));
        }
    }
    let mut same = old.len() == shares.len();
    let order = |(link, acting): (&Link, Vec<Arc<Acting>>)| {
        let before = old.get(link);
        let order = match before {
            Some(before) if before.acting == acting => Arc::clone(before),
            Some(_) | None => {
                same = false;
                Arc::new(Order::new(acting, before.map(Arc::as_ref)))
            }
        };
        (link.clone(), order)
    };
    let orders: Orders = shares.into_iter().map(order).collect();
    // As many, and each was there before.
    if same { Arc::clone(old) } else { Arc::new(orders) }
}

/// Links whose order came, went or changed.
fn changed(old: &Arc<Orders>, new: &Arc<Orders>) -> BTreeSet<Link> {
    if Arc::ptr_eq(old, new) {
        return BTreeSet::new();
    }
    let same = |link: &Link, order: &Arc<Order>, others: &Orders| {
        others.get(link).is_some_and(|other| Arc::ptr_eq(order, other))
    };
    let gone = old.iter().filter(|(link, _)| !new.contains_key(link));
    let other = new.iter().filter(|(link, order)| !same(link, order, old));
    gone.chain(other).map(|(link, _)| link.clone()).collect()
}

/// What distinguishes the listeners wanted from those open.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) close: Vec<SocketAddr>,
    pub(crate) open: Vec<Listener>,
}

/// Listeners to close and to open. One whose node or upstream changed is closed and opened.
pub(crate) fn diff<'a>(
    open: impl Iterator<Item = &'a Listener>,
    wanted: &BTreeMap<SocketAddr, Listener>,
) -> Difference {
    let mut missing = wanted.clone();
    let mut close = Vec::new();
    for listener in open {
        if wanted.get(&listener.listen) == Some(listener) {
            missing.remove(&listener.listen);
        } else {
            close.push(listener.listen);
        }
    }
    Difference { close, open: missing.into_values().collect() }
}

/// Who may not connect to whom. Packets that die do so for listeners at both ends: without the
/// answer to a SYN, or without the SYN, there is no connection.
fn kept_out(links: &Orders) -> BTreeMap<NodeName, KeptOut> {
    let mut all: BTreeMap<NodeName, KeptOut> = BTreeMap::new();
    let mut keep = |at: &Party, party: &Party, dials: Dials| {
        let Some(node) = at.node() else { return };
        if !all.contains_key(node) {
            all.insert(node.clone(), KeptOut::new());
        }
        let Some(parties) = all.get_mut(node) else { return };
        let known = parties.entry(party.clone()).or_insert(dials);
        *known = dials.max(*known);
    };
    for (link, order) in links {
        if order.rule.cut == Some(Cut::Packets) {
            keep(&link.to, &link.from, Dials::TimeOut);
            keep(&link.from, &link.to, Dials::TimeOut);
        }
        match order.rule.dials {
            Some(Dials::TimeOut) => keep(&link.to, &link.from, Dials::TimeOut),
            Some(Dials::Refuse) if order.acting.iter().any(|one| one.kernel.refuses) => {
                keep(&link.to, &link.from, Dials::Refuse);
            }
            // Otherwise it is for the connection, once it is accepted.
            Some(Dials::Refuse) | None => {}
        }
    }
    all
}

#[cfg(test)]
pub(crate) mod tests;
