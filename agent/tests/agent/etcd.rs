//! A real cluster of three on one host, from the shipped blueprint.

use std::{collections::BTreeMap, io::Write as _, net::TcpStream, time::Duration};

use faultbed_common::{
    blueprint::Blueprint,
    file,
    generation::{FaultRevision, Generation},
    host_spec::HostSpec,
    lab::{Cluster, Host, Means, Origin},
    link::Link,
    name::{HostName, NodeName},
    proxy_spec::{Cut, LinkEffect, LinkFault},
    report::{HostReport, Identity, NodeState},
};

use super::lab::{Lab, is_alive};

/// The host spec of a cluster `kv` of three.
fn kv(lab: &Lab) -> HostSpec {
    let text = file::SHIPPED.iter().find(|(name, _)| *name == "etcd").unwrap().1;
    let blueprint: Blueprint = file::parse_blueprint(text).unwrap();
    let IpOctet(octet) = lab.address().into();
    let mut all = faultbed_common::lab::Lab::new("try".parse().unwrap(), octet);
    let host = Host::new(lab.address(), lab.host_dir());
    all.hosts.insert("h1".parse().unwrap(), host);
    let mut cluster = Cluster {
        spec: toml_spec(),
        blueprint,
        origin: Origin { owner: "ada".to_owned(), by: Means::Verb },
        nodes: BTreeMap::new(),
        last_index: BTreeMap::new(),
        been_ready: Default::default(),
        relist: faultbed_common::lab::Relist::default(),
        token: "try-kv".to_owned(),
        lease: None,
        authority: None,
    };
    let name = "kv".parse().unwrap();
    faultbed_common::place::place(&all, &name, &mut cluster, &BTreeMap::new()).unwrap();
    all.clusters.insert(name, cluster.into());
    all.generation = Generation(1);
    let mut specs = faultbed_common::compile::compile(&all).unwrap();
    specs.remove(&"h1".parse::<HostName>().unwrap()).unwrap()
}

struct IpOctet(u8);

impl From<std::net::IpAddr> for IpOctet {
    fn from(address: std::net::IpAddr) -> Self {
        match address {
            std::net::IpAddr::V4(v4) => Self(v4.octets()[2]),
            std::net::IpAddr::V6(_) => panic!("hosts of these tests have IPv4 addresses"),
        }
    }
}

fn toml_spec() -> faultbed_common::spec::ClusterSpec {
    serde_json::from_str(r#"{"blueprint": "etcd"}"#).unwrap()
}

fn ready(report: &HostReport) -> usize {
    report.nodes.values().filter(|node| node.observed == NodeState::Ready).count()
}

fn leader(report: &HostReport) -> Option<NodeName> {
    let mut leaders = report.nodes.iter().filter(|(_, node)| node.leader == Some(true));
    let found = leaders.next().map(|(name, _)| name.clone());
    found.filter(|_| leaders.next().is_none())
}

#[test]
fn three_real_members_serve_survive_their_agent_and_lose_a_leader_to_a_cut() {
    let mut lab = Lab::new();
    lab.spec = kv(&lab);
    lab.spec.generation = Generation(0);
    lab.order();
    let report = lab.wait("three ready with one leader", |report| {
        ready(report) == 3 && leader(report).is_some()
    });
    let pids: Vec<Option<u32>> = report.nodes.values().map(|node| node.pid).collect();
    let versions = lab.wait("their programs", |report| {
        report.nodes.values().all(|node| {
            let binary = node.binary.as_ref();
            binary.is_some_and(|binary| binary.version.is_some() && !binary.sha256.is_empty())
                && node.identity == Identity::Address
        })
    });
    for node in versions.nodes.values() {
        let binary = node.binary.as_ref().unwrap();
        assert!(binary.version.as_ref().unwrap().starts_with("etcd Version:"), "{binary:?}");
        assert_eq!(binary.sha256.len(), 64);
    }
    lab.kill_agent();
    lab.start_agent();
    let report = lab.wait("ready again", |report| ready(report) == 3);
    assert_eq!(report.nodes.values().map(|node| node.pid).collect::<Vec<_>>(), pids);
    let proxy = lab.wait("its proxy", |report| report.proxy.is_some()).proxy.unwrap().pid;

    let first = lab.wait("a leader", |report| leader(report).is_some());
    let isolated = leader(&first).unwrap();
    cut(&mut lab, &isolated);
    lab.wait("the cut in force", |report| report.faults.values().any(|fault| fault.active));
    let elected = lab.wait("another leader", |report| {
        let others = report.nodes.iter().filter(|(name, _)| **name != isolated);
        others.filter(|(_, node)| node.leader == Some(true)).count() == 1
    });
    assert!(is_alive(proxy), "{}\n{}", lab.log(), lab.proxy_log());
    let node = &elected.nodes[&isolated];
    assert_eq!(node.pid, first.nodes[&isolated].pid);
    lab.spec.proxy.faults.clear();
    lab.order();
    lab.wait("healed", |report| ready(report) == 3 && leader(report).is_some());
}

/// Cuts a node from the others, both ways.
fn cut(lab: &mut Lab, isolated: &NodeName) {
    let others = lab.spec.nodes.keys().filter(|name| *name != isolated);
    let links = others.flat_map(|other| {
        let link = Link::between(isolated, other);
        [link.reversed(), link]
    });
    let fault = LinkFault {
        revision: FaultRevision(1),
        lasts: Some("60s".parse().unwrap()),
        effect: LinkEffect { cut: Some(Cut::Packets), ..LinkEffect::default() },
        grade: None,
        heal: Default::default(),
        links: links.collect(),
        seed: 1,
        probability: None,
        canary: false,
        fast_heal: false,
    };
    lab.spec.proxy.faults.insert("cut-1".parse().unwrap(), fault);
    lab.order();
}

#[test]
fn a_connection_around_the_proxy_is_found_and_named() {
    let mut lab = Lab::new();
    lab.spec = kv(&lab);
    lab.spec.generation = Generation(0);
    lab.order();
    lab.wait("three ready", |report| ready(report) == 3);
    let around = {
        let spec = lab.spec.nodes.values().next().unwrap();
        let port = spec.ports.values().next().unwrap().port;
        std::net::SocketAddr::new(spec.private, port)
    };
    let mut stream = TcpStream::connect_timeout(&around, Duration::from_secs(1)).unwrap();
    stream.write_all(b"x").unwrap();
    let report = lab.wait("the bypass", |report| !report.bypasses.is_empty());
    assert_eq!(report.bypasses.len(), 1, "{:?}", report.bypasses);
    let own = format!("pid {} (", std::process::id());
    assert!(report.bypasses[0].from.starts_with(&own), "{:?}", report.bypasses);
    assert_eq!(report.bypasses[0].address, around);
    drop(stream);
    lab.wait("no bypass any more", |report| report.bypasses.is_empty());
}

#[test]
fn a_cluster_comes_down_without_waiting_for_members_that_are_gone() {
    let mut lab = Lab::new();
    lab.spec = kv(&lab);
    lab.spec.generation = Generation(0);
    lab.order();
    lab.wait("three ready", |report| ready(report) == 3 && leader(report).is_some());
    let began = std::time::Instant::now();
    let (code, outcome) = lab.down(&[]);
    assert_eq!(code, 0, "{outcome}");
    // A leader that finds nobody to take over waits for 7 s.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
