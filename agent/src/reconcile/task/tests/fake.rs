//! Hands that only remember: a host in memory, which panics where two copies of a node would live.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use faultbed_common::{
    fault::Grade,
    generation::{FaultRevision, Incarnation},
    host_spec::NodeSpec,
    link::Link,
    name::NodeName,
    probe::Probe,
    program::{Pushed, Sha256},
    proxy_spec::ProxyFile,
    report::{FaultReport, Identity, LinkEvidence, REFUSED},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    binaries::{self, Binary},
    canary::{Answer, Question},
    clock::BootTime,
    reconcile::{
        Asked, Ended, Fetching, NodeOrders, NodeRecord, Run, Running, Why,
        evidence::Kept,
        hands::{
            CommandFailed, CommandOrder, Hands, ProxyApplied, ProxySeen, StartOrder, Survey,
            SurveyOrder,
        },
    },
};

/// A test that failed must not wait for its threads for ever.
const HOLD_MAX: Duration = Duration::from_secs(60);

/// What a host in memory is.
#[derive(Debug, Default)]
struct World {
    nodes: BTreeMap<NodeName, Node>,
    rules: Option<ProxyFile>,
    has_proxy: bool,
    evidence: Kept,
    held: BTreeMap<SocketAddr, String>,
    stubborn: BTreeSet<NodeName>,
    calls: Vec<String>,
    commands: Vec<String>,
    programs: BTreeSet<Sha256>,
    start_delay: Duration,
    answer_delay: Duration,
    holds_rules: bool,
    /// What the proxy has counted of this revision of any fault.
    counted: Option<(FaultRevision, BTreeMap<Link, LinkEvidence>)>,
    /// The proxy obeys and is not heard.
    is_silent: bool,
    next_pid: u32,
}

#[derive(Debug, Default)]
struct Node {
    run: Run,
    record: NodeRecord,
    orders: Option<NodeOrders>,
}

/// The hands.
#[derive(Debug)]
pub(super) struct FakeHands {
    world: Arc<Mutex<World>>,
    changes: watch::Sender<u64>,
    /// Whether programs come.
    fetches: watch::Sender<bool>,
    began: Instant,
}

impl Default for FakeHands {
    fn default() -> Self {
        Self {
            world: Arc::default(),
            changes: watch::channel(0).0,
            fetches: watch::channel(true).0,
            began: Instant::now(),
        }
    }
}

impl FakeHands {
    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let changed = change(&mut self.world.lock().unwrap());
        self.changes.send_modify(|count| *count += 1);
        changed
    }

    fn end(&self, node: &NodeName, asked: Option<Why>, signal: Option<i32>) {
        let at = self.now();
        self.change(|world| {
            let run = &mut world.nodes.get_mut(node).unwrap().run;
            let incarnation = run.incarnation();
            let code = signal.is_none().then_some(0);
            *run = Run::Ended(Ended { incarnation, code, signal, at, asked });
        });
    }

    /// No program comes until this is taken back.
    pub(super) fn hold_fetches(&self, held: bool) {
        self.fetches.send_replace(!held);
    }

    pub(super) fn make_stubborn(&self, node: &NodeName) {
        self.change(|world| world.stubborn.insert(node.clone()));
    }

    pub(super) fn make_running(&self, node: &NodeName, incarnation: u64) {
        let started = self.now();
        self.change(|world| {
            let run = Run::Running(Running {
                incarnation: Incarnation(incarnation),
                pid: 77,
                shim: 76,
                started,
                paused: false,
                asked: None,
            });
            world.nodes.insert(node.clone(), Node { run, ..Node::default() });
        });
    }

    pub(super) fn delay_starts(&self, delay: Duration) {
        self.change(|world| world.start_delay = delay);
    }

    /// The proxy comes up and obeys only when this is over.
    pub(super) fn hold_rules(&self, holds: bool) {
        self.change(|world| world.holds_rules = holds);
    }

    /// The proxy says how things are and is heard only so much later.
    pub(super) fn delay_answers(&self, delay: Duration) {
        self.change(|world| world.answer_delay = delay);
    }

    /// The proxy has counted this of faults of this revision.
    pub(super) fn count(&self, revision: FaultRevision, links: BTreeMap<Link, LinkEvidence>) {
        self.change(|world| world.counted = Some((revision, links)));
    }

    /// What the proxy is asked from now on, it does not answer.
    pub(super) fn silence(&self) {
        self.change(|world| world.is_silent = true);
    }

    pub(super) fn hold_address(&self, address: SocketAddr, holder: Option<&str>) {
        self.change(|world| match holder {
            Some(holder) => world.held.insert(address, holder.to_owned()),
            None => world.held.remove(&address),
        });
    }

    pub(super) fn crash(&self, node: &NodeName) {
        self.end(node, None, Some(11));
    }

    /// The proxy dies, and its rules with it.
    pub(super) fn kill_proxy(&self) {
        self.change(|world| (world.has_proxy, world.rules) = (false, None));
    }

    /// A proxy runs and has rules.
    pub(super) fn ruled(&self) -> impl Future<Output = ()> + Send + 'static {
        self.until(|world| world.has_proxy && world.rules.is_some())
    }

    pub(super) fn rules(&self) -> Option<ProxyFile> {
        self.world.lock().unwrap().rules.clone()
    }

    pub(super) fn calls(&self) -> Vec<String> {
        self.world.lock().unwrap().calls.clone()
    }

    pub(super) fn commands(&self) -> Vec<String> {
        self.world.lock().unwrap().commands.clone()
    }

    pub(super) fn exists(&self, node: &NodeName) -> bool {
        self.world.lock().unwrap().nodes.contains_key(node)
    }

    pub(super) fn living(&self, node: &NodeName) -> Option<u32> {
        match &self.world.lock().unwrap().nodes.get(node)?.run {
            Run::Running(running) => Some(running.pid),
            Run::None | Run::Ended(_) | Run::Unknown { .. } => None,
        }
    }

    /// Is over when `is_over` says so of the world.
    fn until(
        &self,
        is_over: impl Fn(&World) -> bool + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let mut changes = self.changes.subscribe();
        let world = Arc::clone(&self.world);
        async move {
            while !is_over(&world.lock().unwrap()) {
                changes.changed().await.ok();
            }
        }
    }
}

impl FakeHands {
    /// What is kept of faults.
    pub(super) fn kept(&self) -> Kept {
        self.world.lock().unwrap().evidence.clone()
    }
}

impl Hands for FakeHands {
    fn now(&self) -> BootTime {
        BootTime::from_ms(1_000_000) + self.began.elapsed()
    }

    fn nodes(&self) -> io::Result<Vec<NodeName>> {
        Ok(self.world.lock().unwrap().nodes.keys().cloned().collect())
    }

    fn load_record(&self, node: &NodeName) -> io::Result<NodeRecord> {
        let world = self.world.lock().unwrap();
        Ok(world.nodes.get(node).map(|node| node.record.clone()).unwrap_or_default())
    }

    fn save_record(&self, node: &NodeName, record: &NodeRecord) -> io::Result<()> {
        self.change(|world| {
            world.nodes.entry(node.clone()).or_default().record = record.clone();
        });
        Ok(())
    }

    fn inspect(&self, node: &NodeName) -> Run {
        let world = self.world.lock().unwrap();
        world.nodes.get(node).map(|node| node.run.clone()).unwrap_or_default()
    }

    fn identity(&self, _: &NodeName, _: Incarnation) -> Identity {
        Identity::Address
    }

    fn told(&self, node: &NodeName, _: Incarnation) -> Option<NodeOrders> {
        self.world.lock().unwrap().nodes.get(node)?.orders.clone()
    }

    fn ended(
        &self,
        node: &NodeName,
        running: &Running,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (node, incarnation) = (node.clone(), running.incarnation);
        let is_over = move |world: &World| match world.nodes.get(&node).map(|node| &node.run) {
            Some(Run::Running(running)) => running.incarnation != incarnation,
            _ => true,
        };
        self.until(is_over)
    }

    fn has_program(&self, pushed: &Pushed) -> bool {
        self.change(|world| world.programs.contains(&pushed.content.sha256))
    }

    async fn fetch(&self, pushed: Pushed) -> Result<(), String> {
        let mut open = self.fetches.subscribe();
        open.wait_for(|open| *open).await.map_err(|error| error.to_string())?;
        self.change(|world| world.programs.insert(pushed.content.sha256));
        Ok(())
    }

    fn fetching(&self) -> Option<Fetching> {
        None
    }

    fn check(&self, _: &NodeName, spec: &NodeSpec) -> Result<(), String> {
        match spec.launch.program.as_str() {
            "/bin/wrong" => Err(format!("{REFUSED}it is no program of etcd")),
            _ => Ok(()),
        }
    }

    fn start(&self, order: &StartOrder) -> Result<Binary, String> {
        let delay = self.world.lock().unwrap().start_delay;
        // A real start blocks its thread as well.
        std::thread::sleep(delay);
        let started = self.now();
        self.change(|world| {
            let listeners = world.rules.as_ref().expect("rules before nodes").spec.listeners.iter();
            let mut own = listeners.filter(|listener| listener.node == order.node);
            assert!(own.all(|l| !world.held.contains_key(&l.listen)), "started without address");
            world.next_pid += 1;
            let pid = world.next_pid;
            let node = world.nodes.entry(order.node.clone()).or_default();
            match &node.run {
                Run::Running(running) => {
                    // A start whose agent was killed meanwhile, and was done again: the run
                    // directory's lock refuses the second.
                    assert_eq!(running.incarnation, order.incarnation, "a second copy");
                    return Err("a run is under way there".to_owned());
                }
                run => assert!(run.incarnation() < order.incarnation, "an incarnation twice"),
            }
            node.run = Run::Running(Running {
                incarnation: order.incarnation,
                pid,
                shim: pid + 1000,
                started,
                paused: order.orders.pause.is_some(),
                asked: None,
            });
            node.orders = Some(order.orders.clone());
            binaries::find("/bin/sh", "").map_err(|error| error.to_string())
        })
    }

    fn identify(&self, binary: &Binary, _: &[String]) -> Result<Binary, String> {
        Ok(Binary { sha256: Some("5ha".to_owned()), ..binary.clone() })
    }

    fn signal(&self, node: &NodeName, of: Incarnation, asked: &Asked) -> Result<(), String> {
        let ends = self.change(|world| {
            let is_stubborn = world.stubborn.contains(node) && asked.signal != 9;
            let Some(Run::Running(running)) = world.nodes.get_mut(node).map(|n| &mut n.run) else {
                return false;
            };
            assert_eq!(running.incarnation, of, "a signal to another incarnation");
            running.asked = Some(asked.clone());
            !is_stubborn
        });
        if ends {
            self.end(node, Some(asked.why), Some(asked.signal));
        }
        Ok(())
    }

    fn kill_tree(&self, node: &NodeName, of: Incarnation) -> Result<(), String> {
        if let Run::Running(running) = self.inspect(node) {
            assert_eq!(running.incarnation, of, "another incarnation is killed");
            self.end(node, running.asked.map(|asked| asked.why), Some(9));
        }
        Ok(())
    }

    fn set_orders(&self, node: &NodeName, _: Incarnation, to: &NodeOrders) -> Result<(), String> {
        self.change(|world| {
            let node = world.nodes.get_mut(node).unwrap();
            node.orders = Some(to.clone());
            if let Run::Running(running) = &mut node.run {
                running.paused = to.pause.is_some();
            }
        });
        Ok(())
    }

    fn wipe(&self, _: &NodeName, _: &NodeSpec) -> Result<(), String> {
        Ok(())
    }

    fn retire(&self, node: &NodeName, wipe: bool) -> Result<(), String> {
        self.change(|world| match world.nodes.get_mut(node).filter(|_| !wipe) {
            Some(kept) => *kept = Node::default(),
            None => drop(world.nodes.remove(node)),
        });
        Ok(())
    }

    async fn command(&self, order: CommandOrder) -> Result<String, CommandFailed> {
        let name = order.argv[0].clone();
        if name == "hang" {
            std::future::pending::<()>().await;
        }
        let tries = self.change(|world| {
            world.commands.push(name.clone());
            world.commands.iter().filter(|done| **done == name).count()
        });
        let failures = match name.as_str() {
            "fail-twice" => 2,
            "fail-ten-times" => 10,
            "fail-always" => usize::MAX,
            _ => 0,
        };
        if tries <= failures {
            let why = "no such member".to_owned();
            return Err(CommandFailed { why, output: String::new() });
        }
        Ok(String::new())
    }

    async fn call(&self, _: &NodeName, _: Option<&NodeSpec>, probe: &Probe) -> Result<(), String> {
        // It may be interrupted between being sent and being answered.
        tokio::task::yield_now().await;
        let what = probe.expect.clone().unwrap_or_else(|| "on".to_owned());
        self.change(|world| world.calls.push(what));
        Ok(())
    }

    async fn ask_as_peer(&self, _: Question, patience: Duration) -> Answer {
        let is_cut = {
            let world = self.world.lock().unwrap();
            world.rules.as_ref().is_some_and(|file| !file.spec.faults.is_empty())
        };
        if is_cut {
            tokio::time::sleep(patience).await;
            return Answer::None;
        }
        Answer::In(300)
    }

    fn last_lines(&self, _: &NodeName, _: Incarnation, _: usize) -> Vec<String> {
        vec!["its last words".to_owned()]
    }

    fn find_proxy(&self) -> Option<u32> {
        self.world.lock().unwrap().has_proxy.then_some(7)
    }

    fn proxy_ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.until(|world| !world.has_proxy)
    }

    fn apply_proxy(&self, file: &ProxyFile) -> Result<ProxyApplied, String> {
        let given_up = std::time::Instant::now() + HOLD_MAX;
        while self.world.lock().unwrap().holds_rules && std::time::Instant::now() < given_up {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.change(|world| {
            world.has_proxy = true;
            world.rules = Some(file.clone());
            let listens = file.spec.listeners.iter().map(|listener| listener.listen);
            let failed = listens.filter_map(|l| Some((l, world.held.get(&l)?.clone())));
            let grade = Some(Grade::Packet);
            let fault =
                |revision| FaultReport { revision, active: true, grade, ..FaultReport::default() };
            let faults = file.spec.faults.iter();
            Ok(ProxyApplied {
                failed: failed.collect(),
                faults: faults.map(|(name, f)| (name.clone(), fault(f.revision))).collect(),
                outdated: None,
            })
        })
    }

    fn ask_proxy(&self) -> Result<ProxySeen, String> {
        let (delay, seen) = {
            let world = self.world.lock().unwrap();
            if world.is_silent {
                return Err("it does not answer".to_owned());
            }
            let faults = world.rules.iter().flat_map(|file| &file.spec.faults);
            let links = |revision| match &world.counted {
                Some((of, links)) if *of == revision => links.clone(),
                Some(_) | None => BTreeMap::new(),
            };
            let active = |revision| {
                let links = links(revision);
                let grade = Some(Grade::Packet);
                FaultReport { revision, active: true, grade, links, ..Default::default() }
            };
            let faults = faults.map(|(name, f)| (name.clone(), active(f.revision))).collect();
            (world.answer_delay, ProxySeen { faults, ..ProxySeen::default() })
        };
        // A real question blocks its thread as well.
        std::thread::sleep(delay);
        Ok(seen)
    }

    fn load_evidence(&self) -> io::Result<Kept> {
        Ok(self.world.lock().unwrap().evidence.clone())
    }

    fn save_evidence(&self, kept: &Kept) -> io::Result<()> {
        self.change(|world| world.evidence = kept.clone());
        Ok(())
    }

    fn prune_binaries(&self, _: &BTreeSet<String>) {}

    fn survey(&self, _: &SurveyOrder) -> Survey {
        Survey::default()
    }

    fn node_dir(&self, node: &NodeName) -> PathBuf {
        PathBuf::from("/nowhere").join(node.as_str())
    }
}
