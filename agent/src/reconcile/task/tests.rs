//! The loop over hands that only remember: what it does in which order, and after which deaths.

mod fake;
mod leaving;
mod programs;
mod proxy;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use faultbed_common::{
    blueprint::DialSource,
    generation::{FaultRevision, Generation, Incarnation},
    host_spec::{HostSpec, NodeEffect, NodeFault, NodePort, NodeSpec, Wanted},
    link::Link,
    name::{FaultName, NodeName},
    proxy_spec::{Dials, LinkEffect, LinkFault},
    report::{CanaryVerdict, HostReport, LinkEvidence, NodeState},
    spec::OnCrash,
};
use proptest::prelude::*;
use tokio::task::JoinHandle;

use self::fake::FakeHands;
use super::*;
use crate::reconcile::testing::{
    BOOT, host_spec, link_fault, node, node_spec, orders, probe, pushed,
};

/// Longer than any grace, retry or back-off of these tests, in time that only pretends to pass.
const PATIENCE: Duration = Duration::from_secs(120);

/// A loop that can be killed and begun again over the same host.
struct Harness {
    hands: Arc<FakeHands>,
    dir: tempfile::TempDir,
    spec: HostSpec,
    orders: mpsc::Sender<Told>,
    reports: watch::Receiver<report::Shared>,
    task: JoinHandle<()>,
}

impl Harness {
    fn new() -> Self {
        Self::with(FakeHands::default())
    }

    fn with(hands: FakeHands) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hands = Arc::new(hands);
        let (orders, reports, task) = begin(&hands, &dir);
        let mut spec = host_spec([]);
        spec.generation = Generation(0);
        Self { hands, dir, spec, orders, reports, task }
    }

    /// SIGKILL and a new agent.
    async fn restart(&mut self) {
        self.task.abort();
        (&mut self.task).await.ok();
        (self.orders, self.reports, self.task) = begin(&self.hands, &self.dir);
    }

    fn set(&mut self, name: &str, spec: NodeSpec) {
        self.spec.nodes.insert(node(name), spec);
    }

    fn edit(&mut self, name: &str) -> &mut NodeSpec {
        self.spec.nodes.get_mut(&node(name)).unwrap()
    }

    async fn order(&mut self) {
        self.spec.generation = self.spec.generation.next();
        let nodes = self.spec.nodes.clone();
        self.spec.proxy.listeners = host_spec(nodes).proxy.listeners;
        self.spec.proxy.generation = self.spec.generation;
        self.orders.send(orders(self.spec.clone()).into()).await.unwrap();
    }

    async fn wait(&mut self, what: &str, is_so: impl Fn(&HostReport) -> bool) -> HostReport {
        let waiting = self.reports.wait_for(|report| is_so(report));
        let found = match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(found) => Some((**found.unwrap()).clone()),
            Err(_) => None,
        };
        found.unwrap_or_else(|| panic!("not in time: {what}\n{:#?}", self.reports.borrow()))
    }

    async fn wait_state(&mut self, name: &str, state: NodeState) -> HostReport {
        let name = node(name);
        let generation = self.spec.generation;
        let is_so = |report: &HostReport| {
            report.generation == generation
                && report.nodes.get(&name).is_some_and(|node| node.observed == state)
        };
        self.wait(&format!("{name} {state:?}"), is_so).await
    }

    async fn wait_done(&mut self) -> HostReport {
        let generation = self.spec.generation;
        let is_so = |report: &HostReport| {
            report.generation == generation && report.pending.is_empty() && report.stuck.is_empty()
        };
        self.wait("done", is_so).await
    }
}

type Ends = (mpsc::Sender<Told>, watch::Receiver<report::Shared>, JoinHandle<()>);

fn begin(hands: &Arc<FakeHands>, dir: &tempfile::TempDir) -> Ends {
    let (lab, host) = ("try".parse().unwrap(), "h1".parse().unwrap());
    let ledger = Ledger::open(dir.path(), &lab, &host, BOOT, hands.now()).unwrap();
    let identity = Identity { version: "0".to_owned(), boot_id: BOOT.to_owned() };
    let (reconciler, reports) = Reconciler::new(Arc::clone(hands), ledger, identity);
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    let task = tokio::spawn(reconciler.run(ordered, CancellationToken::new()));
    (orders, reports, task)
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_end_is_killed_after_its_grace() {
    let mut lab = Harness::new();
    lab.set("kv-1", node_spec());
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Ready).await;
    lab.hands.make_stubborn(&node("kv-1"));
    lab.edit("kv-1").wanted = Wanted::Stopped;
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Stopping).await;
    let asked = lab.hands.now();
    lab.wait_state("kv-1", NodeState::Stopped).await;
    let took = asked.until(lab.hands.now());
    assert!((5000..5200).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn rules_are_in_force_while_a_start_takes_long() {
    let mut lab = Harness::new();
    lab.hands.delay_starts(Duration::from_millis(300));
    lab.set("kv-1", node_spec());
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Preparing).await;
    lab.spec.proxy.diallers.insert("127.128.0.9".parse().unwrap(), node("kv-9"));
    lab.order().await;
    let generation = lab.spec.generation;
    lab.wait("rules", |report| {
        report.generation == generation && !report.pending.iter().any(|p| p.starts_with("proxy"))
    })
    .await;
    assert_eq!(lab.hands.rules().unwrap().spec, lab.spec.proxy);
    assert!(lab.hands.living(&node("kv-1")).is_none(), "the start was not waited for");
    lab.wait_state("kv-1", NodeState::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn no_node_starts_before_its_addresses_are_owned() {
    let mut lab = Harness::new();
    lab.set("kv-1", node_spec());
    let listen = "127.77.1.1:2379".parse().unwrap();
    lab.hands.hold_address(listen, Some("port in use by pid 12 (etcd)"));
    lab.order().await;
    let report = lab.wait("stuck", |report| !report.stuck.is_empty()).await;
    let why = "kv-1: cannot own 127.77.1.1:2379: port in use by pid 12 (etcd)";
    assert_eq!(report.stuck, [why]);
    assert!(lab.hands.living(&node("kv-1")).is_none());
    lab.hands.hold_address(listen, None);
    lab.wait_state("kv-1", NodeState::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_command_that_hangs_does_not_keep_a_node_from_being_stopped() {
    let mut lab = Harness::new();
    let mut spec = node_spec();
    spec.launch.init = vec![vec!["hang".to_owned()]];
    lab.set("kv-1", spec);
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Preparing).await;
    let began = lab.hands.now();
    lab.edit("kv-1").wanted = Wanted::Stopped;
    lab.order().await;
    lab.wait_done().await;
    assert!(began.until(lab.hands.now()) < Duration::from_secs(1));
    assert_eq!(lab.hands.commands(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_failed_step_is_shown_and_tried_again() {
    let mut lab = Harness::new();
    let mut spec = node_spec();
    spec.launch.join = Some(vec!["fail-twice".to_owned()]);
    lab.set("kv-1", spec);
    lab.order().await;
    let report = lab.wait("stuck", |report| !report.stuck.is_empty()).await;
    assert_eq!(report.stuck, ["kv-1: join the cluster: no such member"]);
    lab.wait_state("kv-1", NodeState::Ready).await;
    assert_eq!(lab.hands.commands(), ["fail-twice"; 3]);
    lab.edit("kv-1").incarnation = Incarnation(2);
    lab.order().await;
    lab.wait_done().await;
    assert_eq!(lab.hands.commands().len(), 3, "a node joins once");
}

#[tokio::test(start_paused = true)]
async fn crashes_are_counted_and_forgotten_by_a_start_on_purpose() {
    let mut lab = Harness::new();
    lab.set("kv-1", NodeSpec { on_crash: OnCrash::Restart, ..node_spec() });
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Ready).await;
    for restarts in 1..4 {
        lab.hands.crash(&node("kv-1"));
        let name = node("kv-1");
        let report = lab
            .wait("restarted", |report| {
                report.nodes[&name].restarts == restarts
                    && report.nodes[&name].observed == NodeState::Ready
            })
            .await;
        let exit = report.nodes[&name].exit.clone().unwrap();
        assert_eq!((exit.asked, exit.last_lines), (false, vec!["its last words".to_owned()]));
    }
    lab.edit("kv-1").incarnation = Incarnation(9);
    lab.order().await;
    let report = lab.wait_state("kv-1", NodeState::Ready).await;
    let report = match report.nodes[&node("kv-1")].incarnation {
        Incarnation(9) => report,
        _ => lab.wait("nine", |r| r.nodes[&node("kv-1")].incarnation == Incarnation(9)).await,
    };
    assert_eq!(report.nodes[&node("kv-1")].restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_was_hashed_by_an_earlier_agent_is_known_at_once() {
    let mut lab = Harness::new();
    lab.set("kv-1", node_spec());
    lab.order().await;
    let name = node("kv-1");
    let sha = |report: &HostReport| report.nodes[&name].binary.clone().unwrap_or_default().sha256;
    lab.wait("hashed", |report| report.nodes.contains_key(&name) && !sha(report).is_empty()).await;
    lab.restart().await;
    lab.edit("kv-1").incarnation = Incarnation(2);
    lab.order().await;
    let started = |report: &HostReport| {
        report.nodes.get(&name).is_some_and(|node| node.incarnation == Incarnation(2))
    };
    let report = lab.wait("started", started).await;
    assert!(!sha(&report).is_empty(), "a restart shows both hashes");
}

fn custom(lasts: Option<&str>) -> NodeFault {
    NodeFault {
        revision: FaultRevision(1),
        lasts: lasts.map(|lasts| lasts.parse().unwrap()),
        effect: NodeEffect::Custom {
            name: "slow".to_owned(),
            on: Box::new(probe()),
            off: Some(Box::new(faultbed_common::probe::Probe {
                expect: Some("off".to_owned()),
                ..probe()
            })),
        },
    }
}

#[tokio::test(start_paused = true)]
async fn a_custom_effect_is_switched_off_also_by_the_next_agent() {
    let mut lab = Harness::new();
    lab.set("kv-1", node_spec());
    lab.edit("kv-1").faults.insert("slow-1".parse().unwrap(), custom(Some("30s")));
    lab.order().await;
    lab.wait("on", |report| report.faults.values().any(|fault| fault.active)).await;
    assert_eq!(lab.hands.calls(), ["on"]);
    lab.restart().await;
    let report = lab.wait("expired", |r| r.faults.values().any(|fault| fault.expired)).await;
    assert!(report.faults.values().all(|fault| !fault.active));
    lab.wait_done().await;
    assert_eq!(lab.hands.calls(), ["on", "off"]);
}

#[tokio::test(start_paused = true)]
async fn a_custom_effect_is_switched_on_again_after_a_restart() {
    let mut lab = Harness::new();
    lab.set("kv-1", node_spec());
    lab.edit("kv-1").faults.insert("slow-1".parse().unwrap(), custom(None));
    lab.order().await;
    lab.wait("on", |report| report.faults.values().any(|fault| fault.active)).await;
    lab.edit("kv-1").incarnation = Incarnation(2);
    lab.order().await;
    lab.wait_done().await;
    assert_eq!(lab.hands.calls(), ["on", "on"]);
    lab.edit("kv-1").faults.clear();
    lab.order().await;
    let report = lab.wait_done().await;
    assert_eq!(lab.hands.calls(), ["on", "on", "off"]);
    assert!(report.faults.values().all(|fault| !fault.active && !fault.expired));
}

#[tokio::test(start_paused = true)]
async fn before_any_orders_nothing_is_touched() {
    let hands = FakeHands::default();
    hands.make_running(&node("kv-1"), 3);
    let mut lab = Harness::with(hands);
    // A coordinator ends the session of an agent that reports for no host.
    assert_eq!(lab.reports.borrow().host, Some("h1".parse().unwrap()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.reports.borrow().host, Some("h1".parse().unwrap()));
    assert!(lab.hands.living(&node("kv-1")).is_some());
    // Once the lab is known, what is not of it is stopped, and kept.
    lab.order().await;
    lab.wait("gone", |report| report.generation.0 == 1 && report.nodes.is_empty()).await;
    assert!(lab.hands.living(&node("kv-1")).is_none());
    assert!(lab.hands.exists(&node("kv-1")));
}

#[tokio::test(start_paused = true)]
async fn faults_in_force_are_told_with_a_crash() {
    let mut lab = Harness::new();
    lab.set("kv-1", node_spec());
    lab.edit("kv-1").faults.insert("slow-1".parse().unwrap(), custom(None));
    lab.order().await;
    lab.wait_done().await;
    lab.hands.crash(&node("kv-1"));
    let report = lab.wait_state("kv-1", NodeState::Crashed).await;
    let exit = report.nodes[&node("kv-1")].exit.clone().unwrap();
    assert_eq!(exit.faults, ["slow-1".parse().unwrap()]);
}

/// What a lab ends as, whatever happened on the way.
async fn outcome(kills: &[u64]) -> BTreeMap<NodeName, (NodeState, Incarnation)> {
    let mut lab = Harness::new();
    lab.hands.delay_starts(Duration::from_millis(2));
    for name in ["kv-1", "kv-2"] {
        let mut spec = node_spec();
        spec.launch.init = vec![vec!["init".to_owned()]];
        lab.set(name, spec);
    }
    let mut kills = kills.iter();
    let mut kill = async |lab: &mut Harness| {
        if let Some(after) = kills.next() {
            tokio::time::sleep(Duration::from_micros(*after)).await;
            lab.restart().await;
        }
    };
    lab.order().await;
    kill(&mut lab).await;
    // Orders that were lost with an agent are sent again, as a coordinator does.
    lab.orders.send(orders(lab.spec.clone()).into()).await.unwrap();
    lab.edit("kv-1").incarnation = Incarnation(2);
    lab.edit("kv-2").wanted = Wanted::Stopped;
    lab.order().await;
    kill(&mut lab).await;
    lab.orders.send(orders(lab.spec.clone()).into()).await.unwrap();
    kill(&mut lab).await;
    lab.orders.send(orders(lab.spec.clone()).into()).await.unwrap();
    let report = lab.wait_done().await;
    let nodes = report.nodes.into_iter();
    nodes.map(|(name, node)| (name, (node.observed, node.incarnation))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_agent_killed_at_any_step_reaches_the_same_end_without_a_second_copy(
        kills in proptest::collection::vec(0..6000_u64, 0..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let end = runtime.block_on(outcome(&kills));
        prop_assert_eq!(end[&node("kv-1")], (NodeState::Ready, Incarnation(2)));
        let stopped = end[&node("kv-2")].0;
        prop_assert!(matches!(stopped, NodeState::Stopped | NodeState::Absent), "{stopped:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_canary_asks_before_while_and_after_a_cut() {
    let mut lab = Harness::new();
    let mut spec = node_spec();
    let port = NodePort { port: 2379, proxied: true, url: None, source: DialSource::Proxy };
    spec.ports.insert("client".parse().unwrap(), port);
    lab.set("kv-2", spec);
    lab.order().await;
    lab.wait_state("kv-2", NodeState::Ready).await;
    let link: Link = "kv-1>kv-2".parse().unwrap();
    let effect = LinkEffect { dials: Some(Dials::TimeOut), ..LinkEffect::default() };
    let fault = LinkFault { effect, canary: true, links: [link.clone()].into(), ..link_fault() };
    let name: FaultName = "split".parse().unwrap();
    lab.spec.proxy.diallers.insert("127.128.0.1".parse().unwrap(), node("kv-1"));
    lab.spec.proxy.faults.insert(name.clone(), fault);
    lab.order().await;
    let canary = |report: &HostReport| report.faults.get(&name)?.canary.get(&link).cloned();
    let agrees = |report: &HostReport| {
        canary(report).is_some_and(|canary| {
            canary.verdict == CanaryVerdict::Agrees && canary.before == Some(true)
        })
    };
    lab.wait("it agrees", agrees).await;
    lab.spec.proxy.faults.clear();
    lab.order().await;
    let is_over = |report: &HostReport| canary(report).is_some_and(|canary| canary.is_over);
    let report = lab.wait("it is over", is_over).await;
    let canary = canary(&report).unwrap();
    assert_eq!((canary.verdict, canary.answers), (CanaryVerdict::Agrees, 0), "{canary:?}");
    assert!(canary.healed_after_ms.is_some(), "{canary:?}");
}

#[tokio::test(start_paused = true)]
async fn evidence_survives_the_agent() {
    let mut lab = Harness::new();
    let mut spec = node_spec();
    let name: FaultName = "held".parse().unwrap();
    let fault = NodeFault { revision: FaultRevision(1), lasts: None, effect: NodeEffect::Pause };
    spec.faults.insert(name.clone(), fault);
    lab.set("kv-1", spec);
    lab.order().await;
    lab.wait_state("kv-1", NodeState::Paused).await;
    lab.edit("kv-1").faults.clear();
    lab.order().await;
    let is_over = |report: &HostReport| report.faults.get(&name).is_some_and(|fault| !fault.active);
    lab.wait("it is over", is_over).await;
    let is_kept = |lab: &Harness| lab.hands.kept().ended.contains_key(&name);
    tokio::time::timeout(PATIENCE, async {
        while !is_kept(&lab) {
            lab.reports.changed().await.unwrap();
        }
    })
    .await
    .unwrap();
    lab.restart().await;
    lab.wait("it is known to have been", is_over).await;
}
