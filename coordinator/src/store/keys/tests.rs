//! Tests of the keys: a naive store of transactions stands for the real one.

mod after;

use std::collections::BTreeMap;

use faultbed_common::{
    blueprint::Blueprint,
    edit::{HistoryEntry, ObjectChange},
    fault::{FaultSpec, Lasts, Targets},
    generation::{FaultRevision, Generation, Incarnation},
    host_spec::{StopBy, Wanted},
    lab::{Cluster, Fault, Host, Lab, Means, Origin, Phase, Placement, RemovedHost, Resolved},
    link::Link,
    name::{ClusterName, FaultName, HostName, LabName, NodeName, RoleName},
    spec::{ClusterSpec, NodeOverride, RoleSpec},
};

use super::{
    HISTORY_ENTRY_BYTES_MAX, HISTORY_KEPT, HandEdit, Keys, KeysError, Kvs, OpId, Record, Seen,
    SpecKey, commit, folds, found, hand_edits, head_from, lab_from, specs_from,
};
use crate::store::{Op, Revision, TXN_BYTES_MAX, TXN_OPS_MAX, Txn, TxnOut, core::Core};

const OTHER_OP: u128 = 99;

/// The keys of a lab in a core.
struct Fixture {
    keys: Keys,
    core: Core,
}

impl Fixture {
    fn new() -> Self {
        Self { keys: Keys::new(&lab(0).name), core: Core::new() }
    }

    /// With an empty lab in it.
    fn founded() -> Self {
        let mut fixture = Self::new();
        assert!(fixture.txn(&found(&fixture.keys.clone(), &lab(0))).succeeded);
        fixture
    }

    fn txn(&mut self, txn: &Txn) -> TxnOut {
        let (out, commit) = self.core.decide(txn).unwrap();
        if let Some(commit) = commit {
            self.core.apply(commit, std::time::Duration::ZERO);
        }
        out
    }

    fn kvs(&self) -> Kvs {
        let kvs = self.core.range(self.keys.prefix().as_bytes());
        kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect()
    }

    fn lab(&self) -> Lab {
        lab_from(&self.keys, &self.kvs()).unwrap().unwrap()
    }

    fn head(&self) -> Revision {
        head_from(&self.keys, &self.kvs()).unwrap().unwrap().1
    }

    fn text(&self, below: &str) -> Option<String> {
        let key = format!("{}{below}", self.keys.prefix()).into_bytes();
        self.kvs().get(&key).map(|kv| String::from_utf8(kv.value.clone()).unwrap())
    }

    fn edit(&mut self, below: &str, value: &str) {
        let key = format!("{}{below}", self.keys.prefix());
        self.txn(&Txn { then: vec![Op::put(key, value)], ..Txn::default() });
    }

    /// The transactions of a change of what is there now.
    fn change(&self, after: &Lab, op: u128) -> Vec<Txn> {
        let specs = specs_from(&self.keys, &self.kvs()).unwrap();
        let seen = Seen { head: self.head(), specs: &specs };
        let entry = entry(after.generation.0);
        commit(&self.keys, (Some(&self.lab()), after), (&entry, &OpId::new(op)), seen).unwrap()
    }

    fn accept(&mut self, after: &Lab) {
        for txn in self.change(after, 1) {
            txn.check().unwrap();
            assert!(self.txn(&txn).succeeded);
        }
    }

    fn edits(&self) -> Vec<HandEdit> {
        hand_edits(&self.lab(), &specs_from(&self.keys, &self.kvs()).unwrap())
    }
}

fn entry(generation: u64) -> HistoryEntry {
    HistoryEntry {
        generation: Generation(generation),
        at_unix_ms: 5,
        by: "ann".into(),
        what: "restart kv-1".into(),
        objects: Vec::new(),
    }
}

fn lab(generation: u64) -> Lab {
    Lab {
        name: LabName::parse("demo").unwrap(),
        octet: 7,
        generation: Generation(generation),
        hosts: BTreeMap::new(),
        clusters: BTreeMap::new(),
        faults: BTreeMap::new(),
        removed_wiped: BTreeMap::new(),
        settings: Default::default(),
        removed_hosts: BTreeMap::new(),
        kept: BTreeMap::new(),
    }
}

fn origin() -> Origin {
    Origin { owner: "ann".into(), by: Means::Verb }
}

fn node(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

/// A cluster that uses every kind of field that JSON could trip over.
fn cluster(args: &str) -> Cluster {
    let role = RoleName::parse("etcd").unwrap();
    let mut spec = ClusterSpec { blueprint: "etcd".into(), ..ClusterSpec::default() };
    let other = NodeOverride { path: Some("bin/next".into()), ..NodeOverride::default() };
    let role_spec = RoleSpec {
        count: Some(3),
        args: vec![args.into()],
        node: BTreeMap::from([(2, other)]),
        ..RoleSpec::default()
    };
    spec.roles.insert(role.clone(), role_spec);
    let placement = Placement {
        role: role.clone(),
        index: 1,
        host: HostName::parse("h1").unwrap(),
        private: "127.128.0.1".parse().unwrap(),
        ports: BTreeMap::new(),
        block: None,
        wanted: Wanted::Stopped,
        incarnation: Incarnation(3),
        stop_by: StopBy::Signal(9),
        wipes: 1,
        recalled: 0,
        joined: true,
        pushed: None,
    };
    let blueprint = serde_json::json!({ "name": "etcd", "summary": "", "role": {
        "etcd": { "program": "etcd", "count": 3, "port": { "client": { "default": 2379 } } } } });
    let blueprint: Blueprint = serde_json::from_value(blueprint).unwrap();
    Cluster {
        spec,
        blueprint,
        origin: origin(),
        nodes: BTreeMap::from([(node("kv-1"), placement)]),
        last_index: BTreeMap::from([(role.clone(), 3)]),
        been_ready: [role].into(),
        relist: faultbed_common::lab::Relist::default(),
        token: "t".into(),
        lease: None,
        authority: None,
    }
}

fn fault(phase: Phase) -> Fault {
    let spec = FaultSpec {
        isolate: Some(Targets::split("leader:kv,kv-2")),
        lasts: Some(Lasts::UntilHealed),
        ..FaultSpec::default()
    };
    let resolved = Resolved {
        links: [Link::between(&node("kv-1"), &node("kv-2"))].into(),
        ..Resolved::default()
    };
    Fault {
        spec,
        origin: origin(),
        revision: FaultRevision(2),
        phase,
        resolved,
        everyone: false,
        ended_because: None,
    }
}

fn full(generation: u64) -> Lab {
    let mut lab = lab(generation);
    let mut host = Host::new("127.77.7.1".parse().unwrap(), "/h1".into());
    host.relabel(|said| said.file = BTreeMap::from([("dc".into(), "east".into())]));
    lab.hosts.insert(HostName::parse("h1").unwrap(), host);
    lab.clusters.insert(ClusterName::parse("kv").unwrap(), cluster("--a=1").into());
    lab.faults.insert(
        FaultName::parse("split").unwrap(),
        fault(Phase::Active { since_unix_ms: 17 }).into(),
    );
    lab
}

/// A lab too large for one transaction.
fn many(generation: u64, args: &str) -> Lab {
    let mut lab = full(generation);
    for n in 0..200 {
        lab.clusters.insert(ClusterName::parse(&format!("c{n}")).unwrap(), cluster(args).into());
    }
    lab
}

#[test]
fn a_lab_that_is_not_there_is_none() {
    assert_eq!(lab_from(&Fixture::new().keys, &Kvs::new()), Ok(None));
}

#[test]
fn a_lab_is_founded_once() {
    let mut fixture = Fixture::founded();
    assert_eq!(fixture.lab(), lab(0));
    let again = found(&fixture.keys, &lab(0));
    assert!(!fixture.txn(&again).succeeded);
}

#[test]
fn what_is_accepted_is_what_is_read() {
    let mut fixture = Fixture::founded();
    fixture.accept(&full(1));
    assert_eq!(fixture.lab(), full(1));
    let mut ended = full(2);
    for fault in ended.faults.values_mut() {
        fault.phase = Phase::Pending { why: "kv not ready".into() };
    }
    fixture.accept(&ended);
    assert_eq!(fixture.lab(), ended);
    fixture.accept(&lab(3));
    assert_eq!(fixture.lab(), lab(3));
    assert_eq!(fixture.text("spec/cluster/kv"), None);
    assert_eq!(fixture.text("accepted/cluster/kv"), None);
}

#[test]
fn a_change_is_one_transaction_that_another_change_prevents() {
    let mut fixture = Fixture::founded();
    let (mine, other) = (fixture.change(&full(1), 1), fixture.change(&full(1), OTHER_OP));
    assert_eq!((mine.len(), other.len()), (1, 1));
    assert!(fixture.txn(&other[0]).succeeded);
    let out = fixture.txn(&mine[0]);
    assert!(!out.succeeded);
    let record: Record = serde_json::from_slice(&out.got[0].as_ref().unwrap().value).unwrap();
    assert_eq!(record.op, OpId::new(OTHER_OP));
    assert_eq!(record.entry, entry(1));
}

#[test]
fn a_host_that_is_removed_is_no_member_any_more_and_others_are() {
    let mut fixture = Fixture::founded();
    for host in ["h1", "h2"] {
        fixture.edit(&format!("pki/member/host/{host}"), "{}");
    }
    let mut after = lab(1);
    let removed = RemovedHost { by: "ann".into(), generation: Generation(1) };
    after.removed_hosts.insert(HostName::parse("h1").unwrap(), removed);
    fixture.accept(&after);
    assert_eq!(fixture.text("pki/member/host/h1"), None);
    assert!(fixture.text("pki/member/host/h2").is_some());
    // It was let in anew: a later change is not about that.
    fixture.edit("pki/member/host/h1", "{}");
    fixture.accept(&Lab { generation: Generation(2), ..after });
    assert!(fixture.text("pki/member/host/h1").is_some());
}

#[test]
fn a_repeated_change_finds_itself() {
    let mut fixture = Fixture::founded();
    let change = fixture.change(&full(1), 1);
    assert!(fixture.txn(&change[0]).succeeded);
    let again = fixture.txn(&change[0]);
    let record: Record = serde_json::from_slice(&again.got[0].as_ref().unwrap().value).unwrap();
    assert_eq!((again.succeeded, record.op), (false, OpId::new(1)));
}

#[test]
fn the_editing_surface_is_indented_and_touched_only_where_a_spec_changed() {
    let mut fixture = Fixture::founded();
    fixture.accept(&full(1));
    let text = fixture.text("spec/cluster/kv").unwrap();
    assert!(text.contains("\n  \"blueprint\": \"etcd\""), "{text}");
    let key = b"/faultbed/v1/demo/spec/cluster/kv".to_vec();
    let before = fixture.kvs()[&key].modified;
    let mut moved = full(2);
    moved.clusters.values_mut().for_each(|cluster| cluster.token = "other".into());
    fixture.accept(&moved);
    assert_eq!(fixture.kvs()[&key].modified, before);
    assert_eq!(fixture.edits(), []);
}

#[test]
fn hand_edits_are_those_that_mean_something_else() {
    let mut fixture = Fixture::founded();
    fixture.accept(&full(1));
    let spaced = fixture.text("spec/cluster/kv").unwrap().replace('\n', "\n\n") + "\n";
    fixture.edit("spec/cluster/kv", &spaced);
    assert_eq!(fixture.edits(), []);
    fixture.edit("spec/cluster/kv", &spaced.replace("bin/next", "bin/other"));
    fixture.edit("spec/fault/new", "{ not json");
    fixture.edit("spec/what/ever", "1");
    let edits = fixture.edits();
    let keys: Vec<_> = edits.iter().map(|edit| (&*edit.key.kind, &*edit.key.name)).collect();
    assert_eq!(keys, [("cluster", "kv"), ("fault", "new"), ("what", "ever")]);
    assert!(edits[0].value.as_ref().unwrap().contains("bin/other"));
    assert!(edits[0].revision < edits[1].revision);
}

#[test]
fn a_deleted_spec_is_a_hand_edit() {
    let mut fixture = Fixture::founded();
    fixture.accept(&full(1));
    let key = format!("{}spec/fault/split", fixture.keys.prefix());
    fixture.txn(&Txn { then: vec![Op::Delete(key.into())], ..Txn::default() });
    let key = SpecKey { kind: "fault".into(), name: "split".into() };
    assert_eq!(fixture.edits(), [HandEdit { key, value: None, revision: Revision::ABSENT }]);
}

#[test]
fn a_change_does_not_overwrite_a_hand_edit_it_has_not_seen() {
    let mut fixture = Fixture::founded();
    fixture.accept(&full(1));
    let mut after = full(2);
    after.clusters.insert(ClusterName::parse("kv").unwrap(), cluster("--a=2").into());
    let change = fixture.change(&after, 1);
    fixture.edit("spec/cluster/kv", "{ \"blueprint\": \"mine\" }");
    assert!(!fixture.txn(&change[0]).succeeded);
    // Seen, it is overwritten.
    fixture.accept(&after);
    assert_eq!(fixture.lab(), after);
}

#[test]
fn a_large_change_is_seen_as_a_whole_or_not_at_all() {
    let mut fixture = Fixture::founded();
    fixture.accept(&full(1));
    let (before, after) = (full(1), many(2, "--a=2"));
    let mut txns = fixture.change(&after, 1);
    let accept = txns.pop().unwrap();
    assert!(txns.len() > 2);
    for txn in &txns {
        txn.check().unwrap();
        assert!(fixture.txn(txn).succeeded);
        assert_eq!(fixture.lab(), before);
        assert_eq!(fixture.edits(), []);
    }
    assert!(fixture.txn(&accept).succeeded);
    assert_eq!(fixture.lab(), after);
    assert_eq!(fixture.edits(), []);
    for txn in folds(&fixture.keys.clone(), &fixture.kvs()).unwrap() {
        txn.check().unwrap();
        assert!(fixture.txn(&txn).succeeded);
        assert_eq!(fixture.lab(), after);
        assert_eq!(fixture.edits(), []);
    }
    assert!(!fixture.kvs().keys().any(|key| key.starts_with(b"/faultbed/v1/demo/staged")));
    assert_eq!(folds(&fixture.keys, &fixture.kvs()), Ok(Vec::new()));
    let mut last = lab(3);
    last.hosts = after.hosts;
    fixture.accept(&last);
    assert_eq!(fixture.lab(), last);
}

#[test]
fn folding_may_be_done_by_two_at_once_and_twice() {
    let mut fixture = Fixture::founded();
    fixture.accept(&many(1, "--a=1"));
    let one = folds(&fixture.keys, &fixture.kvs()).unwrap();
    assert!(fixture.txn(&one[0]).succeeded);
    let two = folds(&fixture.keys, &fixture.kvs()).unwrap();
    for txn in &two {
        assert!(fixture.txn(txn).succeeded);
    }
    assert!(!fixture.txn(one.last().unwrap()).succeeded);
    assert_eq!(fixture.lab(), many(1, "--a=1"));
}

#[test]
fn folding_spares_what_people_wrote_after_the_staging() {
    let mut fixture = Fixture::founded();
    fixture.accept(&many(1, "--a=1"));
    fixture.edit("spec/cluster/c7", "{ \"blueprint\": \"mine\" }");
    assert_eq!(fixture.edits().len(), 1);
    for txn in folds(&fixture.keys.clone(), &fixture.kvs()).unwrap() {
        assert!(fixture.txn(&txn).succeeded);
    }
    assert_eq!(fixture.edits().len(), 1);
    assert!(fixture.text("spec/cluster/c7").unwrap().contains("mine"));
}

#[test]
fn a_large_change_that_lost_is_cleared_by_the_next_one() {
    let mut fixture = Fixture::founded();
    let lost = fixture.change(&many(1, "--a=1"), OTHER_OP);
    assert!(fixture.txn(&lost[0]).succeeded);
    fixture.accept(&full(1));
    assert!(!fixture.txn(&lost[1]).succeeded);
    assert!(!fixture.txn(lost.last().unwrap()).succeeded);
    assert!(!fixture.kvs().keys().any(|key| key.starts_with(b"/faultbed/v1/demo/staged")));
    assert_eq!(fixture.lab(), full(1));
}

#[test]
fn a_staged_change_with_a_missing_key_is_not_read_as_a_smaller_one() {
    let mut fixture = Fixture::founded();
    fixture.accept(&many(1, "--a=1"));
    let staged = fixture.keys.staged(Generation(1), &OpId::new(1));
    let key = fixture.kvs().into_keys().find(|key| key.starts_with(&staged)).unwrap();
    fixture.txn(&Txn { then: vec![Op::Delete(key)], ..Txn::default() });
    let read = lab_from(&fixture.keys, &fixture.kvs());
    assert!(matches!(read, Err(KeysError::Incomplete { .. })), "{read:?}");
}

#[test]
fn history_keeps_the_last_thousand() {
    let mut fixture = Fixture::founded();
    for generation in 1..=HISTORY_KEPT + 3 {
        fixture.accept(&lab(generation));
    }
    let kvs = fixture.core.range(&fixture.keys.histories());
    assert_eq!(kvs.len() as u64, HISTORY_KEPT);
    let first: Record = serde_json::from_slice(&kvs[0].value).unwrap();
    assert_eq!(first.entry.generation, Generation(4));
}

#[test]
fn a_huge_history_entry_loses_its_texts_not_its_words() {
    let fixture = Fixture::founded();
    let object = ObjectChange {
        kind: "cluster".into(),
        name: "kv".into(),
        before: None,
        after: Some("x".repeat(HISTORY_ENTRY_BYTES_MAX)),
    };
    let entry = HistoryEntry { objects: vec![object], ..entry(1) };
    let specs = BTreeMap::new();
    let seen = Seen { head: fixture.head(), specs: &specs };
    let op = OpId::new(1);
    let txns = commit(&fixture.keys, (Some(&lab(0)), &lab(1)), (&entry, &op), seen).unwrap();
    let Op::Put(_, value, _) = &txns[0].then[0] else { panic!("history is first") };
    let record: Record = serde_json::from_slice(value).unwrap();
    assert_eq!(record.entry.what, entry.what);
    assert_eq!(record.entry.objects[0].before, None);
    assert!(record.entry.objects[0].after.as_ref().unwrap().contains("too many to keep"));
}

#[test]
fn an_object_that_can_never_be_stored_is_refused_by_name() {
    let fixture = Fixture::founded();
    let mut after = lab(1);
    after
        .clusters
        .insert(ClusterName::parse("kv").unwrap(), cluster(&"x".repeat(TXN_BYTES_MAX)).into());
    let specs = BTreeMap::new();
    let seen = Seen { head: fixture.head(), specs: &specs };
    let refused =
        commit(&fixture.keys, (None, &after), (&entry(1), &OpId::new(1)), seen).unwrap_err();
    assert!(refused.to_string().starts_with("store cluster kv: its 14"), "{refused}");
}

#[test]
fn large_objects_are_batched_by_their_bytes() {
    let mut fixture = Fixture::founded();
    let mut after = lab(1);
    for n in 0..5 {
        let name = ClusterName::parse(&format!("c{n}")).unwrap();
        after.clusters.insert(name, cluster(&"x".repeat(900_000)).into());
    }
    let txns = fixture.change(&after, 1);
    assert!(txns.len() > 5);
    assert!(txns.iter().all(|txn| txn.then.len() < TXN_OPS_MAX));
    fixture.accept(&after);
    assert_eq!(fixture.lab(), after);
}

#[test]
fn an_accepted_object_that_somebody_broke_is_named() {
    let mut fixture = Fixture::founded();
    fixture.accept(&full(1));
    fixture.edit("accepted/cluster/kv", "{}");
    let broken = lab_from(&fixture.keys, &fixture.kvs()).unwrap_err().to_string();
    assert!(broken.starts_with("read key /faultbed/v1/demo/accepted/cluster/kv: "), "{broken}");
}
