//! Targets against a lab of two clusters: `kv` (etcd, three nodes) and `db` (roles meta and data).

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::{prop_assert, proptest};

use super::{Reports, can_move, check, clusters, nodes, parse::glob_matches, parties};
use crate::{
    file,
    lab::Lab,
    place,
    report::{NodeReport, NodeState},
    spec::ClusterSpec,
    testing,
};

const DB: &str = r#"
name = "db"
summary = "two roles"
[role.meta]
program = "meta"
count = 1
port.client = { default = 5000 }
[role.data]
program = "data"
count = 2
port.client = { default = 6000 }
"#;

pub(crate) fn two_clusters() -> Lab {
    let mut lab = testing::lab();
    let name = "db".parse().unwrap();
    let spec = ClusterSpec { blueprint: "./db.toml".to_owned(), ..ClusterSpec::default() };
    let mut db = testing::cluster(file::parse_blueprint(DB).unwrap(), spec);
    place::place(&lab, &name, &mut db, &BTreeMap::new()).unwrap();
    lab.clusters.insert(name, db.into());
    lab
}

/// Reports in which these nodes are ready and say whether they lead, and in which term.
pub(crate) fn leading(lab: &Lab, said: &[(&str, bool, u64)]) -> Reports {
    let mut reports = Reports::new();
    for (name, leads, term) in said {
        let name = name.parse().unwrap();
        let host = &lab.node(&name).unwrap().placement.host;
        let seen = NodeReport {
            observed: NodeState::Ready,
            leader: Some(*leads),
            term: Some(*term),
            ..NodeReport::default()
        };
        let report = Arc::make_mut(reports.entry(host.clone()).or_default());
        report.nodes.insert(name, seen);
    }
    reports
}

fn resolved(lab: &Lab, reports: &Reports, targets: &[&str]) -> Result<String, String> {
    let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
    match parties(lab, reports, &targets) {
        Ok(found) => Ok(found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        Err(error) if error.later => Err(format!("later: {error}")),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn every_form_of_target_names_its_nodes() {
    let lab = two_clusters();
    let reports = leading(&lab, &[("kv-1", false, 3), ("kv-2", true, 3), ("kv-3", false, 3)]);
    for (targets, expected) in [
        (vec!["kv-2"], "kv-2"),
        (vec!["kv"], "kv-1 kv-2 kv-3"),
        (vec!["db"], "db-data-1 db-data-2 db-meta-1"),
        (vec!["db/data"], "db-data-1 db-data-2"),
        (vec!["leader:kv"], "kv-2"),
        (vec!["leader:kv/etcd"], "kv-2"),
        (vec!["follower:kv"], "kv-1 kv-3"),
        (vec!["host:h1"], "db-data-1 kv-1"),
        (vec!["label:n=2"], "db-data-2 kv-2"),
        (vec!["kv-*"], "kv-1 kv-2 kv-3"),
        (vec!["*-2"], "db-data-2 kv-2"),
        (vec!["kv-?,not:kv-1"], "kv-2 kv-3"),
        (vec!["*", "not:db", "not:leader:kv"], "kv-1 kv-3"),
        (vec!["kv-3", "kv-1", "kv-1,kv"], "kv-1 kv-2 kv-3"),
        (vec!["kv-1", "clients"], "kv-1 clients"),
    ] {
        assert_eq!(resolved(&lab, &reports, &targets).as_deref(), Ok(expected), "{targets:?}");
    }
}

#[test]
fn a_target_that_matches_nothing_names_the_nearest_or_all_there_are() {
    let lab = two_clusters();
    for (target, why) in [
        ("kv-9", "there is no such node or cluster; there are db, kv, "),
        ("elsewhere", "there is no such node or cluster; there are "),
        ("db/dta", "did you mean \"data\"?"),
        ("dc/data", "did you mean \"db\"?"),
        ("host:h9", "there is no such host; there are h1, h2, h3"),
        ("label:dc=east", "no host has this label; there are n=1"),
        ("zz*", "matches no node; there are db-data-1"),
        ("kv,not:kv-*", "excludes everything that it names"),
        ("kv,not:kw-1", "did you mean \"kv-1\"?"),
    ] {
        let error = resolved(&lab, &Reports::new(), &[target]).unwrap_err();
        assert!(error.contains(why) && !error.starts_with("later"), "{target}: {error}");
    }
}

#[test]
fn malformed_targets_are_refused_with_the_pattern() {
    for (target, why) in [
        ("", "a target is empty"),
        ("kv-1,,kv-2", "a target is empty"),
        ("leder:kv", "is no kind of target"),
        ("not:not:kv", "written once"),
        ("label:dc", "label:KEY=VALUE"),
        ("KV", "lower-case"),
        ("kv/", "empty"),
        ("all", "written '*'"),
        ("K*", "a glob holds"),
        ("a\nb", "only lower-case"),
    ] {
        let error = check(target).unwrap_err().to_string();
        assert!(error.contains(why), "{target:?}: {error}");
    }
    let lab = two_clusters();
    let error = resolved(&lab, &Reports::new(), &["not:kv"]).unwrap_err();
    assert!(error.contains("only excludes"), "{error}");
    assert!(resolved(&lab, &Reports::new(), &[]).unwrap_err().contains("no target is named"));
    assert!(nodes(&lab, &Reports::new(), &["clients".to_owned()]).is_err());
}

#[test]
fn a_leader_that_is_not_known_may_resolve_later() {
    let lab = two_clusters();
    let none = leading(&lab, &[("kv-1", false, 3), ("kv-2", false, 3)]);
    for target in ["leader:kv", "follower:kv"] {
        let error = resolved(&lab, &none, &[target]).unwrap_err();
        assert!(error.starts_with("later: "), "{error}");
    }
    // An unknown name is worse, also when it comes second.
    let error = resolved(&lab, &none, &["leader:kv", "kv-7"]).unwrap_err();
    assert!(!error.starts_with("later"), "{error}");
}

#[test]
fn the_newest_term_leads_and_a_tie_names_the_candidates() {
    let lab = two_clusters();
    let stale = leading(&lab, &[("kv-1", true, 3), ("kv-2", true, 4), ("kv-3", false, 4)]);
    assert_eq!(resolved(&lab, &stale, &["leader:kv"]).as_deref(), Ok("kv-2"));
    // One that still says it leads follows nobody.
    assert_eq!(resolved(&lab, &stale, &["follower:kv"]).as_deref(), Ok("kv-3"));
    let tie = leading(&lab, &[("kv-1", true, 4), ("kv-2", true, 4)]);
    let error = resolved(&lab, &tie, &["leader:kv"]).unwrap_err();
    assert!(error.contains("kv-1, kv-2 all lead in the same term"), "{error}");
    let roles = leading(&lab, &[("db-meta-1", true, 9), ("db-data-1", true, 2)]);
    let error = resolved(&lab, &roles, &["leader:db"]).unwrap_err();
    assert!(error.contains("leader:db/data or leader:db/meta"), "{error}");
    assert_eq!(resolved(&lab, &roles, &["leader:db/data"]).as_deref(), Ok("db-data-1"));
}

#[test]
fn a_leader_that_is_not_ready_is_no_leader() {
    let lab = two_clusters();
    let mut reports = leading(&lab, &[("kv-1", true, 3)]);
    for report in reports.values_mut().map(Arc::make_mut) {
        report.nodes.values_mut().for_each(|node| node.observed = NodeState::Unready);
    }
    assert!(resolved(&lab, &reports, &["leader:kv"]).unwrap_err().starts_with("later"));
}

#[test]
fn clusters_of_targets_are_known_without_reports() {
    let lab = two_clusters();
    let found = |targets: &str| {
        let found = clusters(&lab, &[targets.to_owned()]).unwrap();
        found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(found("leader:kv"), "kv");
    assert_eq!(found("host:h1"), "db kv");
    assert_eq!(found("clients,kv,not:db"), "kv");
    assert!(can_move(&["kv-1".to_owned(), "not:leader:kv".to_owned()]));
    assert!(!can_move(&["kv-1,host:h1".to_owned()]));
}

proptest! {
    /// Against the plain recursive definition.
    #[test]
    fn globs_match_as_defined(glob in "[ab*?]{0,6}", name in "[ab]{0,6}") {
        fn plain(glob: &[u8], name: &[u8]) -> bool {
            match (glob.first(), name.first()) {
                (None, None) => true,
                (Some(b'*'), _) => {
                    plain(&glob[1..], name) || (!name.is_empty() && plain(glob, &name[1..]))
                }
                (Some(b'?'), Some(_)) => plain(&glob[1..], &name[1..]),
                (Some(a), Some(b)) if a == b => plain(&glob[1..], &name[1..]),
                _ => false,
            }
        }
        prop_assert!(glob_matches(&glob, &name) == plain(glob.as_bytes(), name.as_bytes()));
    }

    #[test]
    fn any_text_is_a_target_or_refused_never_a_panic(text in "\\PC{0,20}") {
        let lab = two_clusters();
        if let Ok(found) = parties(&lab, &Reports::new(), std::slice::from_ref(&text)) {
            prop_assert!(check(&text).is_ok() && !found.is_empty());
        }
    }
}
