//! What is printed as TOML, or stored as JSON, means the same when it is read again.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    duration::Span,
    effect::{Distribution, Loss, Rate, Ratio, Size, Slice},
    fault::{Begin, Grade, HealPolicy, Lasts, OneWay, Targets},
    preset::PRESETS,
    spec::{ClusterSpec, NodeOverride, OnCrash, RoleSpec},
};

fn word() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,8}"
}

/// Any text a person could put into a file, quotes, controls and line breaks included.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![word(), "[ -~\\n\\t\"'\\\\äπ\u{7f}]{0,20}x"]
}

fn env() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[A-Z.][A-Z_. ]{0,6}", text(), 0..3)
}

fn node_override() -> impl Strategy<Value = NodeOverride> {
    (
        prop::option::of(text()),
        prop::option::of(text()),
        prop::option::of(prop::collection::vec(text(), 0..3)),
        env(),
        prop::option::of(Just("h2".parse().unwrap())),
    )
        .prop_map(|(path, config, args, env, host)| NodeOverride {
            path,
            config,
            args,
            env,
            host,
        })
}

fn role() -> impl Strategy<Value = RoleSpec> {
    (
        prop::option::of(1_u32..=1000),
        prop::option::of(text()),
        prop::option::of(text()),
        prop::collection::vec(
            prop_oneof![Just("h1".to_owned()), Just("label:a=b".to_owned())],
            0..3,
        ),
        prop::collection::vec(text(), 0..3),
        (env(), prop::option::of(1_u16..=16384)),
        prop::collection::btree_map(1_u32..9, node_override(), 0..3),
    )
        .prop_map(|(count, path, config, hosts, args, (env, dial_ports), node)| RoleSpec {
            count,
            path,
            config,
            hosts,
            args,
            env,
            dial_ports,
            node,
        })
}

fn cluster() -> impl Strategy<Value = ClusterSpec> {
    let on_crash = prop::option::of(prop_oneof![Just(OnCrash::Stay), Just(OnCrash::Restart)]);
    let roles = prop::collection::btree_map(
        word().prop_map(|w| format!("r{w}").parse().unwrap()),
        role(),
        0..3,
    );
    let lease = span();
    (text(), on_crash, lease, any::<bool>(), roles).prop_map(
        |(blueprint, on_crash, lease, tls, roles)| ClusterSpec {
            tls,
            blueprint,
            on_crash,
            lease,
            roles,
        },
    )
}

fn targets() -> impl Strategy<Value = Targets> {
    prop::collection::vec("(leader:)?[a-z]{1,4}(-[0-9])?", 1..3).prop_map(Targets)
}

fn span() -> impl Strategy<Value = Option<Span>> {
    prop::option::of((0_u64..100_000_000).prop_map(|us| Span(std::time::Duration::from_micros(us))))
}

fn share() -> impl Strategy<Value = Option<Ratio>> {
    prop::option::of((0_u32..=1_000_000).prop_map(Ratio::from_ppm))
}

fn loss() -> impl Strategy<Value = Option<Loss>> {
    let some = || share().prop_map(Option::unwrap_or_default);
    let gilbert = (some(), some(), some(), some())
        .prop_map(|(enter, leave, good, bad)| Loss::Gilbert { enter, leave, good, bad });
    let burst = (1_u64..1_000_000, 1_u64..1_000_000)
        .prop_map(|(lasts_us, more)| Loss::Burst { lasts_us, every_us: lasts_us + more });
    prop::option::of(prop_oneof![some().prop_map(Loss::Bernoulli), gilbert, burst])
}

fn slice() -> impl Strategy<Value = Option<Slice>> {
    let parts = (1_u64..100_000, 0_u64..100_000, 0_u64..1_000_000);
    prop::option::of(parts.prop_map(|(bytes, variation, delay_us)| Slice {
        bytes,
        variation_bytes: variation % bytes,
        delay_us,
    }))
}

prop_compose! {
    /// What a fault acts on.
    fn shape()(
        partition in prop::option::of(prop::collection::vec(targets(), 2..4)),
        between in prop::option::of(prop::collection::vec(targets(), 2)),
        sides in prop::collection::vec(prop::option::of(targets()), 8),
    ) -> FaultSpec {
        FaultSpec {
            partition,
            between,
            isolate: sides[0].clone(),
            from: sides[1].clone(),
            to: sides[2].clone(),
            on: sides[3].clone(),
            halves: sides[4].clone(),
            minority: sides[5].clone(),
            ring: sides[6].clone(),
            bridge: sides[7].clone(),
            ..FaultSpec::default()
        }
    }
}

prop_compose! {
    /// What it does, to the shape of another.
    fn effects()(
        shape in shape(),
        flags in prop::collection::vec(any::<bool>(), 9),
        spans in prop::collection::vec(span(), 7),
        shares in prop::collection::vec(share(), 3),
        loss in loss(),
        slice in slice(),
        rate in prop::option::of(1_u64..1 << 50),
        limit in prop::option::of(0_u64..1 << 50),
        effect in prop::option::of(text()),
        words in (0_usize..4, 0..=PRESETS.len()),
    ) -> FaultSpec {
        let distributions = [Distribution::Uniform, Distribution::Normal, Distribution::Pareto];
        FaultSpec {
            cut: flags[0],
            pause: flags[1],
            kill: flags[2],
            stop: flags[3],
            stall: flags[4],
            jam: flags[5],
            reset: flags[6],
            refuse: flags[7],
            time_out: flags[8],
            latency: spans[0],
            rtt: spans[1],
            jitter: spans[2],
            accept_delay: spans[3],
            reset_after: spans[4],
            close_after: spans[5],
            slow_close: spans[6],
            corrupt: shares[0],
            duplicate: shares[1],
            reorder: shares[2],
            bandwidth: rate.map(|bits_per_s| Rate { bits_per_s }),
            limit: limit.map(|bytes| Size { bytes }),
            distribution: distributions.get(words.0).copied(),
            preset: PRESETS.get(words.1).map(|preset| preset.name.to_owned()),
            loss,
            slice,
            effect,
            ..shape
        }
    }
}

prop_compose! {
    fn fault()(
        effects in effects(),
        flags in prop::collection::vec(any::<bool>(), 5),
        lasts in prop_oneof![Just(Lasts::UntilHealed), span().prop_map(|s| Lasts::For(s.unwrap_or_default()))],
        words in (0_usize..3, 0_usize..3, 0_usize..3, 0_usize..4),
        probability in share(),
        seed in prop::option::of(any::<u64>()),
    ) -> FaultSpec {
        FaultSpec {
            clients: flags[0],
            across: flags[1],
            follow: flags[2],
            canary: flags[3],
            fast_heal: flags[4],
            lasts: Some(lasts),
            one_way: [None, Some(OneWay::Bytes), Some(OneWay::Packets)][words.0],
            at: [None, Some(Begin::Ready), Some(Begin::Start)][words.1],
            grade: [None, Some(Grade::Stream), Some(Grade::Packet)][words.2],
            heal: [None, Some(HealPolicy::Resume), Some(HealPolicy::Reset), Some(HealPolicy::Close)][words.3],
            probability,
            seed,
            ..effects
        }
    }
}

proptest! {
    #[test]
    fn clusters(spec in cluster()) {
        let name = "kv".parse().unwrap();
        let text = to_toml_cluster(&name, &spec);
        let file = parse_lab_with(&text, &NO_CHECKS).map_err(|p| show(&text, &p)).unwrap();
        prop_assert_eq!(&file.cluster[&name], &spec, "{}", text);
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(serde_json::from_str::<ClusterSpec>(&json).unwrap(), spec, "{}", json);
    }

    #[test]
    fn faults(spec in fault()) {
        let name = "f".parse().unwrap();
        let text = to_toml_fault(&name, &spec);
        let file = parse_lab_with(&text, &NO_CHECKS).map_err(|p| show(&text, &p)).unwrap();
        prop_assert_eq!(&file.fault[&name], &spec, "{}", text);
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(serde_json::from_str::<FaultSpec>(&json).unwrap(), spec, "{}", json);
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in "[ -~\\nä]{0,80}|(\\[[a-z.\"]{1,9}\\]\\n|[a-z.\"]{1,9} = [\\[\\]{}0-9a-z\",=]{1,9}\\n){0,6}") {
        for problem in parse_lab_with(&text, &NO_CHECKS).err().into_iter().flatten() {
            prop_assert!(problem.render("x", &text).starts_with("error: "));
        }
        for problem in parse_blueprint(&text).err().into_iter().flatten() {
            prop_assert!(problem.render("x", &text).starts_with("error: "));
        }
    }
}
