//! Where nodes go, and that they stay there.

use std::fmt::Write;

use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::{spec::NodeOverride, testing};

/// One line for each node: name, host, private address, ports.
fn table(lab: &Lab) -> String {
    let mut out = String::new();
    for (name, node) in lab.clusters.values().flat_map(|cluster| &cluster.nodes) {
        let ports: Vec<u16> = node.ports.values().copied().collect();
        let joined = if node.joined { " joined" } else { "" };
        let _ = writeln!(out, "{name} {} {} {ports:?}{joined}", node.host, node.private);
    }
    out
}

/// Changes the spec of a placed cluster and places it again.
fn replace(lab: &mut Lab, name: &str, spec: ClusterSpec) -> Result<(), String> {
    replace_among(lab, name, spec, &BTreeMap::new())
}

fn replace_among(
    lab: &mut Lab,
    name: &str,
    spec: ClusterSpec,
    foreign: &Foreign,
) -> Result<(), String> {
    let name: ClusterName = name.parse().unwrap();
    let fresh = || testing::cluster(testing::shipped("etcd"), ClusterSpec::default()).into();
    let mut next = lab.clusters.get(&name).cloned().unwrap_or_else(fresh);
    next.spec = spec;
    place(lab, &name, &mut next, foreign).map_err(|error| error.to_string())?;
    lab.clusters.insert(name, next);
    Ok(())
}

fn etcd(count: u32, change: impl FnOnce(&mut RoleSpec)) -> ClusterSpec {
    let mut spec = testing::spec("etcd", "etcd", count);
    change(spec.roles.values_mut().next().unwrap());
    spec
}

#[test]
fn nodes_spread_over_hosts_and_ports_move_as_a_set_where_they_are_taken() {
    let mut lab = testing::empty_lab(3);
    replace(&mut lab, "kv", etcd(4, |_| ())).unwrap();
    testing::add(&mut lab, "db", testing::db_blueprint(), ClusterSpec::default());
    testing::add(&mut lab, "db2", testing::db_blueprint(), ClusterSpec::default());
    expect![[r#"
        db-meta-1 h2 127.130.128.5 [7000, 7001]
        db-meta-2 h3 127.130.128.6 [7000, 7001]
        db-meta-3 h1 127.130.128.7 [7000, 7001]
        db-store-1 h2 127.130.128.8 [7011, 7010]
        db-store-2 h3 127.130.128.9 [7011, 7010]
        db2-meta-1 h1 127.130.128.10 [7010, 7011]
        db2-meta-2 h2 127.130.128.11 [7020, 7021]
        db2-meta-3 h3 127.130.128.12 [7020, 7021]
        db2-store-1 h1 127.130.128.13 [7021, 7020]
        db2-store-2 h2 127.130.128.14 [7031, 7030]
        kv-1 h1 127.130.128.1 [2379, 22381, 2380]
        kv-2 h2 127.130.128.2 [2379, 22381, 2380]
        kv-3 h3 127.130.128.3 [2379, 22381, 2380]
        kv-4 h1 127.130.128.4 [2389, 22391, 2390]
    "#]]
    .assert_eq(&table(&lab));
}

#[test]
fn scaling_keeps_every_choice_removes_the_highest_and_never_gives_a_number_twice() {
    let mut lab = testing::lab();
    let before = lab.clusters.clone();
    replace(&mut lab, "kv", etcd(5, |_| ())).unwrap();
    replace(&mut lab, "kv", etcd(2, |_| ())).unwrap();
    replace(&mut lab, "kv", etcd(3, |_| ())).unwrap();
    expect![[r#"
        kv-1 h1 127.130.128.1 [2379, 22381, 2380]
        kv-2 h2 127.130.128.2 [2379, 22381, 2380]
        kv-6 h3 127.130.128.3 [2379, 22381, 2380] joined
    "#]]
    .assert_eq(&table(&lab));
    let (kv, old) = (lab.clusters.values().next().unwrap(), before.values().next().unwrap());
    for node in ["kv-1", "kv-2"].map(|node| node.parse::<NodeName>().unwrap()) {
        assert_eq!(kv.nodes[&node], old.nodes[&node]);
    }
}

#[test]
fn a_listener_of_somebody_else_moves_the_ports_only_where_it_is_in_the_way() {
    let listener = |address: &str| ForeignListener {
        address: address.parse().unwrap(),
        holder: "pid 12 (etcd)".to_owned(),
    };
    let foreign: Foreign = BTreeMap::from([
        ("h1".parse().unwrap(), vec![listener("0.0.0.0:2380")]),
        ("h2".parse().unwrap(), vec![listener("127.0.0.1:2379"), listener("[::]:2389")]),
        ("h3".parse().unwrap(), vec![listener("127.77.5.3:2379"), listener("[::]:2389")]),
    ]);
    let mut lab = testing::empty_lab(3);
    replace_among(&mut lab, "kv", etcd(3, |_| ()), &foreign).unwrap();
    expect![[r#"
        kv-1 h1 127.130.128.1 [2389, 22391, 2390]
        kv-2 h2 127.130.128.2 [2379, 22381, 2380]
        kv-3 h3 127.130.128.3 [2399, 22401, 2400]
    "#]]
    .assert_eq(&table(&lab));

    let all = (1..=u16::MAX).map(|port| listener(&format!("0.0.0.0:{port}"))).collect();
    let foreign: Foreign = BTreeMap::from([("h1".parse().unwrap(), all)]);
    let mut lab = testing::empty_lab(1);
    let refused = replace_among(&mut lab, "kv", etcd(1, |_| ()), &foreign).unwrap_err();
    expect![
        "cluster kv: host h1 has no free ports for node kv-1; port 2379 is held by pid 12 (etcd)"
    ]
    .assert_eq(&refused);
}

#[test]
fn a_node_that_is_leaving_keeps_its_addresses_until_it_is_gone() {
    let listener = |address: &str| ForeignListener {
        address: address.parse().unwrap(),
        holder: "kv-9, which is leaving".to_owned(),
    };
    let both = vec![listener("127.77.5.1:2379"), listener("127.130.128.1:2379")];
    let foreign: Foreign = BTreeMap::from([("h1".parse().unwrap(), both)]);
    let mut lab = testing::empty_lab(1);
    replace_among(&mut lab, "kv", etcd(1, |_| ()), &foreign).unwrap();
    expect![[r#"
        kv-1 h1 127.130.128.2 [2389, 22391, 2390]
    "#]]
    .assert_eq(&table(&lab));
}

#[test]
fn hosts_are_chosen_by_name_by_label_and_for_one_node() {
    let mut lab = testing::empty_lab(4);
    let spec = etcd(4, |role| {
        role.hosts = vec!["h3".to_owned(), "label:n=2".to_owned()];
        let host = Some("h4".parse().unwrap());
        role.node.insert(1, NodeOverride { host, ..NodeOverride::default() });
    });
    replace(&mut lab, "kv", spec).unwrap();
    expect![[r#"
        kv-1 h4 127.130.128.1 [2379, 22381, 2380]
        kv-2 h2 127.130.128.2 [2379, 22381, 2380]
        kv-3 h3 127.130.128.3 [2379, 22381, 2380]
        kv-4 h2 127.130.128.4 [2389, 22391, 2390]
    "#]]
    .assert_eq(&table(&lab));
}

#[test]
fn what_cannot_be_placed_is_refused_with_what_to_do() {
    let mut said = String::new();
    let mut try_it = |lab: &mut Lab, name: &str, spec: ClusterSpec| {
        let _ = writeln!(said, "{}", replace(lab, name, spec).unwrap_err());
    };
    let pin = |host: &str| {
        let host = Some(host.parse().unwrap());
        NodeOverride { host, ..NodeOverride::default() }
    };
    let mut lab = testing::lab();
    let mut hosts = |name: &str| {
        let spec = etcd(1, |role| role.hosts = vec![name.to_owned()]);
        try_it(&mut testing::empty_lab(3), "kv", spec);
    };
    hosts("h33");
    hosts("east");
    hosts("label:dc=east");
    hosts("label:dc");
    try_it(&mut lab, "kv", etcd(3, |role| drop(role.node.insert(2, pin("h1")))));
    try_it(&mut lab, "other", etcd(3, |role| drop(role.node.insert(2, pin("h9")))));
    try_it(&mut lab, "other", etcd(3, |role| drop(role.node.insert(4, pin("h1")))));
    try_it(&mut lab, "other", etcd(0, |_| ()));
    try_it(&mut lab, "other", etcd(10_000_000, |_| ()));
    try_it(&mut lab, "other", testing::spec("etcd", "etdc", 1));
    try_it(&mut lab, "kv-3", etcd(1, |_| ()));
    try_it(&mut lab, &"a".repeat(40), etcd(1, |_| ()));
    try_it(&mut testing::empty_lab(0), "kv", etcd(1, |_| ()));
    let h2 = "h2".parse::<HostName>().unwrap();
    lab.hosts.remove(&h2);
    try_it(&mut lab, "kv", etcd(3, |_| ()));
    let mut lab = testing::empty_lab(3);
    testing::add(&mut lab, "a", testing::db_blueprint(), ClusterSpec::default());
    try_it(&mut lab, "a-meta", etcd(1, |_| ()));
    expect![[r#"
        cluster kv: etcd.hosts: there is no host "h33"; the lab has h1, h2, h3
        cluster kv: etcd.hosts: there is no host "east"; the lab has h1, h2, h3
        cluster kv: etcd.hosts: no host has the label "dc=east"; hosts have n=1, n=2, n=3
        cluster kv: etcd.hosts: "label:dc" is written label:KEY=VALUE
        cluster kv: node kv-2 is on host h2 and its data cannot move to h1; delete the cluster first, or leave out host
        cluster other: etcd.node.2.host: there is no host "h9"; the lab has h1, h2, h3
        cluster other: etcd.node.4 names no node; the numbers of etcd go to 3
        cluster other: count of etcd is 0; it goes from 1 to 1000
        cluster other: count of etcd is 10000000; it goes from 1 to 1000
        cluster other: blueprint etcd has no role etdc; did you mean "etcd"?
        cluster kv-3: kv-3 is already a node of cluster kv; choose another name
        cluster aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-1" is not a node name: it is longer than 40 bytes; choose a shorter name for the cluster
        cluster kv: etcd.hosts: the lab has no hosts
        cluster kv: node kv-2 is on host h2, which is not in the lab
        cluster a-meta: its node a-meta-1 would be called like one of cluster a; choose another name
    "#]].assert_eq(&said);
}

#[test]
fn a_role_that_its_blueprint_can_do_without_is_left_out() {
    let blueprint = testing::shipped("tidb");
    let placed = |counts: [(&str, u32); 3]| {
        let mut spec = testing::spec("tidb", "tidb", 0);
        for (role, count) in counts {
            spec.roles.entry(role.parse().unwrap()).or_default().count = Some(count);
        }
        let mut next = testing::cluster(blueprint.clone(), spec);
        let name = "db".parse().unwrap();
        place(&testing::empty_lab(3), &name, &mut next, &BTreeMap::new())
            .map(|()| next.nodes.len())
            .map_err(|error| error.to_string())
    };
    assert_eq!(placed([("pd", 1), ("tikv", 3), ("tidb", 0)]), Ok(4));
    let refused = "cluster db: count of tikv is 0; it goes from 1 to 1000".to_owned();
    assert_eq!(placed([("pd", 1), ("tikv", 0), ("tidb", 0)]), Err(refused));
}

#[test]
fn a_cluster_whose_blueprint_lost_a_port_under_it_is_refused() {
    let mut lab = testing::lab();
    let kv = lab.clusters.values_mut().next().unwrap();
    kv.blueprint.roles.values_mut().next().unwrap().ports.pop_last();
    let spec = kv.spec.clone();
    expect!["cluster kv: the ports of role etcd have changed in its blueprint while kv-1 has its own; delete the cluster first"].assert_eq(&replace(&mut lab, "kv", spec).unwrap_err());
}

proptest! {
    /// Whatever is asked for in whatever order: no two nodes share an address, no two on a host
    /// share a port, copies are spread evenly, and to place again changes nothing.
    #[test]
    fn laws(
        hosts in 1_u8..6,
        asks in prop::collection::vec((0_usize..3, 1_u32..7), 1..8),
    ) {
        let mut lab = testing::empty_lab(hosts);
        for (which, count) in asks {
            let name = ["a", "b", "db"][which];
            let cluster: ClusterName = name.parse().unwrap();
            if name == "db" {
                let blueprint = testing::db_blueprint();
                let mut next = lab.clusters.get(&cluster).cloned()
                    .unwrap_or_else(|| testing::cluster(blueprint, ClusterSpec::default()).into());
                next.spec = testing::spec("db", "store", count);
                place(&lab, &cluster, &mut next, &BTreeMap::new()).unwrap();
                lab.clusters.insert(cluster.clone(), next);
            } else {
                replace(&mut lab, name, etcd(count, |_| ())).unwrap();
            }
            let mut again = lab.clusters[&cluster].clone();
            place(&lab, &cluster, &mut again, &BTreeMap::new()).unwrap();
            prop_assert_eq!(&again, &lab.clusters[&cluster]);
        }
        let mut addresses = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for cluster in lab.clusters.values() {
            for (name, node) in &cluster.nodes {
                prop_assert!(addresses.insert(node.private), "{name}");
                for port in ports::used(node, &cluster.blueprint) {
                    prop_assert!(taken.insert((node.host.clone(), port)), "{name} {port}");
                }
            }
        }
    }

    /// A cluster that is placed at once is spread evenly.
    #[test]
    fn fresh_clusters_are_spread_evenly(hosts in 1_u8..6, count in 1_u32..20) {
        let mut lab = testing::empty_lab(hosts);
        replace(&mut lab, "kv", etcd(count, |_| ())).unwrap();
        let kv = lab.clusters.values().next().unwrap();
        let loads: Vec<usize> = lab.hosts.keys()
            .map(|host| kv.nodes.values().filter(|node| &node.host == host).count())
            .collect();
        prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{loads:?}");
    }
}

/// Makes machines of their own of the hosts of a lab.
fn real(mut lab: Lab) -> Lab {
    for (n, host) in (1..).zip(lab.hosts.values_mut()) {
        host.address = [10, 77, 0, n].into();
        host.port_range = Some((32768, 60999));
    }
    lab
}

fn blocks(lab: &Lab) -> Vec<(String, u16, u16)> {
    let nodes = lab.clusters.values().flat_map(|cluster| &cluster.nodes);
    let block = |(name, place): (&NodeName, &Placement)| {
        let block = place.block?;
        Some((format!("{name} {}", place.host), block.first, block.count))
    };
    nodes.filter_map(block).collect()
}

#[test]
fn nodes_of_real_hosts_get_ports_of_their_own_to_dial_from() {
    let mut lab = real(testing::empty_lab(2));
    replace(&mut lab, "kv", etcd(3, |_| ())).unwrap();
    let expected = [("kv-1 h1", 10240), ("kv-2 h2", 10240), ("kv-3 h1", 10368)];
    assert_eq!(blocks(&lab), expected.map(|(node, first)| (node.to_owned(), first, 128)));
    // Simulated hosts need none: their nodes dial from private addresses.
    let mut simulated = testing::empty_lab(2);
    replace(&mut simulated, "kv", etcd(3, |_| ())).unwrap();
    assert_eq!(blocks(&simulated), []);
}

#[test]
fn blocks_keep_clear_of_the_kernels_range_of_listeners_and_of_service_ports() {
    let mut lab = real(testing::empty_lab(1));
    let h1 = lab.hosts.values_mut().next().unwrap();
    h1.port_range = Some((10000, 30000));
    let listener = |port: u16| ForeignListener {
        address: ([0, 0, 0, 0], port).into(),
        holder: "pid 12 (x)".to_owned(),
    };
    let foreign: Foreign = BTreeMap::from([("h1".parse().unwrap(), vec![listener(30100)])]);
    replace_among(&mut lab, "kv", etcd(2, |_| ()), &foreign).unwrap();
    assert_eq!(
        blocks(&lab),
        [("kv-1 h1".to_owned(), 30101, 128), ("kv-2 h1".to_owned(), 30229, 128)]
    );
    // Ports of later nodes keep clear of the blocks that are there.
    let taken = ports::Taken::on(
        &lab,
        &"other".parse().unwrap(),
        &testing::cluster(testing::shipped("etcd"), ClusterSpec::default()),
        &"h1".parse().unwrap(),
        &Foreign::new(),
    );
    let wanted = crate::blueprint::Port {
        default: 30101,
        url: None,
        reserve: Vec::new(),
        proxied: true,
        source: crate::blueprint::DialSource::Proxy,
    };
    let wanted = BTreeMap::from([("client".parse().unwrap(), wanted)]);
    let node = "other-1".parse().unwrap();
    let chosen = ports::choose(&node, &"h1".parse().unwrap(), &wanted, &taken).unwrap();
    assert_eq!(chosen.into_values().collect::<Vec<_>>(), [30361]);
}

#[test]
fn released_blocks_rest_until_the_others_had_their_turn() {
    let mut lab = real(testing::empty_lab(1));
    let mut firsts = Vec::new();
    for _ in 0..300 {
        let name = "kv".parse().unwrap();
        let mut next = testing::cluster(testing::shipped("etcd"), etcd(1, |_| ()));
        place(&lab, &name, &mut next, &Foreign::new()).unwrap();
        for (host, from) in next_blocks(&lab, &name, &next) {
            lab.hosts.get_mut(&host).unwrap().next_block = Some(from);
        }
        firsts.extend(next.nodes.values().filter_map(|place| place.block));
    }
    assert!(firsts.iter().all(|block| block.last() < 32768 || block.first > 60999));
    let distinct: BTreeSet<_> = firsts[..200].iter().collect();
    assert_eq!(distinct.len(), 200, "none comes back while 200 others have not been");
    assert!(firsts[200..].iter().any(|block| block.first == 10240), "then they begin again");
}

#[test]
fn more_ports_can_be_asked_for_and_are_refused_where_there_are_none() {
    let mut lab = real(testing::empty_lab(1));
    replace(&mut lab, "kv", etcd(1, |role| role.dial_ports = Some(1024))).unwrap();
    assert_eq!(blocks(&lab), [("kv-1 h1".to_owned(), 10240, 1024)]);
    let before = blocks(&lab);
    replace(&mut lab, "kv", etcd(1, |role| role.dial_ports = Some(64))).unwrap();
    assert_eq!(blocks(&lab), before, "chosen once");
    let refused = replace(&mut lab, "kv2", etcd(1, |role| role.dial_ports = Some(20000)));
    expect!["cluster kv2: etcd.dial_ports is 20000; it goes from 1 to 16384"]
        .assert_eq(&refused.unwrap_err());
    lab.hosts.values_mut().next().unwrap().port_range = Some((1024, 65535));
    let refused = replace(&mut lab, "kv2", etcd(1, |role| role.dial_ports = Some(64)));
    expect!["cluster kv2: host h1 has no 64 free ports in a row for kv2-1 to dial other hosts from; ask for less with dial_ports, or place it on another host"].assert_eq(&refused.unwrap_err());
    // Nobody asked: it runs, and is named by asking its host.
    replace(&mut lab, "kv2", etcd(1, |_| ())).unwrap();
    assert_eq!(blocks(&lab), before);
    // It gets one at the first edit after there is room.
    lab.hosts.values_mut().next().unwrap().port_range = None;
    replace(&mut lab, "kv2", etcd(1, |_| ())).unwrap();
    assert_eq!(blocks(&lab).len(), 2);
}
