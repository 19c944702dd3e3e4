//! Shapes as people write them, against the lab of `target::tests`.

use std::collections::BTreeSet;

use expect_test::{Expect, expect};
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::{ShapeError, check, kind, link_effect, node_effect, resolve, summary, targets};
use crate::{
    fault::FaultSpec,
    host_spec::{NodeEffect, StopBy},
    lab::{Lab, Resolved},
    proxy_spec::{Cut, Delay},
    target::{
        Reports,
        tests::{leading, two_clusters},
    },
};

fn spec(text: &str) -> FaultSpec {
    toml::from_str(text).unwrap()
}

fn resolve_text(lab: &Lab, text: &str) -> Result<Resolved, ShapeError> {
    let reports = leading(lab, &[("kv-1", true, 2), ("kv-2", false, 2), ("kv-3", false, 2)]);
    resolve(lab, &reports, &spec(text))
}

fn shows(text: &str, expected: &Expect) {
    let lab = two_clusters();
    let found = resolve_text(&lab, text).unwrap();
    let join = |words: Vec<String>| words.join(" ");
    let groups = found.groups.iter().map(|group| group.join(",")).collect::<Vec<_>>().join(" | ");
    let links = join(found.links.iter().map(ToString::to_string).collect());
    let nodes = join(found.nodes.iter().map(ToString::to_string).collect());
    let untouched = join(found.untouched.iter().map(ToString::to_string).collect());
    expected.assert_eq(&format!(
        "{}: {groups}\nlinks: {links}\nnodes: {nodes}\nuntouched: {untouched}\n",
        summary(&spec(text))
    ));
}

#[test]
fn a_partition_cuts_both_ways_between_groups_and_names_who_is_left_out() {
    shows(
        r#"partition = ["kv-1", "kv-2"]"#,
        &expect![[r#"
            cut: kv-1 | kv-2
            links: kv-1>kv-2 kv-2>kv-1
            nodes: 
            untouched: kv-3
        "#]],
    );
    shows(
        r#"partition = ["leader:kv", "follower:kv"]
           one_way = "bytes""#,
        &expect![[r#"
            one-way cut: kv-1 | kv-2,kv-3
            links: kv-1>kv-2 kv-1>kv-3
            nodes: 
            untouched: 
        "#]],
    );
}

#[test]
fn a_partition_acts_within_clusters_unless_across() {
    let within = r#"partition = ["host:h1", "host:h2"]"#;
    shows(
        within,
        &expect![[r#"
            cut: db-data-1,kv-1 | db-data-2,kv-2
            links: db-data-1>db-data-2 db-data-2>db-data-1 kv-1>kv-2 kv-2>kv-1
            nodes: 
            untouched: db-meta-1 kv-3
        "#]],
    );
    let lab = two_clusters();
    let across = resolve_text(&lab, &format!("{within}\nacross = true")).unwrap();
    assert_eq!(across.links.len(), 8);
    let error = resolve_text(&lab, r#"partition = ["kv", "db"]"#).unwrap_err().to_string();
    assert!(error.contains("`across`"), "{error}");
}

#[test]
fn isolation_meets_all_roles_of_the_cluster_and_clients_only_on_request() {
    shows(
        r#"isolate = "db/data""#,
        &expect![[r#"
            cut: db-data-1 | db-data-2 | db-meta-1
            links: db-data-1>db-data-2 db-data-1>db-meta-1 db-data-2>db-data-1 db-data-2>db-meta-1 db-meta-1>db-data-1 db-meta-1>db-data-2
            nodes: 
            untouched: 
        "#]],
    );
    shows(
        r#"isolate = "leader:kv"
           clients = true
           one_way = "packets""#,
        &expect![[r#"
            one-way cut of packets: kv-1 | kv-2,kv-3,clients
            links: kv-1>kv-2 kv-1>kv-3 kv-1>clients
            nodes: 
            untouched: 
        "#]],
    );
}

#[test]
fn pairs_act_exactly_as_named_across_clusters_and_never_on_a_node_itself() {
    shows(
        r#"from = "kv-1"
           to = "kv,db/meta"
           latency = "50ms"
           jitter = "5ms""#,
        &expect![[r#"
            latency 50ms ±5ms: kv-1 | db-meta-1,kv-1,kv-2,kv-3
            links: kv-1>db-meta-1 kv-1>kv-2 kv-1>kv-3
            nodes: 
            untouched: db-data-1 db-data-2
        "#]],
    );
    shows(
        r#"between = ["kv-1", "clients"]
           cut = true"#,
        &expect![[r#"
            cut: kv-1 | clients
            links: kv-1>clients clients>kv-1
            nodes: 
            untouched: kv-2 kv-3
        "#]],
    );
    shows(
        r#"on = "leader:kv"
           pause = true"#,
        &expect![[r#"
            pause: kv-1
            links: 
            nodes: kv-1
            untouched: 
        "#]],
    );
}

#[test]
fn a_round_trip_is_split_exactly() {
    let lab = two_clusters();
    let text = "between = [\"kv-1\", \"kv-2\"]\nrtt = \"81ms\"\njitter = \"1ms\"";
    let found = resolve_text(&lab, text).unwrap();
    let delays: Vec<Delay> = found
        .links
        .iter()
        .map(|link| link_effect(&spec(text), &found, link).unwrap().delay.unwrap())
        .collect();
    assert_eq!(delays, [Delay { base_us: 40_500, jitter_us: 1000, ..Delay::default() }; 2]);
    assert_eq!(kind(&spec(text)), "latency");
}

#[test]
fn what_a_cut_stops_depends_on_its_ways() {
    let lab = two_clusters();
    for (text, cut) in [
        ("partition = [\"kv-1\", \"kv-2\"]", Cut::Packets),
        ("partition = [\"kv-1\", \"kv-2\"]\none_way = \"bytes\"", Cut::Bytes),
        ("partition = [\"kv-1\", \"kv-2\"]\none_way = \"packets\"", Cut::Packets),
        ("from = \"kv-1\"\nto = \"kv-2\"\ncut = true", Cut::Bytes),
        ("from = \"kv-1\"\nto = \"kv-2\"\ncut = true\none_way = \"packets\"", Cut::Packets),
        ("between = [\"kv-1\", \"kv-2\"]\ncut = true", Cut::Packets),
    ] {
        let found = resolve_text(&lab, text).unwrap();
        let link = found.links.first().unwrap();
        assert_eq!(link_effect(&spec(text), &found, link).unwrap().cut, Some(cut), "{text}");
        assert_eq!(link_effect(&spec(text), &found, &"kv-3>kv-3".parse().unwrap()), None);
    }
}

#[test]
fn effects_on_nodes() {
    let node = "kv-1".parse().unwrap();
    for (text, effect) in [
        ("pause = true", Some(NodeEffect::Pause)),
        ("kill = true", Some(NodeEffect::Down(StopBy::Signal(9)))),
        ("stop = true", Some(NodeEffect::Down(StopBy::Grace))),
        ("effect = \"slow\"", None),
    ] {
        assert_eq!(node_effect(&spec(&format!("on = \"kv-1\"\n{text}")), &node), effect);
    }
    assert_eq!(node_effect(&spec("isolate = \"kv-1\""), &node), None);
    let error = resolve_text(&two_clusters(), "on = \"kv-1\"\neffect = \"slow\"").unwrap_err();
    assert!(error.to_string().contains("blueprint etcd defines no effects"), "{error}");
}

#[test]
fn contradictions_are_refused_with_what_to_write() {
    for (text, why) in [
        ("", "names no targets"),
        ("partition = [\"kv\"]", "two groups or more and has 1"),
        ("partition = []", "two groups or more and has 0"),
        ("partition = [\"kv-1\", []]", "one side names no target"),
        ("partition = [\"kv-1\", \"kv-2\"]\nisolate = \"kv-1\"", "exclude each other"),
        ("partition = [\"kv-1\", \"kv-2\"]\npause = true", "`pause` acts on nodes"),
        ("from = \"kv-1\"\ncut = true", "`from` needs `to`"),
        ("to = \"kv-1\"\ncut = true", "`to` needs `from`"),
        ("from = \"kv-1\"\nto = \"kv-2\"", "say what happens"),
        ("between = [\"kv-1\"]\ncut = true", "exactly two sides and has 1"),
        ("isolate = \"kv-1\"\nrtt = \"5ms\"", "needs `between`"),
        ("isolate = \"kv-1\"\njitter = \"5ms\"", "needs `latency`"),
        ("isolate = \"kv-1\"\nlatency = \"4ms\"\njitter = \"5ms\"", "larger than `latency`"),
        ("between = [\"a\", \"b\"]\nrtt = \"8ms\"\njitter = \"5ms\"", "larger than half of `rtt`"),
        ("isolate = \"kv-1\"\ncut = true\nlatency = \"4ms\"", "nothing to delay"),
        ("isolate = \"kv-1\"\nlatency = \"0s\"", "does nothing"),
        ("isolate = \"kv-1\"\nlatency = \"10ns\"", "finer than 1us"),
        ("isolate = \"kv-1\"\nfor = \"0s\"", "at least 1ms"),
        ("isolate = \"kv-1\"\nfollow = true", "can move"),
        ("isolate = \"kv-1,\"", "a target is empty"),
        ("partition = [\"a\", \"b\", \"c\"]\none_way = \"bytes\"", "exactly two groups"),
        ("isolate = \"kv-1\"\none_way = \"bytes\"\ngrade = \"packet\"", "handshakes pass"),
        ("from = \"a\"\nto = \"b\"\ncut = true\ngrade = \"packet\"", "handshakes pass"),
        ("isolate = \"kv-1\"\nlatency = \"1ms\"\ngrade = \"packet\"", "user space"),
        ("isolate = \"kv-1\"\none_way = \"packets\"\ngrade = \"stream\"", "cannot stop packets"),
        ("isolate = \"kv-1\"\none_way = \"packets\"\nlatency = \"1ms\"", "is for cuts"),
        ("between = [\"a\", \"b\"]\ncut = true\nclients = true", "flag of `isolate`"),
        ("between = [\"a\", \"b\"]\ncut = true\nacross = true", "as named"),
        ("on = \"kv-1\"", "needs an effect"),
        ("on = \"kv-1\"\npause = true\nkill = true", "exclude each other"),
        ("on = \"kv-1\"\nlatency = \"1ms\"", "is for links"),
        ("on = \"kv-1\"\npause = true\ngrade = \"packet\"", "is for links"),
    ] {
        let error = check(&spec(text)).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn targets_that_make_no_fault_are_refused() {
    let lab = two_clusters();
    for (text, why) in [
        ("partition = [\"kv-1,kv-2\", \"kv-2,kv-3\"]", "kv-2 is in two groups"),
        ("partition = [\"kv-1\", \"kv-7\"]", "there is no such node or cluster"),
        ("partition = [\"leader:db\", \"kv-7\"]", "there is no such node or cluster"),
        ("isolate = \"clients\"", "only nodes can be named"),
        ("from = \"kv-1\"\nto = \"kv-1\"\ncut = true", "links to itself"),
        ("between = [\"clients\", \"clients\"]\ncut = true", "links to itself"),
    ] {
        let error = resolve_text(&lab, text).unwrap_err();
        assert!(error.to_string().contains(why) && !error.is_later(), "{text}: {error}");
    }
    let later = resolve(&lab, &Reports::new(), &spec("isolate = \"leader:kv\"")).unwrap_err();
    assert!(later.is_later());
}

fn any_nodes() -> impl Strategy<Value = Vec<String>> {
    let names = ["kv-1", "kv-2", "kv-3", "db-data-1", "db-data-2", "db-meta-1", "clients"];
    prop::sample::subsequence(names.to_vec(), 1..5)
        .prop_map(|names| names.into_iter().map(str::to_owned).collect())
}

proptest! {
    /// Whatever is accepted acts on something, never on a node's links to itself, each of its links
    /// has an effect, and both its ends are among what was shown.
    #[test]
    fn an_accepted_fault_acts_on_what_it_shows(
        first in any_nodes(),
        second in any_nodes(),
        shape in 0..4,
        one_way in any::<bool>(),
        across in any::<bool>(),
    ) {
        use crate::fault::{OneWay, Targets};
        let (first, second) = (Targets(first), Targets(second));
        let mut spec = FaultSpec::default();
        match shape {
            0 => spec.partition = Some(vec![first, second]),
            1 => spec.isolate = Some(first),
            2 => (spec.from, spec.to, spec.cut) = (Some(first), Some(second), true),
            _ => (spec.between, spec.cut) = (Some(vec![first, second]), true),
        }
        spec.one_way = one_way.then_some(OneWay::Bytes);
        spec.across = across && shape < 2;
        let lab = two_clusters();
        let Ok(found) = resolve(&lab, &Reports::new(), &spec) else { return Ok(()) };
        prop_assert!(!found.is_empty());
        let shown: BTreeSet<&String> = found.groups.iter().flatten().collect();
        for link in &found.links {
            prop_assert!(link.from != link.to);
            prop_assert!(shown.contains(&link.from.to_string()));
            prop_assert!(shown.contains(&link.to.to_string()));
            prop_assert!(link_effect(&spec, &found, link).is_some());
            if shape != 2 && !one_way {
                prop_assert!(found.links.contains(&link.reversed()));
            }
            if shape < 2 && !across {
                let of = |party: &crate::link::Party| {
                    party.node().and_then(|name| lab.node(name)).map(|node| node.cluster_name)
                };
                if let (Some(from), Some(to)) = (of(&link.from), of(&link.to)) {
                    prop_assert_eq!(from, to);
                }
            }
        }
        for node in &found.untouched {
            prop_assert!(!shown.contains(&node.to_string()));
        }
        prop_assert!(!targets(&spec).is_empty());
    }
}
