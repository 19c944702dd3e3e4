//! One host with a real agent, and a coordinator that is only a stream.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use faultbed_common::{
    duration::Span,
    generation::{Generation, Incarnation},
    host_spec::{HostSpec, Launch, NodePort, NodeSpec, Stop, StopBy, Wanted},
    logs::{LogBatch, LogRequest},
    name::NodeName,
    proxy_spec::{Listener, ProxySpec},
    report::{HostReport, NodeReport, NodeState},
    session::{Hello, Orders},
    spec::OnCrash,
};
use faultbed_proto::v1::{
    Document, FromAgent, Piece, ToAgent,
    agent_server::{Agent, AgentServer},
    from_agent, to_agent,
};
use futures::Stream;
use tokio::{net::UnixListener, runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// The binary under test.
pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_faultbed-agent");

/// No wait of these tests takes longer unless something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the coordinator heard, and how it talks back.
#[derive(Default)]
struct Heard {
    hello: Option<Hello>,
    report: Option<HostReport>,
    said: Vec<LogBatch>,
    session: Option<mpsc::Sender<Result<ToAgent, Status>>>,
    orders: Option<Orders>,
}

#[derive(Clone, Default)]
struct Coordinator(Arc<Mutex<Heard>>);

#[tonic::async_trait]
impl Agent for Coordinator {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ToAgent, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut stream = request.into_inner();
        let (say, said) = mpsc::channel(16);
        let heard = Arc::clone(&self.0);
        let orders = {
            let mut heard = heard.lock().unwrap();
            heard.session = Some(say.clone());
            heard.orders.clone()
        };
        if let Some(orders) = orders {
            say.send(Ok(message(&orders))).await.unwrap();
        }
        tokio::spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                let mut heard = heard.lock().unwrap();
                match message.kind.unwrap() {
                    from_agent::Kind::Hello(text) => {
                        heard.hello = Some(serde_json::from_str(&text).unwrap());
                    }
                    from_agent::Kind::Report(text) => {
                        heard.report = Some(serde_json::from_str(&text).unwrap());
                    }
                    from_agent::Kind::LogBatch(text) => {
                        heard.said.push(serde_json::from_str(&text).unwrap());
                    }
                    // It never says that it takes these.
                    from_agent::Kind::Still(_) => {}
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(said))))
    }

    type FetchContentStream = Pin<Box<dyn Stream<Item = Result<Piece, Status>> + Send>>;

    async fn fetch_content(
        &self,
        _: Request<Document>,
    ) -> Result<Response<Self::FetchContentStream>, Status> {
        Err(Status::not_found("nothing was pushed"))
    }
}

fn message(orders: &Orders) -> ToAgent {
    ToAgent { kind: Some(to_agent::Kind::Orders(serde_json::to_string(orders).unwrap())) }
}

/// A host under test. Dropped, it takes everything down.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    heard: Coordinator,
    runtime: Option<Runtime>,
    pub(crate) agent: Option<Child>,
    pub(crate) spec: HostSpec,
    octet: u8,
    /// What is started as the agent.
    pub(crate) program: PathBuf,
}

impl Lab {
    /// A host with a coordinator and an agent, and nothing wanted.
    pub(crate) fn new() -> Self {
        use std::sync::atomic::{AtomicU8, Ordering};
        static NEXT: AtomicU8 = AtomicU8::new(0);
        // Test binaries run one at a time; within one, every lab has addresses of its own.
        let octet = 200 + NEXT.fetch_add(1, Ordering::Relaxed) % 50;
        let spec = HostSpec {
            lab: "try".parse().unwrap(),
            generation: Generation(0),
            host: "h1".parse().unwrap(),
            nodes: BTreeMap::new(),
            dials: Default::default(),
            clusters: Default::default(),
            wipe_removed: Default::default(),
            forced: Default::default(),
            proxy: ProxySpec::default(),
            terms: Default::default(),
        };
        let mut lab = Self {
            dir: tempfile::tempdir().unwrap(),
            heard: Coordinator::default(),
            runtime: None,
            agent: None,
            spec,
            octet,
            program: AGENT.into(),
        };
        lab.start_coordinator();
        lab.start_agent();
        lab
    }

    /// What the agent logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// What its proxy logged.
    pub(crate) fn proxy_log(&self) -> String {
        std::fs::read_to_string(self.host_dir().join("proxy/proxy.log")).unwrap_or_default()
    }

    pub(crate) fn address(&self) -> IpAddr {
        Ipv4Addr::new(127, 77, self.octet, 1).into()
    }

    pub(crate) fn host_dir(&self) -> PathBuf {
        self.dir.path().join("h1")
    }

    pub(crate) fn start_coordinator(&mut self) {
        let socket = self.dir.path().join("api.sock");
        std::fs::remove_file(&socket).ok();
        let runtime = Runtime::new().unwrap();
        let listener = {
            let _guard = runtime.enter();
            UnixListener::bind(socket).unwrap()
        };
        let coordinator = self.heard.clone();
        runtime.spawn(async move {
            Server::builder()
                .add_service(AgentServer::new(coordinator))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
        });
        self.runtime = Some(runtime);
    }

    pub(crate) fn stop_coordinator(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        let mut heard = self.heard.0.lock().unwrap();
        heard.session = None;
        heard.report = None;
    }

    pub(crate) fn start_agent(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("agent.log"))
            .unwrap();
        let child = self
            .agent_command()
            .stderr(Stdio::from(log))
            .env("FAULTBED_LOG", "info,faultbed_agent=debug")
            .spawn()
            .unwrap();
        self.agent = Some(child);
    }

    pub(crate) fn agent_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["agent", "--lab", "try", "--host", "h1", "--dir"])
            .arg(self.host_dir())
            .args(["--address", &self.address().to_string(), "--runtime"])
            .arg(self.dir.path())
            .arg("--coordinator")
            .arg(format!("unix:{}", self.dir.path().join("api.sock").display()));
        command
    }

    /// SIGKILL, at whatever moment this is.
    pub(crate) fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
        self.heard.0.lock().unwrap().report = None;
    }

    /// Orders the spec as it is now, as a new generation.
    pub(crate) fn order(&mut self) {
        let orders = self.next_orders();
        self.send(orders);
    }

    /// The same as a later release might write it.
    pub(crate) fn order_changed(&mut self, change: impl FnOnce(&mut serde_json::Value)) {
        let mut json = serde_json::to_value(self.next_orders()).unwrap();
        change(&mut json);
        let kind = to_agent::Kind::Orders(json.to_string());
        let heard = self.heard.0.lock().unwrap();
        let session = heard.session.as_ref().unwrap();
        session.try_send(Ok(ToAgent { kind: Some(kind) })).unwrap();
    }

    fn next_orders(&mut self) -> Orders {
        self.spec.generation = self.spec.generation.next();
        self.spec.proxy.generation = self.spec.generation;
        self.spec.proxy.listeners = self.spec.nodes.iter().flat_map(listeners).collect();
        Orders {
            spec: self.spec.clone(),
            keeps_around: false,
            fault_ages_ms: BTreeMap::new(),
            lease_ages: Default::default(),
        }
    }

    pub(crate) fn send(&self, orders: Orders) {
        let mut heard = self.heard.0.lock().unwrap();
        heard.orders = Some(orders.clone());
        if let Some(session) = &heard.session {
            session.try_send(Ok(message(&orders))).ok();
        }
    }

    pub(crate) fn ask_logs(&self, request: &LogRequest) {
        let kind = to_agent::Kind::Logs(serde_json::to_string(request).unwrap());
        let heard = self.heard.0.lock().unwrap();
        let session = heard.session.as_ref().unwrap();
        session.try_send(Ok(ToAgent { kind: Some(kind) })).unwrap();
    }

    /// Waits until the lines of one request are so.
    pub(crate) fn wait_lines(&self, id: u64, is_so: impl Fn(&[String]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines: Vec<String> = {
                let heard = self.heard.0.lock().unwrap();
                let batches = heard.said.iter().filter(|batch| batch.id == id);
                batches.flat_map(|batch| &batch.lines).map(|line| line.text.clone()).collect()
            };
            if is_so(&lines) {
                return;
            }
            assert!(Instant::now() < deadline, "not in time: {lines:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn hello(&self) -> Option<Hello> {
        self.heard.0.lock().unwrap().hello.clone()
    }

    pub(crate) fn report(&self) -> Option<HostReport> {
        self.heard.0.lock().unwrap().report.clone()
    }

    pub(crate) fn node(&self, name: &str) -> Option<NodeReport> {
        self.report()?.nodes.get(&NodeName::parse(name).unwrap()).cloned()
    }

    /// Waits until the newest report is so, and returns it.
    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&HostReport) -> bool) -> HostReport {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = self.report();
            if let Some(report) = &report
                && is_so(report)
            {
                return report.clone();
            }
            if Instant::now() > deadline {
                panic!("not in time: {what}\n{report:#?}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn wait_state(&self, name: &str, state: NodeState) -> NodeReport {
        let node = NodeName::parse(name).unwrap();
        let is_so = |report: &HostReport| {
            report.nodes.get(&node).is_some_and(|node| node.observed == state)
        };
        self.wait(&format!("{name} {state:?}"), is_so).nodes[&node].clone()
    }

    /// A node that runs a shell script, without ports.
    pub(crate) fn add(&mut self, name: &str, script: &str) -> &mut NodeSpec {
        let index = u8::try_from(self.spec.nodes.len() + 1).unwrap();
        let private: IpAddr = Ipv4Addr::new(127, 190, self.octet, index).into();
        let node_dir = self.host_dir().join("nodes").join(name);
        let spec = NodeSpec {
            cluster: "kv".parse().unwrap(),
            blueprint: None,
            role: "kv".parse().unwrap(),
            wanted: Wanted::Running,
            incarnation: Incarnation(1),
            stop_by: StopBy::Grace,
            wipes: 0,
            recalled: 0,
            gate: None,
            launch: Launch {
                program: "sh".to_owned(),
                args: vec!["-c".to_owned(), script.to_owned()],
                ..Launch::default()
            },
            data: node_dir.join("data"),
            private,
            address: self.address(),
            ports: BTreeMap::new(),
            logs: Vec::new(),
            ready: None,
            role_state: None,
            stop: Stop { signal: 15, grace: Span(Duration::from_secs(5)) },
            on_crash: OnCrash::Stay,
            faults: BTreeMap::new(),
            block: None,
        };
        let name: NodeName = name.parse().unwrap();
        self.spec.nodes.insert(name.clone(), spec);
        self.spec.nodes.get_mut(&name).unwrap()
    }

    pub(crate) fn edit(&mut self, name: &str) -> &mut NodeSpec {
        self.spec.nodes.get_mut(&NodeName::parse(name).unwrap()).unwrap()
    }

    pub(crate) fn down(&self, args: &[&str]) -> (i32, serde_json::Value) {
        let output = Command::new(AGENT)
            .args(["down", "--dir"])
            .arg(self.host_dir())
            .args(args)
            .output()
            .unwrap();
        let document = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().unwrap(), document)
    }
}

fn listeners((name, spec): (&NodeName, &NodeSpec)) -> Vec<Listener> {
    let proxied = spec.ports.iter().filter(|(_, port)| port.proxied);
    let listener = |(port_name, port): (&_, &NodePort)| Listener {
        node: name.clone(),
        port: Clone::clone(port_name),
        listen: SocketAddr::new(spec.address, port.port),
        upstream: SocketAddr::new(spec.private, port.port),
    };
    proxied.map(listener).collect()
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.host_dir().exists() {
            let output = Command::new(AGENT).args(["down", "--dir"]).arg(self.host_dir()).output();
            if !std::thread::panicking() {
                let output = output.unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            }
        }
        if let Some(mut agent) = self.agent.take() {
            agent.wait().ok();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Whether a process is there and has not ended.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}
