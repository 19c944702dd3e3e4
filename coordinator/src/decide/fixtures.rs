//! Labs, reports and requests for the tests of decisions.

use std::{collections::BTreeMap, sync::Arc};

use faultbed_common::{
    edit::{Edit, EditRequest, NodeVerb},
    fault::FaultSpec,
    generation::Incarnation,
    host_spec::Wanted,
    lab::{Host, Lab, Phase},
    name::{FaultName, HostName, NodeName},
    program::Files,
    report::{FaultReport, HostReport, NodeReport, NodeState},
    spec::LabFile,
    target::Reports,
    tls::ClusterAuthority,
};

use super::{
    edit::{Asked, Decision, Refusal, decide},
    status::{Detail, HostSeen},
};

/// A lab that is changed by requests, the hosts that obey it, and its clock.
pub(super) struct World {
    pub lab: Lab,
    pub reports: Reports,
    pub by: String,
    pub everyone: bool,
    pub force: bool,
    pub files: Files,
    pub now: u64,
}

/// Three hosts and nothing on them.
pub(super) fn empty() -> World {
    let mut lab = Lab::new("dev".parse().unwrap(), 5);
    for n in 1..=3_u8 {
        let host = Host::new([127, 77, 5, n].into(), format!("/lab/h{n}").into());
        lab.hosts.insert(format!("h{n}").parse().unwrap(), host);
    }
    World {
        lab,
        reports: Reports::new(),
        by: "ada".to_owned(),
        everyone: false,
        force: false,
        files: Files::default(),
        now: 1_000_000,
    }
}

/// Three hosts and the etcd cluster `kv`, ready, led by kv-1 in term 2.
pub(super) fn ready() -> World {
    let mut world = empty();
    world.apply("[cluster.kv]\nblueprint = \"etcd\"\n").unwrap();
    world.obey();
    world.chores();
    assert!(world.lab.clusters[&key("kv")].has_been_ready());
    world
}

pub(super) fn file(text: &str) -> Box<LabFile> {
    Box::new(toml::from_str(text).unwrap())
}

pub(super) fn fault(text: &str) -> Box<FaultSpec> {
    Box::new(toml::from_str(text).unwrap())
}

pub(super) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

impl World {
    pub(super) fn asked(&self) -> Asked {
        Asked {
            by: self.by.clone(),
            now_unix_ms: self.now,
            dice: 7,
            control: std::collections::BTreeSet::new(),
            authority: Ok(ClusterAuthority {
                certificate: "certificate".to_owned(),
                key: "key".to_owned(),
            }),
        }
    }

    /// Decides and, where it is not refused, accepts.
    pub(super) fn edit(&mut self, edit: Edit) -> Result<Decision, Refusal> {
        let request = EditRequest {
            edit,
            plan: false,
            if_generation: None,
            blueprints: BTreeMap::new(),
            everyone: self.everyone,
            force: self.force,
            files: self.files.clone(),
        };
        let before = self.lab.clone();
        let decision = decide(&self.lab, &self.reports, &request, &self.asked())?;
        if !decision.reply.needs.is_empty() {
            return Ok(decision);
        }
        check_step(&before, &decision);
        self.lab = decision.lab.clone();
        Ok(decision)
    }

    pub(super) fn apply(&mut self, text: &str) -> Result<Decision, Refusal> {
        self.edit(Edit::Apply(file(text)))
    }

    pub(super) fn inject(&mut self, text: &str) -> Result<FaultName, Refusal> {
        let decision = self.edit(Edit::Inject { name: None, spec: fault(text), replace: false })?;
        Ok(decision.reply.resolved.keys().next().unwrap().clone())
    }

    pub(super) fn verb(&mut self, targets: &str, verb: NodeVerb) -> Result<Decision, Refusal> {
        self.edit(Edit::Node { targets: vec![targets.to_owned()], verb })
    }

    /// How long ago faults in force began.
    fn ages(&self) -> BTreeMap<FaultName, u64> {
        let age = |fault: &faultbed_common::lab::Fault| match fault.phase {
            Phase::Active { since_unix_ms } => Some(self.now.saturating_sub(since_unix_ms)),
            Phase::Pending { .. } | Phase::Ended { .. } => None,
        };
        let faults = self.lab.faults.iter();
        faults.filter_map(|(name, fault)| Some((name.clone(), age(fault)?))).collect()
    }

    /// Does the chores that are due, in words.
    pub(super) fn chores(&mut self) -> Option<String> {
        let decision = super::chores::due(&self.lab, &self.reports, &self.ages(), &self.asked())?;
        check_step(&self.lab, &decision);
        self.lab = decision.lab;
        Some(decision.what)
    }

    /// Every host has done what it is told and reports so.
    pub(super) fn obey(&mut self) {
        let specs = faultbed_common::compile::compile(&self.lab).unwrap();
        self.reports = specs
            .into_iter()
            .map(|(host, spec)| {
                let mut report = HostReport {
                    host: Some(host.clone()),
                    now_ms: 60_000,
                    generation: spec.generation,
                    ..HostReport::default()
                };
                for (name, node) in spec.nodes {
                    for (fault, on_node) in &node.faults {
                        let seen = FaultReport {
                            revision: on_node.revision,
                            active: true,
                            ..FaultReport::default()
                        };
                        report.faults.insert(fault.clone(), seen);
                    }
                    report
                        .nodes
                        .insert(name.clone(), obeying(&name, node.wanted, node.incarnation));
                }
                for (fault, of_links) in spec.proxy.faults {
                    let seen = FaultReport {
                        revision: of_links.revision,
                        active: true,
                        grade: Some(faultbed_common::fault::Grade::Packet),
                        remaining_ms: of_links.lasts.map(|span| span.0.as_millis() as u64),
                        ..FaultReport::default()
                    };
                    report.faults.insert(fault, seen);
                }
                (host, Arc::new(report))
            })
            .collect();
    }

    /// The hosts as a coordinator sees them: connected, heard half a second ago.
    pub(super) fn seen(&self) -> BTreeMap<HostName, HostSeen> {
        let seen = |report: &Arc<HostReport>| HostSeen {
            report: report.clone(),
            connected: true,
            age_ms: 500,
            boot_unix_ms: None,
        };
        self.reports.iter().map(|(host, report)| (host.clone(), seen(report))).collect()
    }

    pub(super) fn status(&self) -> faultbed_common::status::Status {
        super::status::status(&self.lab, &self.seen(), &[], (self.now, Detail::All))
    }

    /// What a host reports, to be changed.
    pub(super) fn said(&mut self, host: &str) -> &mut HostReport {
        Arc::make_mut(self.reports.get_mut(&key(host)).unwrap())
    }

    /// Changes what is reported of one node.
    pub(super) fn report(&mut self, name: &str, change: impl FnOnce(&mut NodeReport)) {
        let name = node(name);
        let host = self.lab.node(&name).unwrap().placement.host.clone();
        change(self.said(host.as_str()).nodes.get_mut(&name).unwrap());
    }

    pub(super) fn placement(&self, name: &str) -> &faultbed_common::lab::Placement {
        self.lab.node(&node(name)).unwrap().placement
    }
}

fn obeying(name: &NodeName, wanted: Wanted, incarnation: Incarnation) -> NodeReport {
    let runs = wanted == Wanted::Running;
    NodeReport {
        observed: if runs { NodeState::Ready } else { NodeState::Stopped },
        since_ms: 50_000,
        incarnation,
        pid: runs.then_some(4242),
        been_ready: runs,
        leader: runs.then(|| name.as_str().ends_with("-1")),
        term: runs.then_some(2),
        ..NodeReport::default()
    }
}

/// The laws of every accepted change.
fn check_step(before: &Lab, decision: &Decision) {
    let Decision { lab, reply, what, takes: _ } = decision;
    assert!(!what.is_empty());
    let mut same = lab.clone();
    same.generation = before.generation;
    assert_eq!(reply.changed, same != *before, "changed says whether anything changed");
    let grown = u64::from(reply.changed);
    assert_eq!(lab.generation.0, before.generation.0 + grown, "a change is one generation");
    assert_eq!(reply.generation, lab.generation);
    for (name, fault) in &lab.faults {
        let targets = fault.resolved.is_empty();
        assert!(!(fault.is_active() && targets), "{name} is in force on nothing");
    }
    for found in lab.nodes() {
        if let Some(old) = before.node(found.name) {
            assert!(found.placement.incarnation >= old.placement.incarnation);
            assert!(found.placement.wipes >= old.placement.wipes);
        }
    }
    assert!(faultbed_common::compile::compile(lab).is_ok(), "an accepted lab compiles");
}

/// A name, to look something up by.
pub(crate) fn key<K: faultbed_common::name::Kind>(text: &str) -> faultbed_common::name::Name<K> {
    text.parse().unwrap()
}
