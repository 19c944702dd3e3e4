//! Shapes as people write them, against the lab of `target::tests`.

mod pairs;

use std::collections::BTreeSet;

use expect_test::{Expect, expect};
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::{ShapeError, check, effect, kind, link_effect, node_effect, resolve, summary, targets};
use crate::{
    fault::FaultSpec,
    host_spec::{NodeEffect, StopBy},
    lab::{Lab, Resolved},
    proxy_spec::{Cut, Delay, Dials, Endings, Hold},
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
    resolve(lab, &reports, &spec(text), 0)
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
            latency 50ms ±5ms: kv-1 | db-meta-1,kv-2,kv-3
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
fn a_node_that_is_named_on_both_sides_is_told_once() {
    for (text, told) in [
        ("between = [\"kv-1\", \"kv\"]\nlatency = \"5ms\"", "kv-1 | kv-2,kv-3"),
        ("between = [\"kv\", \"kv\"]\nlatency = \"5ms\"", "kv-1 | kv-2 | kv-3"),
        ("between = [\"kv-1,kv-2\", \"kv-2,kv-3\"]\nlatency = \"5ms\"", "kv-1 | kv-2 | kv-3"),
        ("from = \"kv-1\"\nto = \"kv\"\nlatency = \"5ms\"", "kv-1 > kv-2,kv-3"),
    ] {
        assert_eq!(resolve_text(&two_clusters(), text).unwrap().sides(","), told, "{text}");
    }
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
        ("disk_stall = true", Some(NodeEffect::DiskStall)),
        ("effect = \"slow\"", None),
    ] {
        assert_eq!(node_effect(&spec(&format!("on = \"kv-1\"\n{text}")), &node), effect);
    }
    assert_eq!(node_effect(&spec("isolate = \"kv-1\""), &node), None);
    let error = resolve_text(&two_clusters(), "on = \"kv-1\"\neffect = \"slow\"").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("blueprint etcd has no effect \"slow\"; it has failpoint, move-leader"),
        "{error}"
    );
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
        ("isolate = \"kv-1\"\nreset = true\ngrade = \"stream\"", "is so for real"),
        ("isolate = \"kv-1\"\nclose_after = \"1s\"\ngrade = \"stream\"", "is so for real"),
        ("on = \"kv-1\"\npause = true\ngrade = \"packet\"", "is for links"),
        ("on = \"kv-1\"\npause = true\ncanary = true", "is for links"),
        ("on = \"kv-1\"\npause = true\nslow_close = \"1s\"", "is for links"),
        ("halves = \"kv\"\nring = \"kv\"", "halves, ring exclude each other"),
        ("ring = \"kv\"\none_way = true", "a ring has none"),
        ("bridge = \"kv\"\nrtt = \"2ms\"", "needs `between`"),
    ] {
        let text = text.replace("one_way = true", "one_way = \"bytes\"");
        let error = check(&spec(&text)).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn effects_that_do_not_go_together_are_refused_with_what_to_write() {
    for (effects, why) in [
        ("cut loss", "nothing to lose: write `cut` or `loss`"),
        ("cut bandwidth", "nothing to pace"),
        ("cut stall", "nothing to hold"),
        ("cut refuse", "nothing to refuse"),
        ("cut reset", "nothing to reset"),
        ("cut preset", "write `cut` or `preset`"),
        ("stall jam", "`stall` and `jam` exclude each other"),
        ("stall latency", "so there is nothing to delay: write `stall` or `latency`"),
        ("jam limit", "nothing to count"),
        ("jam preset", "write `jam` or `preset`"),
        ("refuse time_out", "refused, or gets no answer: write one"),
        ("refuse accept_delay", "is not accepted"),
        ("reset_after close_after", "a connection ends once"),
        ("duplicate", "cannot be had: TCP delivers a stream once"),
        ("reorder", "write `latency` with `jitter`, or `loss`"),
        ("bandwidth packet", "made in user space"),
        ("preset packet", "made in user space"),
        ("refuse probability packet", "SYNs, which are of no connection yet"),
        ("cut probability packet", "leave `grade` or `probability` out"),
        ("time_out stream", "write `refuse`"),
        ("one_way_packets cut probability", "is of none yet"),
        ("cut fast_heal probability", "for a cut of packets"),
        ("bandwidth canary", "`canary` proves a cut"),
        ("cut canary probability", "some are spared"),
        ("time_out probability", "none is: write `refuse`"),
        ("latency fast_heal", "for a cut of packets"),
        ("one_way cut fast_heal", "for a cut of packets"),
        ("cut fast_heal heal", "this `heal` ends them"),
        ("one_way_packets bandwidth", "`bandwidth` meets bytes: write `one_way"),
        ("latency distribution", "needs `jitter`"),
    ] {
        let error = check(&with(effects)).unwrap_err().to_string();
        assert!(error.contains(why), "{effects}: {error}");
    }
    for (amount, why) in [
        ("corrupt = \"0%\"", "`corrupt` of 0% does nothing"),
        ("loss = \"0%\"", "never loses anything"),
        ("loss = \"p=0% r=5%\"", "never loses anything"),
        ("loss = \"100%\"", "write `cut`"),
        ("limit = \"0B\"", "write `refuse`"),
        ("reset_after = \"0s\"", "write `reset`"),
        ("slow_close = \"0s\"", "does nothing"),
        ("cut = true\nprobability = \"0%\"", "does nothing"),
        ("preset = \"wan-eu-su\"", "did you mean \"wan-eu-us\"?"),
    ] {
        let error = check(&with(amount)).unwrap_err().to_string();
        assert!(error.contains(why), "{amount}: {error}");
    }
}

/// A fault between two nodes with these effects, by their fields, each with some amount.
fn with(effects: &str) -> FaultSpec {
    let mut text = "between = [\"kv-1\", \"kv-2\"]\n".to_owned();
    if effects.contains('=') {
        return spec(&format!("{text}{effects}"));
    }
    for effect in effects.split(' ') {
        text.push_str(match effect {
            "packet" => "grade = \"packet\"\n",
            "stream" => "grade = \"stream\"\n",
            "heal" => "heal = \"reset\"\n",
            "preset" => "preset = \"mobile-4g\"\n",
            "distribution" => "distribution = \"normal\"\n",
            "one_way" => "one_way = \"bytes\"\n",
            "one_way_packets" => "one_way = \"packets\"\n",
            _ => "",
        });
        let amount =
            match effect {
                "latency" | "rtt" | "accept_delay" | "reset_after" | "close_after"
                | "slow_close" => "\"20ms\"",
                "loss" | "corrupt" | "duplicate" | "reorder" | "probability" => "\"1%\"",
                "bandwidth" => "\"10Mbit\"",
                "limit" | "slice" => "\"64B\"",
                "cut" | "stall" | "jam" | "reset" | "refuse" | "time_out" | "canary"
                | "fast_heal" => "true",
                _ => continue,
            };
        text.push_str(&format!("{effect} = {amount}\n"));
    }
    spec(&text)
}

#[test]
fn effects_combine_and_are_told_in_one_line() {
    for (effects, told) in [
        ("latency loss bandwidth", "latency 20ms, bandwidth 10Mbit, loss 1%"),
        ("rtt corrupt slice probability", "rtt 20ms, corrupt 1%, slice 64B, for 1% of connections"),
        ("stall close_after accept_delay", "stall, accept-delay 20ms, close after 20ms"),
        ("reset refuse", "refuse, reset"),
        ("reset time_out", "time-out, reset"),
        ("reset_after limit slow_close", "reset after 20ms, limit 64B, slow-close 20ms"),
        ("loss packet", "loss 1%"),
        ("reset refuse packet", "refuse, reset"),
        ("cut canary fast_heal", "cut"),
        ("one_way latency", "one-way latency 20ms"),
        ("preset loss", "mobile-4g (rtt 170ms, bandwidth 9Mbit, loss 1%)"),
    ] {
        let spec = with(effects);
        assert_eq!(check(&spec), Ok(()), "{effects}");
        assert_eq!(summary(&spec), told);
    }
    let noisy =
        spec("halves = \"kv\"\nlatency = \"9ms\"\njitter = \"2ms\"\ndistribution = \"pareto\"");
    assert_eq!(summary(&noisy), "latency 9ms +2ms pareto");
    assert_eq!(summary(&spec("ring = \"kv\"")), "cut in a ring");
    for (effects, expected) in [
        ("latency loss", "latency"),
        ("time_out", "time-out"),
        ("cut", "cut"),
        ("preset", "mobile-4g"),
    ] {
        assert_eq!(kind(&with(effects)), expected);
    }
    assert_eq!(kind(&spec("bridge = \"kv\"")), "bridge");
}

#[test]
fn what_a_proxy_is_told_is_what_was_written() {
    let all = effect(&with("latency bandwidth loss corrupt slice refuse reset limit slow_close"));
    assert_eq!(all.delay, Some(Delay { base_us: 20_000, ..Delay::default() }));
    assert_eq!(all.bandwidth, Some("10Mbit".parse().unwrap()));
    assert_eq!(all.loss, ["1%".parse().unwrap()]);
    assert_eq!(all.corrupt, Some("1%".parse().unwrap()));
    assert_eq!(all.slice, Some("64B".parse().unwrap()));
    assert_eq!((all.dials, all.cut, all.hold), (Some(Dials::Refuse), None, None));
    let endings =
        Endings { reset: true, limit_bytes: Some(64), slow_close_us: 20_000, ..Endings::default() };
    assert_eq!(all.endings, endings);
    let held = effect(&with("jam accept_delay time_out reset_after").clone());
    assert_eq!((held.hold, held.accept_delay_us), (Some(Hold::Jam), 20_000));
    assert_eq!((held.dials, held.endings.reset_after_us), (Some(Dials::TimeOut), Some(20_000)));
    let leo = effect(&spec("between = [\"a\", \"b\"]\npreset = \"satellite-leo\""));
    assert_eq!(leo.delay, Some(Delay { base_us: 25_000, normal_us: 10_000, ..Delay::default() }));
}

#[test]
fn shapes_of_chance_act_within_clusters_and_show_who_is_where() {
    shows(
        "bridge = \"kv\"",
        &expect![[r#"
        cut: kv-1 | kv-2
        links: kv-1>kv-2 kv-2>kv-1
        nodes: 
        untouched: kv-3
    "#]],
    );
    shows(
        "halves = \"kv,db\"",
        &expect![[r#"
        cut: db-meta-1,kv-3 | db-data-1,db-data-2,kv-1,kv-2
        links: db-data-1>db-meta-1 db-data-2>db-meta-1 db-meta-1>db-data-1 db-meta-1>db-data-2 kv-1>kv-3 kv-2>kv-3 kv-3>kv-1 kv-3>kv-2
        nodes: 
        untouched: 
    "#]],
    );
    let lab = two_clusters();
    let error = resolve_text(&lab, "minority = \"kv-1,kv-2\"").unwrap_err().to_string();
    assert!(error.contains("needs 3 nodes of a cluster or more and has kv-1, kv-2"), "{error}");
    let error = resolve_text(&lab, "minority = \"kv,clients\"").unwrap_err().to_string();
    assert!(error.contains("only nodes can be named"), "{error}");
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
    let later = resolve(&lab, &Reports::new(), &spec("isolate = \"leader:kv\""), 0).unwrap_err();
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
        let Ok(found) = resolve(&lab, &Reports::new(), &spec, 0) else { return Ok(()) };
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
