//! What hosts are told, and the laws it obeys.

use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::{
    duration::Span,
    fault::{FaultSpec, OneWay, Targets},
    lab::Ended,
    spec::ClusterSpec,
    testing,
};

fn targets(text: &str) -> Targets {
    Targets::split(text)
}

fn partition(groups: &[&str]) -> FaultSpec {
    FaultSpec {
        partition: Some(groups.iter().map(|group| targets(group)).collect()),
        lasts: Some(Lasts::For(Span(std::time::Duration::from_secs(30)))),
        ..FaultSpec::default()
    }
}

fn inject(lab: &mut Lab, name: &str, spec: FaultSpec) {
    let fault = testing::fault(lab, spec);
    lab.faults.insert(name.parse().unwrap(), fault.into());
}

#[test]
fn a_partition_is_told_to_the_proxies_of_both_sides() {
    let mut lab = testing::lab();
    inject(&mut lab, "split", partition(&["kv-1", "kv-2"]));
    let specs = compile(&lab).unwrap();
    let host = |name: &str| &specs[&name.parse::<HostName>().unwrap()];
    expect![[r#"
        {
          "generation": 7,
          "listeners": [
            {
              "node": "kv-1",
              "port": "client",
              "listen": "127.77.5.1:2379",
              "upstream": "127.130.128.1:2379"
            },
            {
              "node": "kv-1",
              "port": "peer",
              "listen": "127.77.5.1:2380",
              "upstream": "127.130.128.1:2380"
            }
          ],
          "diallers": {
            "127.130.128.1": "kv-1",
            "127.130.128.2": "kv-2",
            "127.130.128.3": "kv-3"
          },
          "faults": {
            "split": {
              "revision": 1,
              "for": "30s",
              "effect": {
                "cut": "packets"
              },
              "heal": "resume",
              "links": [
                "kv-1>kv-2",
                "kv-2>kv-1"
              ],
              "seed": 6907249189899761539
            }
          }
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&host("h1").proxy).unwrap());
    let split = "split".parse::<FaultName>().unwrap();
    assert_eq!(host("h1").proxy.faults[&split], host("h2").proxy.faults[&split]);
    assert!(host("h3").proxy.faults.is_empty());
    // Every node dials through the proxies of all, its own included.
    assert_eq!(host("h3").dials.near.len(), 6);
    assert!(host("h3").dials.all.is_empty(), "no proxy is on another machine");
}

#[test]
fn only_who_asks_is_shown_the_hosts_of_those_who_dial_it() {
    let mut lab = testing::empty_lab(2);
    testing::add(&mut lab, "g", testing::shipped("dcf"), testing::spec("dcf", "dcf", 2));
    testing::add(&mut lab, "kv", testing::shipped("etcd"), testing::spec("etcd", "etcd", 2));
    let hosts = compile(&lab).unwrap();
    for (name, host) in &hosts {
        let sources = &host.proxy.sources;
        let node = host.nodes.values().find(|node| node.cluster.as_str() == "g").unwrap();
        let peer = node.ports[&"peer".parse().unwrap()].port;
        assert_eq!(sources.upstreams, [SocketAddr::new(node.private, peer)].into(), "{name}");
        assert_eq!(sources.hosts[&node.private], node.address);
        assert_eq!(sources.hosts.len(), 4, "whoever dials");
    }
    lab.clusters.remove(&"g".parse::<ClusterName>().unwrap());
    assert!(compile(&lab).unwrap().values().all(|host| host.proxy.sources.is_empty()));
}

#[test]
fn clusters_that_sort_by_number_are_found_by_name() {
    let mut lab = testing::empty_lab(1);
    for name in ["kv2", "kv10"] {
        testing::add(&mut lab, name, testing::shipped("etcd"), testing::spec("etcd", "etcd", 1));
    }
    inject(&mut lab, "split", FaultSpec { across: true, ..partition(&["kv2", "kv10"]) });
    assert_eq!(lab.faults.values().next().unwrap().resolved.links.len(), 2);
}

#[test]
fn faults_on_nodes_are_told_to_their_hosts_alone() {
    let mut lab = testing::empty_lab(3);
    testing::add(&mut lab, "db", testing::db_blueprint(), ClusterSpec::default());
    let on = |target: &str| FaultSpec {
        on: Some(targets(target)),
        lasts: Some(Lasts::UntilHealed),
        ..FaultSpec::default()
    };
    inject(&mut lab, "still", FaultSpec { pause: true, ..on("db-meta-1") });
    let frozen = FaultSpec { effect: Some("freeze".to_owned()), ..on("db/store") };
    inject(&mut lab, "cold", frozen);
    inject(&mut lab, "forgotten", FaultSpec { lasts: None, stop: true, ..on("db-meta-2") });
    let specs = compile(&lab).unwrap();
    let mut said = Vec::new();
    for (name, node) in specs.values().flat_map(|spec| &spec.nodes) {
        for (fault, told) in &node.faults {
            said.push(format!("{name} {fault} {:?} {:?}", told.lasts, told.effect));
        }
    }
    expect![[r#"
        db-meta-1 still None Pause
        db-store-1 cold None Custom { name: "freeze", on: Probe { ask: Http { method: "PUT", url: "127.130.128.4:7010/freeze", body: "{}" }, expect: None, timeout: Span(1s) }, off: Some(Probe { ask: Http { method: "DELETE", url: "127.130.128.4:7010/freeze", body: "" }, expect: Some("status == 204"), timeout: Span(1s) }) }
        db-meta-2 forgotten Some(Span(600s)) Down(Grace)
        db-store-2 cold None Custom { name: "freeze", on: Probe { ask: Http { method: "PUT", url: "127.130.128.5:7010/freeze", body: "{}" }, expect: None, timeout: Span(1s) }, off: Some(Probe { ask: Http { method: "DELETE", url: "127.130.128.5:7010/freeze", body: "" }, expect: Some("status == 204"), timeout: Span(1s) }) }"#]].assert_eq(&said.join("\n"));
}

#[test]
fn a_fault_that_is_pending_or_over_is_told_to_nobody() {
    let mut lab = testing::lab();
    let clean = compile(&lab).unwrap();
    inject(&mut lab, "split", partition(&["kv-1", "kv-2"]));
    for phase in [
        Phase::Pending { why: "kv not ready".to_owned() },
        Phase::Ended { how: Ended::Expired, at_unix_ms: 1 },
    ] {
        lab.faults.values_mut().next().unwrap().phase = phase;
        assert_eq!(compile(&lab).unwrap(), clean);
    }
}

#[test]
fn the_same_fault_draws_the_same_dice_and_another_others() {
    let seed = |name: &str| FaultSpec::default().seed_for(&name.parse().unwrap());
    assert_eq!(seed("a"), seed("a"));
    assert_ne!(seed("a"), seed("b"));
    let spec = FaultSpec { seed: Some(7), ..FaultSpec::default() };
    assert_eq!(spec.seed_for(&"a".parse().unwrap()), 7);
}

prop_compose! {
    /// A lab of several clusters on several hosts.
    fn labs()(hosts in 1_u8..5, counts in prop::collection::vec(1_u32..5, 1..4), db in any::<bool>()) -> Lab {
        let mut lab = testing::empty_lab(hosts);
        for (i, count) in counts.into_iter().enumerate() {
            let spec = testing::spec("etcd", "etcd", count);
            testing::add(&mut lab, &format!("kv{i}x"), testing::shipped("etcd"), spec);
        }
        if db {
            testing::add(&mut lab, "db", testing::db_blueprint(), ClusterSpec::default());
        }
        lab
    }
}

/// Some fault on two different nodes of the lab, where it has two.
fn any_fault(lab: &Lab, pick: (usize, usize), kind: usize) -> Option<FaultSpec> {
    let nodes: Vec<&NodeName> = lab.clusters.values().flat_map(|c| c.nodes.keys()).collect();
    let (a, b) = (nodes[pick.0 % nodes.len()], nodes[pick.1 % nodes.len()]);
    if a == b {
        return None;
    }
    let (a, b) = (targets(a.as_str()), targets(b.as_str()));
    let lasts = Some(Lasts::UntilHealed);
    let base = FaultSpec { lasts, ..FaultSpec::default() };
    let delay = Some(Span(std::time::Duration::from_millis(50)));
    Some(match kind {
        0 => FaultSpec { partition: Some(vec![a, b]), across: true, ..base },
        1 => FaultSpec { from: Some(a), to: Some(b), latency: delay, ..base },
        2 => FaultSpec { between: Some(vec![a, b]), rtt: delay, ..base },
        3 => FaultSpec {
            from: Some(a),
            to: Some(b),
            cut: true,
            one_way: Some(OneWay::Bytes),
            ..base
        },
        _ => FaultSpec { on: Some(a), pause: true, ..base },
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_proxied_port_has_exactly_one_listener_and_no_two_binds_are_equal(lab in labs()) {
        let specs = compile(&lab).unwrap();
        prop_assert_eq!(specs.len(), lab.hosts.len());
        let mut binds = BTreeSet::new();
        let mut placed = 0;
        for (host, spec) in &specs {
            let mut proxied = 0;
            for (name, node) in &spec.nodes {
                placed += 1;
                prop_assert_eq!(spec.proxy.diallers.get(&node.private), Some(name));
                for (port_name, port) in &node.ports {
                    prop_assert!(binds.insert(SocketAddr::new(node.private, port.port)));
                    let listeners = spec.proxy.listeners.iter()
                        .filter(|l| &l.node == name && &l.port == port_name)
                        .count();
                    prop_assert_eq!(listeners, usize::from(port.proxied), "{} {}", host, name);
                    proxied += usize::from(port.proxied);
                }
            }
            prop_assert_eq!(spec.proxy.listeners.len(), proxied);
            for listener in &spec.proxy.listeners {
                prop_assert!(binds.insert(listener.listen), "{}", listener.listen);
                prop_assert!(spec.dials.near.contains(&listener.listen));
            }
        }
        prop_assert_eq!(placed, lab.clusters.values().map(|c| c.nodes.len()).sum::<usize>());
    }

    #[test]
    fn what_is_stored_and_sent_means_the_same_when_it_is_read(
        lab in labs(), pick in any::<(usize, usize)>(), kind in 0_usize..5,
    ) {
        let mut lab = lab;
        if let Some(spec) = any_fault(&lab, pick, kind) {
            inject(&mut lab, "f", spec);
        }
        let stored: Lab = serde_json::from_str(&serde_json::to_string(&lab).unwrap()).unwrap();
        prop_assert_eq!(&stored, &lab);
        let specs = compile(&lab).unwrap();
        prop_assert_eq!(&compile(&stored).unwrap(), &specs);
        for spec in specs.values() {
            let sent: HostSpec = serde_json::from_str(&serde_json::to_string(spec).unwrap()).unwrap();
            prop_assert_eq!(&sent, spec);
            let mut short = spec.clone();
            let around = short.take_around();
            let mut whole: HostSpec = serde_json::from_str(&serde_json::to_string(&short).unwrap()).unwrap();
            whole.put_around(around);
            prop_assert_eq!(&whole, spec);
        }
    }

    #[test]
    fn a_fault_reaches_both_ends_of_its_links_and_a_heal_restores_everything(
        lab in labs(), pick in any::<(usize, usize)>(), kind in 0_usize..5,
    ) {
        let mut lab = lab;
        let (healthy, before) = (lab.clone(), compile(&lab).unwrap());
        let Some(spec) = any_fault(&lab, pick, kind) else { return Ok(()) };
        inject(&mut lab, "f", spec);
        let name: FaultName = "f".parse().unwrap();
        let during = compile(&lab).unwrap();
        prop_assert_eq!(&compile_after((&healthy, &before), &lab).unwrap(), &during);
        prop_assert_ne!(&during, &before);
        for link in &lab.faults[&name].resolved.links {
            for (host, spec) in &during {
                let touches = spec.nodes.keys().any(|node| link.touches(node));
                let told = spec.proxy.faults.get(&name).is_some_and(|f| f.links.contains(link));
                prop_assert_eq!(told, touches, "{} {}", host, link);
            }
        }
        lab.faults.get_mut(&name).unwrap().phase = Phase::Ended { how: Ended::Healed, at_unix_ms: 1 };
        lab.generation = lab.generation.next();
        let mut after = compile(&lab).unwrap();
        prop_assert_eq!(&compile_after((&healthy, &during), &lab).unwrap(), &after);
        for spec in after.values_mut() {
            spec.generation = crate::generation::Generation(7);
            spec.proxy.generation = spec.generation;
        }
        prop_assert_eq!(after, before);
    }
}

#[test]
fn proxies_of_other_hosts_are_dialled_from_the_hosts_address_and_known_by_ports() {
    let mut lab = testing::empty_lab(2);
    for (n, host) in (1..).zip(lab.hosts.values_mut()) {
        host.address = [10, 77, 0, n].into();
    }
    testing::add(&mut lab, "kv", testing::shipped("etcd"), testing::spec("etcd", "etcd", 3));
    let specs = compile(&lab).unwrap();
    let [h1, h2] = ["h1", "h2"].map(|host| &specs[&host.parse::<HostName>().unwrap()]);
    let kv1 = &h1.nodes[&"kv-1".parse::<NodeName>().unwrap()];
    assert_eq!(h1.dials.near.len(), 4, "the ports of kv-1 and kv-3");
    assert!(h1.dials.near.iter().all(|dial| dial.ip() == kv1.address));
    assert_eq!(h1.dials.all.len(), 6);
    assert!(Arc::ptr_eq(&h1.dials.all, &h2.dials.all), "told to all, made once");
    let far: Vec<_> = h1.dials.all.difference(&h1.dials.near).collect();
    assert!(far.len() == 2 && far.iter().all(|dial| dial.ip().to_string() == "10.77.0.2"));
    assert_eq!((kv1.address.to_string().as_str(), kv1.block.unwrap().first), ("10.77.0.1", 10240));
    // Private addresses mean something on one machine only; blocks everywhere.
    let names = |spec: &HostSpec| -> Vec<String> {
        spec.proxy.diallers.values().map(ToString::to_string).collect()
    };
    assert_eq!((names(h1), names(h2)), (vec!["kv-1".into(), "kv-3".into()], vec!["kv-2".into()]));
    assert_eq!(h1.proxy.blocks, h2.proxy.blocks);
    let blocks: Vec<(String, u16)> = h1
        .proxy
        .blocks
        .iter()
        .flat_map(|(address, all)| {
            all.iter().map(move |one| (format!("{} {address}", one.node), one.block.first))
        })
        .collect();
    let expected =
        [("kv-1 10.77.0.1", 10240), ("kv-3 10.77.0.1", 10368), ("kv-2 10.77.0.2", 10240)];
    assert_eq!(blocks, expected.map(|(who, first)| (who.to_owned(), first)));
    assert_eq!(h1.proxy.hosts.values().map(|desk| desk.host.as_str()).collect::<Vec<_>>(), ["h2"]);
}

#[test]
fn hosts_of_the_newer_protocol_dial_even_themselves_from_their_blocks() {
    let mut lab = testing::empty_lab(1);
    lab.hosts.values_mut().next().unwrap().address = "fd77::1".parse().unwrap();
    testing::add(&mut lab, "kv", testing::shipped("etcd"), testing::spec("etcd", "etcd", 2));
    let spec = compile(&lab).unwrap().into_values().next().unwrap();
    assert!(spec.dials.near.is_empty());
    assert_eq!(spec.dials.all.len(), 4);
}
