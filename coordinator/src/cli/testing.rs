//! Fixed documents for the tests of the command line.

use std::collections::BTreeMap;

use faultbed_common::{
    generation::{Generation, Incarnation},
    host_spec::Wanted,
    lab::Resolved,
    link::Link,
    report::{BinaryReport, ExitReport, Identity, LinkEvidence, NodeState},
    status::{
        ClusterState, ClusterStatus, Evidence, FaultGrade, FaultState, FaultStatus, HostState,
        HostStatus, NodeStatus, Status, Verdict,
    },
};

/// Three ready nodes of `kv` on three hosts; `kv-1` leads.
pub(crate) fn three_nodes() -> Status {
    Status {
        api: 1,
        lab: "lab".parse().unwrap(),
        generation: Generation(4),
        converged: true,
        pending: Vec::new(),
        stuck: Vec::new(),
        hosts: (1..=3).map(host).collect(),
        clusters: vec![ClusterStatus {
            name: "kv".parse().unwrap(),
            blueprint: "etcd".into(),
            owner: "ann".into(),
            state: ClusterState::Ready,
            lease: None,
        }],
        nodes: (1..=3).map(node).collect(),
        leaving: Vec::new(),
        faults: Vec::new(),
        forgotten: BTreeMap::new(),
        bypasses: Vec::new(),
        lease: None,
    }
}

fn host(number: u8) -> HostStatus {
    HostStatus {
        name: format!("h{number}").parse().unwrap(),
        address: format!("127.77.1.{number}"),
        labels: BTreeMap::new(),
        drained: false,
        state: HostState::Up,
        generation: Generation(4),
        version: "0.1.0".into(),
        seen_age_ms: Some(120),
        boot_id: String::new(),
        warnings: Vec::new(),
    }
}

fn node(number: u8) -> NodeStatus {
    NodeStatus {
        name: format!("kv-{number}").parse().unwrap(),
        cluster: "kv".parse().unwrap(),
        role: "etcd".parse().unwrap(),
        host: format!("h{number}").parse().unwrap(),
        wanted: Wanted::Running,
        observed: NodeState::Ready,
        pid: Some(4000 + u32::from(number)),
        incarnation: Incarnation(1),
        leader: Some(number == 1),
        role_state: Some(if number == 1 { "leader" } else { "follower" }.into()),
        term: Some(2),
        leads: None,
        exit: None,
        endpoints: BTreeMap::from([
            ("client".into(), format!("http://127.77.1.{number}:2379")),
            ("peer".into(), format!("http://127.77.1.{number}:2380")),
        ]),
        private: BTreeMap::from([("client".into(), format!("127.128.128.{number}:2379"))]),
        binary: Some(BinaryReport {
            path: "/usr/bin/etcd".into(),
            sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".into(),
            version: Some("etcd Version: 3.4.23".into()),
        }),
        identity: Identity::Address,
        dial_ports: None,
        faults: Vec::new(),
        why: None,
        restarts: 0,
        state_age_ms: Some(12_000),
    }
}

/// Makes `kv-2` crash with two last lines under a fault.
pub(crate) fn crash_second(status: &mut Status) {
    let node = &mut status.nodes[1];
    node.observed = NodeState::Crashed;
    node.pid = None;
    node.leader = None;
    node.role_state = None;
    node.exit = Some(ExitReport {
        incarnation: Incarnation(1),
        code: Some(2),
        signal: None,
        at_ms: 0,
        asked: false,
        rebooted: false,
        last_lines: vec!["panic: index out of range".into(), "goroutine 1 [running]:".into()],
        faults: vec!["split".parse().unwrap()],
        probe: Some("http 127.128.128.2:2379/health: connection refused".into()),
    });
    status.clusters[0].state = ClusterState::Degraded;
}

/// A partition of `kv-1` from the others, in force and met by traffic.
pub(crate) fn split() -> FaultStatus {
    let node = |n: u8| format!("kv-{n}").parse().unwrap();
    FaultStatus {
        name: "split".parse().unwrap(),
        owner: "ann".into(),
        state: FaultState::Active,
        why: None,
        summary: "cut".into(),
        grade: FaultGrade::Packet,
        in_force: true,
        grades: BTreeMap::new(),
        lingers_on: Vec::new(),
        links: 4,
        remaining_ms: Some(598_000),
        resolved: Resolved {
            groups: vec![vec!["kv-1".into()], vec!["kv-2".into(), "kv-3".into()]],
            links: [Link::between(&node(1), &node(2)), Link::between(&node(2), &node(1))].into(),
            nodes: [].into(),
            untouched: Vec::new(),
        },
        evidence: Evidence {
            verdict: Verdict::Confirmed,
            total: LinkEvidence {
                connections: 2,
                dropped_segments: 12,
                attempts_refused: 3,
                ..LinkEvidence::default()
            },
            ..Evidence::default()
        },
    }
}
