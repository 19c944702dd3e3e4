//! Host specs for tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use faultbed_common::{
    duration::Span,
    fault::HealPolicy,
    generation::{FaultRevision, Generation, Incarnation},
    host_spec::{HostSpec, Launch, NodeSpec, Stop, StopBy, Terms, Wanted},
    name::NodeName,
    probe::{Ask, Probe},
    program::{Content, Pushed},
    proxy_spec::{LinkEffect, LinkFault, Listener, ProxySpec},
    session::{LeaseAges, Orders},
    spec::OnCrash,
};

pub(crate) const BOOT: &str = "this-boot";

pub(crate) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

/// A program whose hash is this digit, again and again.
pub(crate) fn pushed(digit: char) -> Pushed {
    let sha256 = digit.to_string().repeat(64).parse().unwrap();
    Pushed { path: "/home/ada/kv".to_owned(), content: Content { sha256, bytes: 10_000_000 } }
}

pub(crate) fn node_spec() -> NodeSpec {
    NodeSpec {
        cluster: "kv".parse().unwrap(),
        blueprint: None,
        role: "kv".parse().unwrap(),
        wanted: Wanted::Running,
        incarnation: Incarnation(1),
        stop_by: StopBy::Grace,
        wipes: 0,
        recalled: 0,
        gate: None,
        launch: Launch { program: "/bin/true".to_owned(), ..Launch::default() },
        data: "/lab/nodes/x/data".into(),
        private: "127.128.0.1".parse().unwrap(),
        address: "127.77.1.1".parse().unwrap(),
        ports: BTreeMap::new(),
        logs: Vec::new(),
        ready: None,
        role_state: None,
        stop: Stop { signal: 15, grace: Span(Duration::from_secs(5)) },
        on_crash: OnCrash::Stay,
        faults: BTreeMap::new(),
        block: None,
    }
}

pub(crate) fn host_spec(nodes: impl IntoIterator<Item = (NodeName, NodeSpec)>) -> HostSpec {
    let nodes: BTreeMap<NodeName, NodeSpec> = nodes.into_iter().collect();
    HostSpec {
        lab: "try".parse().unwrap(),
        generation: Generation(1),
        host: "h1".parse().unwrap(),
        proxy: ProxySpec {
            generation: Generation(1),
            listeners: nodes.keys().zip(2379..).map(|(n, port)| listener(n, port)).collect(),
            ..ProxySpec::default()
        },
        dials: Arc::default(),
        clusters: Arc::new(["kv".parse().unwrap()].into()),
        nodes,
        wipe_removed: BTreeSet::new(),
        forced: BTreeSet::new(),
        terms: Terms::default(),
    }
}

fn listener(node: &NodeName, port: u16) -> Listener {
    Listener {
        node: node.clone(),
        port: "client".parse().unwrap(),
        listen: SocketAddr::new("127.77.1.1".parse().unwrap(), port),
        upstream: SocketAddr::new("127.128.0.1".parse().unwrap(), port),
    }
}

pub(crate) fn link_fault() -> LinkFault {
    LinkFault {
        revision: FaultRevision(1),
        lasts: None,
        effect: LinkEffect::default(),
        grade: None,
        heal: HealPolicy::default(),
        links: BTreeSet::new(),
        seed: 1,
        probability: None,
        canary: false,
        fast_heal: false,
    }
}

pub(crate) fn orders(spec: HostSpec) -> Orders {
    Orders {
        spec,
        keeps_around: false,
        fault_ages_ms: BTreeMap::new(),
        lease_ages: LeaseAges::default(),
    }
}

pub(crate) fn probe() -> Probe {
    Probe {
        ask: Ask::Tcp { address: "127.0.0.1:1".to_owned() },
        expect: None,
        timeout: Span(Duration::from_secs(1)),
    }
}
