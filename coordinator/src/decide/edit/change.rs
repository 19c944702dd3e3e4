//! One change while it is being decided: the lab as it becomes, and everything that the parts share.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    blueprint::Blueprint,
    compile::check_after,
    edit::EditReply,
    generation::FaultRevision,
    lab::{ENDED_FAULTS_MAX, Ended, Fault, Lab, Means, NodeRef, Origin, Phase, Resolved},
    link::Party,
    name::{ClusterName, FaultName, NodeName},
    nearest::nearest,
    program::{Content, Needs},
    report::NodeReport,
    shape,
    target::{self, Reports},
};

use super::{Asked, Decision, Refusal, control, diff, invalid};

/// A change that is being decided. Nothing outside it changes before [`Change::finish`].
#[derive(Debug)]
pub(in crate::decide) struct Change<'a> {
    /// The lab before it.
    pub before: &'a Lab,
    /// The lab as it becomes.
    pub lab: Lab,
    /// What hosts report.
    pub reports: &'a Reports,
    /// Who asks, and when.
    pub asked: &'a Asked,
    /// Blueprints that came with the request; `None` where none can come.
    pub blueprints: Option<&'a BTreeMap<String, Blueprint>>,
    /// May touch what others own.
    pub everyone: bool,
    /// May take nodes away that cannot leave without losing data.
    pub force: bool,
    /// How objects come that are made now.
    pub means: Means,
    /// Things to know that do not prevent it.
    pub notes: Vec<String>,
    /// What the asker must do before it can be accepted.
    pub needs: Needs,
    /// Contents that it takes from the asker, by path.
    pub takes: BTreeMap<String, Content>,
}

impl<'a> Change<'a> {
    pub(in crate::decide) fn new(before: &'a Lab, reports: &'a Reports, asked: &'a Asked) -> Self {
        Self {
            before,
            lab: before.clone(),
            reports,
            asked,
            blueprints: None,
            everyone: false,
            force: false,
            means: Means::Verb,
            notes: Vec::new(),
            needs: Needs::default(),
            takes: BTreeMap::new(),
        }
    }

    /// The origin of an object that is made now.
    pub(in crate::decide) fn origin(&self) -> Origin {
        Origin { owner: self.asked.by.clone(), by: self.means }
    }

    /// The revision of a fault that is made or changed now. Generations only grow, so a fault that
    /// was deleted and comes back is newer than what hosts remember of it.
    pub(in crate::decide) fn revision(&self) -> FaultRevision {
        FaultRevision(self.before.generation.next().0)
    }

    /// Whether the one who asks may touch an object of this origin.
    pub(in crate::decide) fn may_touch(&self, origin: &Origin) -> bool {
        self.everyone || origin.owner == self.asked.by
    }

    /// Refuses where the object is somebody else's.
    pub(in crate::decide) fn own(&self, what: &str, origin: &Origin) -> Result<(), Refusal> {
        if self.may_touch(origin) {
            return Ok(());
        }
        Err(invalid(format!("{what} belongs to {}; --everyone touches it too", origin.owner)))
    }

    pub(in crate::decide) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// What its host reports of a node.
    pub(in crate::decide) fn seen(&self, name: &NodeName) -> Option<&'a NodeReport> {
        let host = &self.lab.node(name)?.placement.host;
        self.reports.get(host)?.nodes.get(name)
    }

    /// Whether a node is known not to run.
    pub(in crate::decide) fn is_down(&self, name: &NodeName) -> bool {
        self.seen(name).is_some_and(|seen| seen.observed.is_down())
    }

    /// Ends the change: settles faults, compiles to be sure, and says what became of everything.
    pub(in crate::decide) fn finish(mut self, what: String) -> Result<Decision, Refusal> {
        self.settle_faults();
        self.bound_ended();
        self.lab.generation = self.before.generation;
        let changed = self.lab != *self.before;
        if changed {
            self.lab.generation = self.before.generation.next();
            // What was accepted compiles, so only what is new is tried.
            check_after(self.before, &self.lab).map_err(invalid)?;
            control::check(self.before, &self.lab, self.asked)?;
        }
        let reply = EditReply {
            generation: self.lab.generation,
            changed,
            objects: diff::objects(self.before, &self.lab),
            nodes: diff::fates(self.before, &self.lab, |name| {
                let host = &self.before.node(name)?.placement.host;
                Some(self.reports.get(host)?.nodes.get(name)?.observed)
            }),
            resolved: diff::resolved(self.before, &self.lab),
            notes: self.notes,
            needs: self.needs,
        };
        Ok(Decision { lab: self.lab, reply, what, takes: self.takes })
    }

    /// Takes nodes that are gone out of faults, and ends faults that have nothing left to act on.
    fn settle_faults(&mut self) {
        let names: BTreeSet<NodeName> = self.lab.nodes().map(|node| node.name.clone()).collect();
        // Nobody goes where all clusters stay as they are; what is looked at is not copied.
        let may_go = self.lab.clusters != self.before.clusters;
        let mut faults = std::mem::take(&mut self.lab.faults);
        for (name, fault) in &mut faults {
            let is_over = match &fault.phase {
                Phase::Ended { .. } => continue,
                Phase::Active { .. } => {
                    if may_go {
                        prune(&mut fault.resolved, &names);
                    }
                    fault.resolved.is_empty()
                }
                Phase::Pending { .. } => {
                    if may_go {
                        prune(&mut fault.resolved, &names);
                    }
                    target::clusters(&self.lab, &shape::targets(&fault.spec)).is_err()
                }
            };
            if is_over {
                fault.phase = self.ended(Ended::Healed);
                self.note(format!("{name} ended: what it acts on is gone"));
            }
        }
        self.lab.faults = faults;
    }

    /// The phase of a fault that ends now.
    pub(in crate::decide) fn ended(&self, how: Ended) -> Phase {
        Phase::Ended { how, at_unix_ms: self.asked.now_unix_ms }
    }

    /// Forgets the oldest ended faults beyond the bound. Those of the file stay: the file bounds
    /// them, and a forgotten one would be injected again by the next `apply`.
    fn bound_ended(&mut self) {
        let ended_at = |fault: &Fault| match fault.phase {
            Phase::Ended { at_unix_ms, .. } => Some(at_unix_ms),
            Phase::Pending { .. } | Phase::Active { .. } => None,
        };
        let mut ended: Vec<(u64, FaultRevision, FaultName)> = self
            .lab
            .faults
            .iter()
            .filter(|(_, fault)| fault.origin.by != Means::Apply)
            .filter_map(|(name, fault)| Some((ended_at(fault)?, fault.revision, name.clone())))
            .collect();
        ended.sort();
        let excess = ended.len().saturating_sub(ENDED_FAULTS_MAX);
        for (_, _, name) in &ended[..excess] {
            self.lab.faults.remove(name);
        }
    }

    /// Of these clusters the ones that are not `owner`'s, each with whose it is, in words:
    /// `cluster db belongs to bob`.
    pub(in crate::decide) fn others<'n>(
        &self,
        owner: &str,
        clusters: impl IntoIterator<Item = &'n ClusterName>,
    ) -> Vec<String> {
        let clusters: BTreeSet<&ClusterName> = clusters.into_iter().collect();
        let known =
            clusters.into_iter().filter_map(|name| Some((name, self.lab.clusters.get(name)?)));
        known
            .filter(|(_, cluster)| cluster.origin.owner != owner)
            .map(|(name, cluster)| format!("cluster {name} belongs to {}", cluster.origin.owner))
            .collect()
    }

    /// The clusters that a fault meets.
    pub(in crate::decide) fn met(&self, resolved: &Resolved) -> BTreeSet<ClusterName> {
        let nodes = resolved.touched().into_iter();
        nodes.filter_map(|name| Some(self.lab.node(name)?.cluster_name.clone())).collect()
    }

    /// Refuses where a node is of somebody else's cluster.
    pub(in crate::decide) fn own_nodes<'n>(
        &self,
        names: impl IntoIterator<Item = &'n NodeName>,
    ) -> Result<(), Refusal> {
        for name in names {
            if let Some(NodeRef { cluster_name, cluster, .. }) = self.lab.node(name) {
                self.own(&format!("cluster {cluster_name}"), &cluster.origin)?;
            }
        }
        Ok(())
    }
}

fn prune(resolved: &mut Resolved, names: &BTreeSet<NodeName>) {
    let is_there = |party: &Party| party.node().is_none_or(|name| names.contains(name));
    resolved.links.retain(|link| is_there(&link.from) && is_there(&link.to));
    resolved.nodes.retain(|name| names.contains(name));
    resolved.untouched.retain(|name| names.contains(name));
    for group in &mut resolved.groups {
        group.retain(|word| word.parse::<Party>().is_ok_and(|party| is_there(&party)));
    }
}

/// The valid name that is meant, as the end of a sentence.
pub(super) fn did_you_mean<'n>(word: &str, valid: impl IntoIterator<Item = &'n str>) -> String {
    let valid: Vec<&str> = valid.into_iter().collect();
    match nearest(word, valid.iter().copied()) {
        Some(near) => format!("; did you mean {near:?}?"),
        None if valid.is_empty() => String::new(),
        None => format!("; there are {}", valid.join(", ")),
    }
}
