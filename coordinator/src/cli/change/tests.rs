//! From an answer to what is waited for and what is told.

use std::time::Duration;

use clap::Parser;
use faultbed_common::{
    edit::{NodeVerb, ObjectChange},
    fault::{FaultSpec, Lasts, Targets},
    lab::Resolved,
};

use super::*;
use crate::cli::testing;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    change: ChangeArgs,
}

fn limit(line: &str) -> Option<Duration> {
    Line::try_parse_from(line.split(' ')).unwrap().change.limit()
}

/// A command as it is typed for one of several labs.
fn typed(command: &str) -> String {
    format!("faultbed {command} --lab b")
}

fn reply(fates: &[(&str, NodeFate)]) -> EditReply {
    EditReply {
        changed: true,
        nodes: fates.iter().map(|(name, fate)| (name.parse().unwrap(), *fate)).collect(),
        ..EditReply::default()
    }
}

#[test]
fn waiting_takes_a_minute_unless_told() {
    assert_eq!(limit("x"), Some(Duration::from_secs(60)));
    assert_eq!(limit("x --wait"), Some(Duration::from_secs(60)));
    assert_eq!(limit("x --wait=5s"), Some(Duration::from_secs(5)));
    assert_eq!(limit("x --wait-default=5m"), Some(Duration::from_secs(300)));
    assert_eq!(limit("x --wait-default=5m --wait=5s"), Some(Duration::from_secs(5)));
    assert_eq!(limit("x --wait-default=5m --no-wait"), None);
    assert_eq!(limit("x --no-wait"), None);
    assert_eq!(limit("x --plan"), None);
}

#[test]
fn each_fate_is_waited_for_in_its_own_way() {
    let before = testing::three_nodes();
    let edit = Edit::Node { targets: vec!["kv".into()], verb: NodeVerb::Restart };
    let reply = reply(&[("kv-1", NodeFate::Restart), ("kv-2", NodeFate::Stop)]);
    let goals = goals(&edit, &reply, Some(&before));
    assert_eq!(
        goals,
        [
            Goal::Ready("kv-1".parse().unwrap(), Incarnation(1)),
            Goal::Hashed("kv-1".parse().unwrap(), Incarnation(1)),
            Goal::Down("kv-2".parse().unwrap())
        ]
    );
}

#[test]
fn a_kill_with_respawn_waits_for_the_next_run() {
    let before = testing::three_nodes();
    let kill = |respawn| Edit::Node {
        targets: vec!["kv-1".into()],
        verb: NodeVerb::Kill { signal: 9, respawn },
    };
    let reply = reply(&[("kv-1", NodeFate::Kill)]);
    let name: NodeName = "kv-1".parse().unwrap();
    let stays = goals(&kill(false), &reply, Some(&before));
    assert_eq!(stays, [Goal::Down(name.clone())]);
    let comes_back = goals(&kill(true), &reply, Some(&before));
    assert_eq!(comes_back, [Goal::Ready(name, Incarnation(1))]);
}

#[test]
fn a_fault_says_what_it_resolved_to_and_how_long_it_lasts() {
    let spec = FaultSpec {
        isolate: Some(Targets::split("leader:kv")),
        cut: true,
        lasts: Some(Lasts::For(Span(faultbed_common::fault::FOR_DEFAULT))),
        ..FaultSpec::default()
    };
    let edit = Edit::Inject { name: None, spec: Box::new(spec), replace: false };
    let name: FaultName = "isolate-1".parse().unwrap();
    let resolved = Resolved {
        groups: vec![vec!["kv-1".into()], vec!["kv-2".into(), "kv-3".into()]],
        ..Resolved::default()
    };
    let reply = EditReply {
        changed: true,
        resolved: BTreeMap::from([(name.clone(), resolved)]),
        ..EditReply::default()
    };
    let request = ChangeArgs::default().request(edit, BTreeMap::new());
    let text = anstream::adapter::strip_str(&told(&request, &reply, &typed)).to_string();
    assert!(text.starts_with("isolate-1: kv-1 | kv-2, kv-3"), "{text}");
    assert!(text.ends_with("for 10m, or until: faultbed heal isolate-1 --lab b"), "{text}");
    assert_eq!(goals(&request.edit, &reply, None), [Goal::InForce(name)]);
}

#[test]
fn a_fault_that_is_deleted_is_named() {
    let edit = Edit::DeleteFault { name: "split".parse().unwrap() };
    let request = ChangeArgs::default().request(edit, BTreeMap::new());
    assert_eq!(told(&request, &reply(&[]), &typed), "deleted  fault split");
}

#[test]
fn an_apply_waits_for_its_faults_to_begin_and_to_end() {
    let object = |name: &str, stays: bool| ObjectChange {
        kind: "fault".into(),
        name: name.into(),
        before: Some(String::new()),
        after: stays.then(String::new),
    };
    let edit = Edit::Apply(Box::default());
    let reply = EditReply {
        changed: true,
        objects: vec![object("new", true), object("old", false)],
        ..EditReply::default()
    };
    assert_eq!(
        goals(&edit, &reply, None),
        [Goal::InForce("new".parse().unwrap()), Goal::Ended("old".parse().unwrap())]
    );
}

#[test]
fn a_restart_tells_both_hashes() {
    let before = testing::three_nodes();
    let mut after = before.clone();
    after.nodes[0].incarnation = Incarnation(2);
    if let Some(binary) = &mut after.nodes[0].binary {
        binary.sha256 = "0123456789abcdef".into();
    }
    let reply = reply(&[("kv-1", NodeFate::Restart)]);
    let lines = reached(&reply, Some(&before), &after);
    let text = anstream::adapter::strip_str(&lines[0]).to_string();
    assert_eq!(text, "kv-1 ready, run 2, binary 9f86d081 -> 01234567 (changed)");
}
