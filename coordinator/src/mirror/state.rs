//! What the mirror holds and how changes of keys change it. Pure: revisions and time come from outside.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use faultbed_common::{
    lab::{Lab, Phase},
    name::{ClusterName, FaultName, HostName},
    report::HostReport,
};
use serde::Deserialize;
use tokio::time::Instant;

use super::{Begun, Mirror};
use crate::store::{
    Batch, Event, Kv, Revision,
    keys::{self, Keys, KeysError, Kvs},
};

/// When keys are seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// On our clock.
    pub(super) at: Instant,
    /// Milliseconds since the epoch where keys may have been there for long, as in a list: only
    /// this clock is shared with who wrote them. `None` is while they change.
    pub(super) unix_ms: Option<u64>,
    /// Nothing that is seen now came before this; `None` is not known. Bounds what a clock that was
    /// stepped can do.
    pub(super) earliest: Option<Instant>,
}

impl Moment {
    /// The moment at which something came that carries this stamp.
    pub(super) fn came(self, stamp_unix_ms: Option<u64>) -> Instant {
        let age = self.unix_ms.zip(stamp_unix_ms).map(|(now, then)| now.saturating_sub(then));
        let age = Duration::from_millis(age.unwrap_or_default());
        let came = self.at.checked_sub(age).unwrap_or(self.at);
        self.earliest.map_or(came, |earliest| came.max(earliest.min(self.at)))
    }
}

/// A stored report, without the report.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Stamp {
    #[serde(default)]
    pub(super) received_unix_ms: Option<u64>,
    #[serde(default)]
    pub(super) boot_unix_ms: Option<u64>,
}

/// The keys of a lab and what they amount to.
#[derive(Debug)]
pub(super) struct State {
    pub(super) keys: Keys,
    /// All but history, which nobody needs until it is asked for.
    kvs: Kvs,
    pub(super) mirror: Mirror,
    unreadable: Option<String>,
    store_trouble: Option<String>,
    /// What has happened since the mirror was shown last.
    pub(super) stir: Stir,
    /// The revision at which the lab was read last.
    read_at: Revision,
    /// Reports that this coordinator has written.
    fresh: Arc<Fresh>,
}

/// Reports on their way through the store: whoever wrote one need not read it again when it comes back, and
/// in a lab of hundreds of hosts reports are most of what comes.
#[derive(Debug, Default)]
pub(super) struct Fresh(Mutex<BTreeMap<HostName, Written>>);

/// A report that was written, as a text and as what it says.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) value: Vec<u8>,
    pub(super) stamp: Stamp,
    pub(super) report: Arc<HostReport>,
}

impl Fresh {
    /// One report is kept for each host: the newest.
    pub(super) fn put(&self, host: HostName, written: Written) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(host, written);
    }

    /// What a value says that was written here, once.
    fn take(&self, host: &HostName, value: &[u8]) -> Option<Written> {
        let mut fresh = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_this = fresh.get(host).is_some_and(|written| written.value == value);
        if is_this { fresh.remove(host) } else { None }
    }
}

/// Who has to look at what has happened.
#[derive(Debug, Default)]
pub(super) struct Stir {
    /// Whoever tells hosts.
    pub(super) lab: bool,
    /// Whoever shows people what is so.
    pub(super) news: bool,
}

/// What a change of keys makes necessary.
#[derive(Debug, Default)]
struct Dirty {
    lab: bool,
    specs: bool,
}

impl State {
    /// The state after a first list. A lab that cannot be read is an error only here: later the
    /// last good one stays.
    pub(super) fn new(
        keys: Keys,
        (new, fresh): (Lab, Arc<Fresh>),
        (revision, kvs): (Revision, Vec<Kv>),
        now: Moment,
    ) -> Result<Self, KeysError> {
        let mirror = Mirror {
            lab: Arc::new(new),
            head: Revision::ABSENT,
            specs: Arc::default(),
            reports: BTreeMap::new(),
            alive: BTreeSet::new(),
            pki: Arc::default(),
            seen: BTreeMap::new(),
            booted: BTreeMap::new(),
            begun: BTreeMap::new(),
            leased: BTreeMap::new(),
            trouble: None,
            revision,
            unfolded: false,
        };
        let mut state = Self {
            keys,
            kvs: Kvs::new(),
            mirror,
            unreadable: None,
            store_trouble: None,
            stir: Stir::default(),
            read_at: revision,
            fresh,
        };
        for kv in kvs {
            state.event(Event::Put(kv), now);
        }
        state.read((&Dirty { lab: true, specs: true }, None), now)?;
        Ok(state)
    }

    /// Takes a new list for the old one.
    pub(super) fn replace(&mut self, revision: Revision, kvs: Vec<Kv>, now: Moment) {
        let there: BTreeSet<_> = kvs.iter().map(|kv| kv.key.clone()).collect();
        let gone = self.kvs.keys().filter(|key| !there.contains(*key)).cloned();
        for key in gone.collect::<Vec<_>>() {
            self.event(Event::Delete(key), now);
        }
        for kv in kvs {
            // What has not changed since is not news: a report keeps its age.
            if self.kvs.get(&kv.key) != Some(&kv) {
                self.event(Event::Put(kv), now);
            }
        }
        self.mirror.revision = revision;
        self.refresh((&Dirty { lab: true, specs: true }, None), now);
    }

    /// Takes one whole revision.
    pub(super) fn apply(&mut self, batch: Batch, now: Moment) {
        let mut dirty = Dirty::default();
        for event in batch.events {
            let below = self.keys.below(event.key()).unwrap_or_default();
            dirty.lab |= below == "head" || below.starts_with("accepted/");
            dirty.specs |= below == "head" || below.starts_with("spec/");
            self.event(event, now);
        }
        self.mirror.revision = batch.revision;
        self.refresh((&dirty, Some(self.read_at)), now);
    }

    /// Says whether, and why, the store does not answer.
    pub(super) fn store_trouble(&mut self, why: Option<String>) {
        self.store_trouble = why;
        self.show_trouble();
    }

    fn show_trouble(&mut self) {
        let trouble = self.unreadable.as_ref().or(self.store_trouble.as_ref());
        self.stir.lab |= trouble != self.mirror.trouble.as_ref();
        self.mirror.trouble = trouble.cloned();
    }

    fn event(&mut self, event: Event, now: Moment) {
        let below = self.keys.below(event.key()).unwrap_or_default().to_owned();
        let value = match &event {
            Event::Put(kv) => Some(kv.value.as_slice()),
            Event::Delete(_) => None,
        };
        if below.starts_with("history/") {
            return;
        } else if let Some(host) = below.strip_prefix("observed/") {
            self.report(host, value, now);
        } else if let Some(Ok(host)) = below.strip_prefix("alive/").map(HostName::parse) {
            match value {
                Some(_) => self.mirror.alive.insert(host),
                None => self.mirror.alive.remove(&host),
            };
            self.stir.news = true;
        }
        if let Some(below) = below.strip_prefix("pki/") {
            self.trust(below, &event);
        }
        match event {
            Event::Put(kv) => self.kvs.insert(kv.key.clone(), kv),
            Event::Delete(key) => self.kvs.remove(&key),
        };
    }

    fn trust(&mut self, below: &str, event: &Event) {
        // Tokens are read when somebody brings one, from the store itself.
        if below.starts_with("token/") {
            return;
        }
        self.stir.lab = true;
        let pki = Arc::make_mut(&mut self.mirror.pki);
        match event {
            Event::Put(kv) => pki.insert(below.to_owned(), kv.clone()),
            Event::Delete(_) => pki.remove(below),
        };
    }

    fn report(&mut self, host: &str, value: Option<&[u8]>, now: Moment) {
        let Ok(name) = HostName::parse(host) else { return };
        let written = value.and_then(|value| self.fresh.take(&name, value));
        let read = |value: &[u8]| match written {
            Some(Written { stamp, report, .. }) => Ok((stamp, report)),
            None => serde_json::from_slice::<HostReport>(value).map(|report| {
                let stamp = serde_json::from_slice::<Stamp>(value).unwrap_or_default();
                (stamp, Arc::new(report))
            }),
        };
        match value.map(read) {
            Some(Ok((stamp, report))) => {
                let before = self.mirror.reports.get(&name);
                self.stir.news |=
                    before.is_none_or(|before| before.without_ages() != report.without_ages());
                let came = now.came(stamp.received_unix_ms);
                match stamp.boot_unix_ms {
                    Some(booted) => self.mirror.booted.insert(name.clone(), booted),
                    None => self.mirror.booted.remove(&name),
                };
                self.mirror.reports.insert(name.clone(), report);
                self.mirror.seen.insert(name, came);
            }
            // The last report that could be read stays, and ages.
            Some(Err(error)) => tracing::warn!(host, %error, "reading a report failed"),
            None => {
                self.stir.news = true;
                self.mirror.reports.remove(&name);
                self.mirror.seen.remove(&name);
                self.mirror.booted.remove(&name);
            }
        }
    }

    fn refresh(&mut self, (dirty, before): (&Dirty, Option<Revision>), now: Moment) {
        if !dirty.lab && !dirty.specs {
            return;
        }
        self.stir.lab = true;
        self.unreadable = match self.read((dirty, before), now) {
            Ok(()) => None,
            Err(error) => {
                tracing::error!(%error, "reading the lab failed, the last good one stays");
                Some(error.to_string())
            }
        };
        self.show_trouble();
    }

    /// Reads what is dirty. `before` is the revision at which the mirror's lab was read, where all that was
    /// written since was seen one by one.
    fn read(
        &mut self,
        (dirty, before): (&Dirty, Option<Revision>),
        now: Moment,
    ) -> Result<(), KeysError> {
        // A lab with a staged change was not made of the keys alone.
        let before = before.filter(|_| !self.mirror.unfolded).map(|at| (&*self.mirror.lab, at));
        let lab = keys::lab_after(before, &self.keys, &self.kvs)?;
        let (Some((head, revision)), Some(lab)) = (keys::head_from(&self.keys, &self.kvs)?, lab)
        else {
            let key = String::from_utf8_lossy(&self.keys.head()).into_owned();
            return Err(KeysError::Unreadable { key, why: "it is gone".into() });
        };
        let specs = keys::specs_from(&self.keys, &self.kvs)?;
        if dirty.lab && *self.mirror.lab != lab {
            self.mirror.begun = begun(&self.mirror.begun, faults(&lab), now);
            self.mirror.leased = begun(&self.mirror.leased, leases(&lab), now);
            self.mirror.lab = Arc::new(lab);
        }
        if *self.mirror.specs != specs {
            self.mirror.specs = Arc::new(specs);
        }
        self.mirror.head = revision;
        self.read_at = self.mirror.revision;
        self.mirror.unfolded = head.staged.is_some();
        Ok(())
    }
}

/// The faults in force, with when each says it began.
fn faults(lab: &Lab) -> impl Iterator<Item = (FaultName, u64)> + '_ {
    lab.faults.iter().filter_map(|(name, fault)| match fault.phase {
        Phase::Active { since_unix_ms } => Some((name.clone(), since_unix_ms)),
        Phase::Pending { .. } | Phase::Ended { .. } => None,
    })
}

/// The leases of clusters, and with no name the lab's, likewise.
fn leases(lab: &Lab) -> impl Iterator<Item = (Option<ClusterName>, u64)> + '_ {
    let of_clusters = lab
        .clusters
        .iter()
        .filter_map(|(name, cluster)| Some((Some(name.clone()), cluster.lease.as_ref()?)));
    let of_lab = lab.settings.lease.iter().map(|lease| (None, lease));
    of_clusters.chain(of_lab).map(|(name, lease)| (name, lease.since_unix_ms))
}

/// When all these began, of which some were known.
fn begun<K: Ord>(
    known: &BTreeMap<K, Begun>,
    now_there: impl Iterator<Item = (K, u64)>,
    now: Moment,
) -> BTreeMap<K, Begun> {
    let moment = |(name, since_unix_ms): (K, u64)| {
        let same = known.get(&name).filter(|begun| begun.since_unix_ms == since_unix_ms).copied();
        let fresh = || Begun { since_unix_ms, at: now.came(Some(since_unix_ms)) };
        (name, same.unwrap_or_else(fresh))
    };
    now_there.map(moment).collect()
}
