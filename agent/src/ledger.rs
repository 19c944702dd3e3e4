//! What this host was last told, on disk: it keeps a lab going while everybody else is gone.
//!
//! A change is first put beside the ledger, which a SIGKILL survives, so that rules come into force
//! without waiting for the disk; [`Ledger::settle`] then makes it last a power cut as well.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use faultbed_common::{
    generation::FaultRevision,
    host_spec::{HostSpec, NodeSpec},
    name::{ClusterName, FaultName, HostName, LabName, NodeName},
    proxy_spec::{Deadline, Listener, ProxyFile, ProxySpec},
    session::Orders,
};
use serde::{Deserialize, Serialize};

mod error;
pub mod terms;
pub mod unknown;

use crate::clock::BootTime;
pub use error::{LedgerError, Refusal};
pub use terms::Kept;
pub use unknown::{Told, ToldAround, Unknown};

/// The version of the ledger's format that this release writes.
const VERSION: u32 = 1;

/// The ledger as it lasts a power cut.
const SETTLED: &str = "ledger.json";

/// The ledger as it lasts a SIGKILL, and is about to be settled.
const NEXT: &str = "ledger.next.json";

/// The version of the proxy's file that this release writes.
const PROXY_FILE_VERSION: u32 = 1;

/// Everything this host was told and must keep to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    /// The version of this format.
    pub version: u32,
    /// Counts the writes: of two files the one with the higher number holds.
    #[serde(default)]
    pub sequence: u64,
    /// The boot that `written_ns` and the deadlines are of.
    pub boot_id: String,
    /// When this was written, in nanoseconds of CLOCK_BOOTTIME: ages go on from here after a boot.
    pub written_ns: u64,
    /// What must be true.
    pub spec: HostSpec,
    /// When each fault ends.
    pub deadlines: BTreeMap<FaultName, Deadline>,
    /// When leases end, and which faults this host healed by itself.
    #[serde(default)]
    pub terms: Kept,
    /// What of it this release does not know.
    #[serde(default)]
    pub unknown: Unknown,
    /// Nodes that left the spec and are not gone yet, as they were last wanted.
    #[serde(default)]
    pub retiring: BTreeMap<NodeName, Retiring>,
}

/// A node on its way out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retiring {
    /// How it ran, for its stop and its `leave`.
    pub spec: NodeSpec,
    /// Whether its data goes with it.
    pub wipe: bool,
    /// Whether it goes without its `leave`.
    #[serde(default)]
    pub forced: bool,
}

impl Accepted {
    /// What the proxy process must do, with the deadlines of its faults.
    #[must_use]
    pub fn proxy_file(&self) -> ProxyFile {
        let mut spec = self.proxy_spec();
        spec.faults.retain(|name, _| {
            !self.terms.healed.contains_key(name) && !self.unknown.faults.contains_key(name)
        });
        let faults = &spec.faults;
        ProxyFile {
            version: PROXY_FILE_VERSION,
            lab: Some(self.spec.lab.clone()),
            boot_id: self.boot_id.clone(),
            deadlines: self
                .deadlines
                .iter()
                .filter(|(name, _)| faults.contains_key(*name))
                .map(|(name, deadline)| (name.clone(), deadline.clone()))
                .collect(),
            spec,
        }
    }

    /// The proxy's part of the spec; and, as they were, the listeners of nodes that are leaving their
    /// cluster: it moves their data away over them.
    fn proxy_spec(&self) -> ProxySpec {
        let mut spec = self.spec.proxy.clone();
        let leaving = self.retiring.iter().filter(|(_, leaving)| {
            leaving.spec.launch.leave.is_some()
                && self.spec.clusters.contains(&leaving.spec.cluster)
        });
        for (name, Retiring { spec: node, .. }) in leaving {
            for (port, rule) in node.ports.iter().filter(|(_, rule)| rule.proxied) {
                let listen = SocketAddr::new(node.address, rule.port);
                // A new node may have the address already.
                if spec.listeners.iter().all(|listener| listener.listen != listen) {
                    let upstream = SocketAddr::new(node.private, rule.port);
                    let (node, port) = (name.clone(), port.clone());
                    spec.listeners.push(Listener { node, port, listen, upstream });
                }
            }
            spec.diallers.entry(node.private).or_insert_with(|| name.clone());
        }
        spec.listeners.sort_unstable();
        spec
    }

    /// When a fault ends here; `None` is until healed. One that cannot be understood never was.
    #[must_use]
    pub fn ends(&self, fault: &FaultName) -> Option<BootTime> {
        if self.unknown.faults.contains_key(fault) {
            return Some(BootTime::default());
        }
        if let Some(healed) = self.terms.healed.get(fault) {
            return Some(BootTime::from_ns(healed.at_ns));
        }
        self.deadlines.get(fault)?.boottime_ns.map(BootTime::from_ns)
    }

    /// Whether the time of a fault is up.
    #[must_use]
    pub fn is_over(&self, fault: &FaultName, now: BootTime) -> bool {
        self.ends(fault).is_some_and(|end| end <= now)
    }

    /// Whether the lease of a cluster, or that of the whole lab, is over.
    #[must_use]
    pub fn lease_is_over(&self, cluster: &ClusterName, now: BootTime) -> bool {
        self.terms.lease_end(cluster).is_some_and(|end| end <= now)
    }

    /// The same at another boot: every deadline is as far away as it was when this was written.
    fn rebased(mut self, boot_id: &str, now: BootTime) -> Self {
        if self.boot_id != boot_id {
            for deadline in self.deadlines.values_mut() {
                deadline.boottime_ns = deadline
                    .boottime_ns
                    .map(|ns| now.ns().saturating_add(ns.saturating_sub(self.written_ns)));
            }
            self.terms.rebase(self.written_ns, now);
            boot_id.clone_into(&mut self.boot_id);
        }
        self
    }
}

/// What a host must keep to after new orders. Pure; refuses what would move it backwards.
///
/// # Errors
/// The orders are older than what is held.
pub fn merge(
    held: Option<&Accepted>,
    orders: Orders,
    boot_id: &str,
    now: BootTime,
) -> Result<Accepted, Refusal> {
    let Orders { spec, keeps_around: _, fault_ages_ms, lease_ages } = orders;
    if let Some(held) = held
        && held.spec.generation > spec.generation
    {
        return Err(Refusal::Older { held: held.spec.generation, offered: spec.generation });
    }
    let deadlines = deadlines(held, &spec, &fault_ages_ms, now);
    let terms = terms::merge(held.map(|held| &held.terms), &spec, &lease_ages, now);
    let mut retiring = held.map(|held| held.retiring.clone()).unwrap_or_default();
    for (name, node) in held.iter().flat_map(|held| &held.spec.nodes) {
        if !spec.nodes.contains_key(name) {
            retiring
                .insert(name.clone(), Retiring { spec: node.clone(), wipe: false, forced: false });
        }
    }
    // One that is called back is the same node as before; any other of its name is a new one.
    retiring.retain(|name, leaving| {
        let is_back = |node: &NodeSpec| node.recalled > leaving.spec.recalled;
        !spec.nodes.get(name).is_some_and(is_back)
    });
    for (name, leaving) in &mut retiring {
        leaving.wipe |= spec.wipe_removed.contains(name);
        leaving.forced |= spec.forced.contains(name);
    }
    Ok(Accepted {
        version: VERSION,
        sequence: held.map_or(0, |held| held.sequence),
        boot_id: boot_id.to_owned(),
        written_ns: now.ns(),
        spec,
        deadlines,
        terms,
        unknown: Unknown::default(),
        retiring,
    })
}

/// When every fault of a spec ends: what is known stays, only a newer revision is reckoned anew.
fn deadlines(
    held: Option<&Accepted>,
    spec: &HostSpec,
    ages_ms: &BTreeMap<FaultName, u64>,
    now: BootTime,
) -> BTreeMap<FaultName, Deadline> {
    let of_links = spec.proxy.faults.iter().map(|(name, f)| (name, f.revision, f.lasts));
    let of_nodes = spec
        .nodes
        .values()
        .flat_map(|node| node.faults.iter().map(|(name, f)| (name, f.revision, f.lasts)));
    let mut found = BTreeMap::new();
    for (name, revision, lasts) in of_links.chain(of_nodes) {
        let known = held.and_then(|held| held.deadlines.get(name));
        let deadline = match known {
            Some(known) if known.revision >= revision => known.clone(),
            _ => {
                let age = ages_ms.get(name).copied().unwrap_or(0).saturating_mul(1_000_000);
                let boottime_ns = lasts.map(|lasts| {
                    let left = (now + lasts.0).ns().saturating_sub(age);
                    left.max(now.ns())
                });
                Deadline { revision: FaultRevision(revision.0), boottime_ns }
            }
        };
        found.insert(name.clone(), deadline);
    }
    found
}

/// The ledger of one host. One agent at a time has it; the pid file sees to that.
#[derive(Debug)]
pub struct Ledger {
    /// What lasts a power cut.
    path: PathBuf,
    /// What lasts a SIGKILL and is about to be settled.
    next: PathBuf,
    lab: LabName,
    host: HostName,
    boot_id: String,
    accepted: Option<Accepted>,
    trouble: Option<String>,
}

impl Ledger {
    /// Reads what was accepted before, if anything was.
    ///
    /// # Errors
    /// The file cannot be read, is no ledger, or is of another lab or host.
    pub fn open(
        dir: &Path,
        lab: &LabName,
        host: &HostName,
        boot_id: &str,
        now: BootTime,
    ) -> Result<Self, LedgerError> {
        let accepted = read_newest(dir)?;
        let path = dir.join(SETTLED);
        let next = dir.join(NEXT);
        if let Some(held) = &accepted
            && (&held.spec.lab != lab || &held.spec.host != host)
        {
            let why = format!("it is of {}/{}, not of {lab}/{host}", held.spec.lab, held.spec.host);
            return Err(LedgerError::Unreadable { path, why });
        }
        Ok(Self {
            path,
            next,
            lab: lab.clone(),
            host: host.clone(),
            boot_id: boot_id.to_owned(),
            accepted: accepted.map(|held| held.rebased(boot_id, now)),
            trouble: None,
        })
    }

    /// The host whose ledger it is.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// What this host must keep to; `None` before the first orders.
    #[must_use]
    pub fn accepted(&self) -> Option<&Accepted> {
        self.accepted.as_ref()
    }

    /// Takes orders, durable against a SIGKILL of the agent when this returns.
    ///
    /// # Errors
    /// They are refused. A disk that cannot be written is logged, and the orders are followed:
    /// a full disk must not keep a fault from being healed.
    pub fn accept(&mut self, orders: Orders, now: BootTime) -> Result<(), Refusal> {
        self.accept_partly(orders, Unknown::default(), now)
    }

    /// The same with orders that were not understood in full.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub fn accept_partly(
        &mut self,
        orders: Orders,
        unknown: Unknown,
        now: BootTime,
    ) -> Result<(), Refusal> {
        if orders.spec.lab != self.lab || orders.spec.host != self.host {
            return Err(Refusal::NotOurs {
                lab: Box::new(orders.spec.lab),
                host: orders.spec.host,
                own_lab: Box::new(self.lab.clone()),
                own_host: self.host.clone(),
            });
        }
        let accepted = merge(self.accepted.as_ref(), orders, &self.boot_id, now)?;
        self.accepted = Some(Accepted { unknown, ..accepted });
        self.put();
        Ok(())
    }

    /// Forgets all nodes, since the host was removed: an agent that is started again must not start them,
    /// and by then they may run elsewhere.
    pub fn forget_nodes(&mut self) {
        if let Some(accepted) = &mut self.accepted {
            accepted.spec.nodes.clear();
            accepted.retiring.clear();
            self.put();
        }
    }

    /// Forgets a node that is gone.
    pub fn retired(&mut self, node: &NodeName) {
        if let Some(accepted) = &mut self.accepted
            && accepted.retiring.remove(node).is_some()
        {
            self.put();
        }
    }

    /// Notes that a coordinator is heard now, or was until now.
    pub fn note_heard(&mut self, now: BootTime) {
        if let Some(accepted) = &mut self.accepted
            && accepted.spec.terms.dead_man.is_some()
        {
            accepted.terms.heard_ns = i64::try_from(now.ns()).ok();
            accepted.written_ns = now.ns();
            self.put();
        }
    }

    /// When this host heals its faults by itself, if it goes on hearing nobody.
    #[must_use]
    pub fn dead_man_at(&self, now: BootTime) -> Option<BootTime> {
        terms::dead_man_at(self.accepted.as_ref()?, now)
    }

    /// Heals its faults by itself where that is due. Says which.
    pub fn dead_man(&mut self, now: BootTime) -> Vec<FaultName> {
        let is_due = self.dead_man_at(now).is_some_and(|at| at <= now);
        let Some(accepted) = self.accepted.as_mut().filter(|_| is_due) else { return Vec::new() };
        let healed = terms::dead_man_heals(accepted, now);
        self.put();
        healed
    }

    /// Writes down how old the faults are, so that a reboot goes on from there.
    pub fn note_ages(&mut self, now: BootTime) {
        if let Some(accepted) = &mut self.accepted
            && (accepted.deadlines.values().chain(accepted.terms.deadlines()))
                .any(|d| d.boottime_ns.is_some_and(|ns| ns > now.ns()))
        {
            accepted.written_ns = now.ns();
            self.put();
        }
    }

    /// Why the last change is not on disk: with this agent it would be forgotten.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Tries again to write what the disk did not take; true where it took it now.
    pub fn retry(&mut self) -> bool {
        self.trouble.is_some() && {
            self.put();
            self.trouble.is_none()
        }
    }

    fn put(&mut self) {
        let Some(accepted) = &mut self.accepted else { return };
        accepted.sequence += 1;
        self.trouble = write(&self.next, accepted).err().map(|error| {
            tracing::error!(%error, path = %self.next.display(), "keep orders on disk");
            format!("keep orders in {}: {error}", self.next.display())
        });
    }

    /// What makes the last change survive a power cut. It may run on another thread, one at a time.
    pub fn settle(&self) -> impl FnOnce() -> io::Result<()> + Send + 'static {
        let (accepted, path) = (self.accepted.clone(), self.path.clone());
        move || {
            let Some(accepted) = accepted else { return Ok(()) };
            write(&path.with_extension("settling"), &accepted)?;
            File::open(path.with_extension("settling"))?.sync_all()?;
            fs::rename(path.with_extension("settling"), &path)?;
            match path.parent() {
                Some(dir) => File::open(dir)?.sync_all(),
                None => Ok(()),
            }
        }
    }
}

/// What was accepted last by whoever had this directory.
///
/// # Errors
/// The ledger is there and cannot be read.
pub fn read_newest(dir: &Path) -> Result<Option<Accepted>, LedgerError> {
    let settled = read(&dir.join(SETTLED))?;
    // A power cut can leave this one torn: then the settled one holds.
    let newer = read(&dir.join(NEXT)).ok().flatten();
    Ok(match (settled, newer) {
        (Some(old), Some(new)) if new.sequence < old.sequence => Some(old),
        (old, new) => new.or(old),
    })
}

fn read(path: &Path) -> Result<Option<Accepted>, LedgerError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(LedgerError::Disk { verb: "read", path: path.to_owned(), source });
        }
    };
    let refuse = |why: String| LedgerError::Unreadable { path: path.to_owned(), why };
    let accepted: Accepted =
        serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
    if accepted.version > VERSION {
        return Err(refuse(format!("its version {} is newer than {VERSION}", accepted.version)));
    }
    Ok(Some(accepted))
}

fn write(path: &Path, accepted: &Accepted) -> io::Result<()> {
    let bytes = serde_json::to_vec(accepted)?;
    let temporary = path.with_extension("tmp");
    File::create(&temporary)?.write_all(&bytes)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests;
