//! Decides what the proxy must do: listeners, one rule for each link, the next deadline. Never does it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use faultbed_common::{
    effect::Rate,
    fault::{Grade, HealPolicy},
    generation::{FaultRevision, Generation},
    link::{Link, Party},
    name::{FaultName, NodeName},
    proxy_spec::{Cut, LinkEffect, LinkFault, Listener, ProxyFile},
    rules::{LinkRule, combine},
};

use serde::{Deserialize, Serialize};

use crate::proxy::{
    bucket::Bucket,
    carry::{shared, shared_values},
};

/// One stay of a fault in the orders: a fault that ended and was injected again has another life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Life(pub(crate) u32);

/// What must be true, from one file at one moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) generation: Generation,
    pub(crate) listeners: BTreeMap<SocketAddr, Listener>,
    pub(crate) diallers: BTreeMap<IpAddr, NodeName>,
    #[serde(with = "shared_values")]
    pub(crate) links: BTreeMap<Link, Arc<Order>>,
    pub(crate) faults: BTreeMap<FaultName, FaultState>,
    /// When the next fault ends, in nanoseconds of CLOCK_BOOTTIME.
    pub(crate) deadline_ns: Option<u64>,
}

/// What is done with one link, and on whose account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) rule: LinkRule,
    pub(crate) acting: Vec<Arc<Acting>>,
    /// Where the link's dice come from.
    pub(crate) seed: u64,
    /// The line of all its connections; it stays the link's when faults change.
    #[serde(with = "shared")]
    pub(crate) bucket: Arc<Bucket>,
}

/// One fault's share in an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Acting {
    pub(crate) life: Life,
    pub(crate) heal: HealPolicy,
    /// What it does by itself, in the grade it has here.
    pub(crate) effect: LinkEffect,
}

/// One fault of the file, judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FaultState {
    pub(crate) life: Life,
    pub(crate) revision: FaultRevision,
    pub(crate) grade: Grade,
    pub(crate) standing: Standing,
    pub(crate) deadline_ns: Option<u64>,
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
    /// One for each link and rate: a line whose rate changes begins anew.
    #[serde(with = "shared_values")]
    buckets: BTreeMap<(Link, Rate), Arc<Bucket>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    life: Life,
    revision: FaultRevision,
    deadline_ns: Option<u64>,
}

/// Where and when a file is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Here<'a> {
    pub(crate) boot_id: &'a str,
    /// Nanoseconds of CLOCK_BOOTTIME.
    pub(crate) now_ns: u64,
    /// The best grade that this host can give.
    pub(crate) best: Grade,
}

/// Judges a file at a moment. Read again when [`Table::deadline_ns`] has come.
pub(crate) fn read(file: &ProxyFile, memory: &mut Memory, here: Here<'_>) -> Table {
    let spec = &file.spec;
    memory.known.retain(|name, _| spec.faults.contains_key(name));
    let mut faults = BTreeMap::new();
    for (name, fault) in &spec.faults {
        let (life, deadline_ns) = remember(memory, name, fault, deadline(file, name, here), here);
        let standing = match (deadline_ns, grade_of(fault, here.best)) {
            (Some(end), _) if end <= here.now_ns => Standing::Expired,
            (_, Err(why)) => Standing::Refused(why.to_owned()),
            (_, Ok(_)) => Standing::Active,
        };
        let state = FaultState {
            life,
            revision: fault.revision,
            grade: grade_of(fault, here.best).unwrap_or(Grade::Stream),
            standing,
            deadline_ns,
            links: fault.links.clone(),
        };
        faults.insert(name.clone(), state);
    }
    let active = |state: &&FaultState| state.standing == Standing::Active;
    Table {
        generation: spec.generation,
        listeners: spec.listeners.iter().map(|l| (l.listen, l.clone())).collect(),
        diallers: spec.diallers.clone(),
        links: orders(file, &faults, &mut memory.buckets),
        deadline_ns: faults.values().filter(active).filter_map(|state| state.deadline_ns).min(),
        faults,
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
) -> (Life, Option<u64>) {
    // Without a deadline in the file the fault's own duration counts from now: it must end.
    let own = || {
        let lasts = fault.lasts?.0;
        Some(here.now_ns.saturating_add(u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX)))
    };
    let Memory { known, lives, buckets: _ } = memory;
    let entry = known.entry(name.clone()).or_insert_with(|| {
        *lives += 1;
        let deadline_ns = set.unwrap_or_else(own);
        Known { life: Life(*lives), revision: fault.revision, deadline_ns }
    });
    if fault.revision > entry.revision {
        entry.revision = fault.revision;
        entry.deadline_ns = set.unwrap_or_else(own);
    } else if let (None, Some(Some(end))) = (entry.deadline_ns, set) {
        // It was read while its deadline was another boot's: this one is the first that counts.
        entry.deadline_ns = Some(end);
    }
    (entry.life, entry.deadline_ns)
}

/// The grade a fault has where `best` is to be had.
fn grade_of(fault: &LinkFault, best: Grade) -> Result<Grade, &'static str> {
    let LinkEffect { cut, .. } = fault.effect;
    match (cut, fault.grade) {
        (Some(Cut::Packets), Some(Grade::Stream)) => Ok(Grade::Stream),
        (Some(Cut::Packets), None) => Ok(best),
        (Some(Cut::Packets), Some(Grade::Packet)) if best == Grade::Packet => Ok(Grade::Packet),
        (Some(Cut::Packets), Some(Grade::Packet)) => {
            Err("grade packet cannot be had: this kernel does not drop by hop count")
        }
        (Some(Cut::Bytes), Some(Grade::Packet)) => {
            Err("grade packet cannot be had for the bytes of one way: acknowledgements pass")
        }
        (None, Some(Grade::Packet)) => Err("grade packet cannot be had for a delay"),
        (Some(Cut::Bytes) | None, None | Some(Grade::Stream)) => Ok(Grade::Stream),
    }
}

/// One order for each link that an active fault acts on.
fn orders(
    file: &ProxyFile,
    states: &BTreeMap<FaultName, FaultState>,
    buckets: &mut BTreeMap<(Link, Rate), Arc<Bucket>>,
) -> BTreeMap<Link, Arc<Order>> {
    let mut shares: BTreeMap<&Link, (Vec<Arc<Acting>>, u64)> = BTreeMap::new();
    for (name, fault) in &file.spec.faults {
        let Some(state) = states.get(name).filter(|s| s.standing == Standing::Active) else {
            continue;
        };
        let mut effect = fault.effect.clone();
        if state.grade == Grade::Stream {
            // Bytes can be held without the kernel's help, packets cannot.
            effect.cut = effect.cut.map(|_| Cut::Bytes);
        }
        let one = Arc::new(Acting { life: state.life, heal: fault.heal, effect });
        for link in &fault.links {
            let (acting, seed) = shares.entry(link).or_default();
            acting.push(Arc::clone(&one));
            *seed ^= fault.seed;
        }
    }
    let mut used = BTreeMap::new();
    let mut order = |link: &Link, (acting, seed): (Vec<Arc<Acting>>, u64)| {
        let rule = combine(acting.iter().map(|one| &one.effect));
        let bucket = match rule.bandwidth {
            Some(rate) => {
                let key = (link.clone(), rate);
                let bucket = buckets.remove(&key).unwrap_or_default();
                used.insert(key, Arc::clone(&bucket));
                bucket
            }
            None => Arc::default(),
        };
        Arc::new(Order { rule, acting, seed, bucket })
    };
    let orders =
        shares.into_iter().map(|(link, share)| (link.clone(), order(link, share))).collect();
    *buckets = used;
    orders
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

/// The parties whose packets die at the listeners of `node`: in either direction, since without
/// the answer to a SYN, or without the SYN, there is no connection.
pub(crate) fn cut_diallers<'a>(
    links: &'a BTreeMap<Link, Arc<Order>>,
    node: &NodeName,
) -> BTreeMap<&'a Party, BTreeSet<&'a Link>> {
    let mut parties: BTreeMap<&Party, BTreeSet<&Link>> = BTreeMap::new();
    for (link, order) in links {
        if order.rule.cut != Some(Cut::Packets) {
            continue;
        }
        let here = Party::Node(node.clone());
        if link.to == here {
            parties.entry(&link.from).or_default().insert(link);
        } else if link.from == here {
            parties.entry(&link.to).or_default().insert(link);
        }
    }
    parties
}

#[cfg(test)]
mod tests;
