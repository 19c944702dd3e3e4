//! Simulated agents: they join, say hello, take orders and report as real ones do, and run nothing.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use faultbed_common::{
    fault::Grade,
    host_spec::{HostSpec, Wanted},
    name::HostName,
    report::{BinaryReport, FaultReport, HostReport, Identity, NodeReport, NodeState, ProxyReport},
    session::{Hello, IDENTITY_PORT, Orders, Still, TAKES_STILL},
    trust::{Issued, Token},
};
use faultbed_proto::v1::{FromAgent, ToAgent, agent_client::AgentClient, from_agent, to_agent};
use faultbed_trust::{
    ask::{self, Bearer},
    credentials::Credentials,
    dial::Dialer,
    key::Key,
};
use tokio::{runtime::Runtime, sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

/// A report is sent at least this often, as real agents do.
const KEEPALIVE: Duration = Duration::from_secs(3);
/// As real agents do between orders and the report of what is in force.
const WORK: Duration = Duration::from_millis(5);
/// Sessions that an agent tries to hold one after another, and the time between two of them.
const SESSIONS_MAX: u32 = 100;
const SESSION_EVERY: Duration = Duration::from_millis(100);
/// A coordinator takes only so many tries to join within a minute: how long it may say so, and how often it is
/// asked again.
const FULL_MAX: Duration = Duration::from_secs(90);
const FULL_EVERY: Duration = Duration::from_millis(500);
/// What it says then.
const FULL: &str = "too many tried to join";
/// Messages that wait to be sent.
const OUTBOX_MAX: usize = 16;
/// The largest message taken, as by real agents.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// What all of them say they are.
const VERSION: &str = "simulated";

/// What passed between agents and their coordinator, in bytes of documents.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) up: AtomicU64,
    pub(crate) down: AtomicU64,
}

/// Many agents in this process.
pub(crate) struct Crowd {
    runtime: Runtime,
    pub(crate) traffic: Arc<Traffic>,
}

impl Crowd {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self { runtime, traffic: Arc::default() })
    }

    /// A host comes in by a token and stays until the crowd is dropped.
    pub(crate) fn join(&self, number: u8, token: &Token) -> anyhow::Result<()> {
        let host: HostName = format!("h{number}").parse().map_err(anyhow::Error::msg)?;
        let key = Key::new()?;
        let issued = self.runtime.block_on(let_in(token, &key, &host))?;
        let url = token.urls.first().context("a token names a coordinator")?.clone();
        let credentials =
            Credentials { key: key.pem(), certificate: issued.certificate, ca: issued.ca };
        let agent = Agent {
            hello: Hello {
                remembers: true,
                lab: token.lab.clone(),
                address: IpAddr::V4(Ipv4Addr::new(10, 90, 0, number)),
                dir: format!("/nowhere/{host}").into(),
                version: VERSION.to_owned(),
                port_range: Some((32768, 60999)),
                identity_port: Some(IDENTITY_PORT),
                labels: issued.labels,
                host,
            },
            traffic: self.traffic.clone(),
        };
        self.runtime.spawn(async move {
            // As real agents: whatever ends a session, the next is tried soon.
            for _ in 0..SESSIONS_MAX {
                if let Err(error) = agent.hold(&credentials, &url).await {
                    let said = format!("{}: {error:#}\n", agent.hello.host);
                    let _nobody = std::io::stderr().write_all(said.as_bytes());
                }
                tokio::time::sleep(SESSION_EVERY).await;
            }
        });
        Ok(())
    }
}

/// Uses a token up, once the coordinator takes another try.
async fn let_in(token: &Token, key: &Key, host: &HostName) -> anyhow::Result<Issued> {
    let began = Instant::now();
    let bearer = Bearer::Host { name: Some(host.clone()), machine: None };
    loop {
        match ask::join(token, key, bearer.clone()).await {
            Ok((issued, _)) => return Ok(issued),
            Err(error) if error.to_string().contains(FULL) && began.elapsed() < FULL_MAX => {
                tokio::time::sleep(FULL_EVERY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

struct Agent {
    hello: Hello,
    traffic: Arc<Traffic>,
}

impl Agent {
    async fn hold(&self, credentials: &Credentials, url: &str) -> anyhow::Result<()> {
        let channel = Dialer::new(credentials)?.connect(url, |endpoint| endpoint).await?;
        let mut client = AgentClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (outbox, queued) = mpsc::channel(OUTBOX_MAX);
        let mut report = self.empty();
        outbox.send(from(from_agent::Kind::Hello(serde_json::to_string(&self.hello)?))).await?;
        self.send(&outbox, &mut report).await?;
        let answer = client.session(ReceiverStream::new(queued)).await?;
        let says_still = answer.metadata().contains_key(TAKES_STILL);
        let mut stream = answer.into_inner();
        let mut is_news = false;
        let mut due = Instant::now() + KEEPALIVE;
        loop {
            tokio::select! {
                message = stream.message() => {
                    let Some(ToAgent { kind: Some(kind) }) = message? else { return Ok(()) };
                    let to_agent::Kind::Orders(text) = kind else { continue };
                    self.traffic.down.fetch_add(text.len() as u64, Ordering::Relaxed);
                    let orders: Orders = serde_json::from_str(&text)?;
                    obey(&mut report, &orders.spec);
                    is_news = true;
                    due = Instant::now() + WORK;
                }
                () = tokio::time::sleep_until(due) => {
                    if is_news || !says_still {
                        self.send(&outbox, &mut report).await?;
                    } else {
                        self.send_still(&outbox).await?;
                    }
                    is_news = false;
                    due = Instant::now() + KEEPALIVE;
                }
            }
        }
    }

    async fn send(
        &self,
        outbox: &mpsc::Sender<FromAgent>,
        report: &mut HostReport,
    ) -> anyhow::Result<()> {
        report.now_ms = now_ms();
        let text = serde_json::to_string(report)?;
        self.traffic.up.fetch_add(text.len() as u64, Ordering::Relaxed);
        outbox.send(from(from_agent::Kind::Report(text))).await.context("the stream is gone")
    }

    async fn send_still(&self, outbox: &mpsc::Sender<FromAgent>) -> anyhow::Result<()> {
        let text = serde_json::to_string(&Still { now_ms: now_ms() })?;
        self.traffic.up.fetch_add(text.len() as u64, Ordering::Relaxed);
        outbox.send(from(from_agent::Kind::Still(text))).await.context("the stream is gone")
    }

    fn empty(&self) -> HostReport {
        HostReport {
            host: Some(self.hello.host.clone()),
            version: VERSION.to_owned(),
            boot_id: "b0070000-0000-4000-8000-000000000000".to_owned(),
            ..HostReport::default()
        }
    }
}

/// What a host reports on which all is as it was ordered.
fn obey(report: &mut HostReport, spec: &HostSpec) {
    report.generation = spec.generation;
    report.nodes.retain(|name, _| spec.nodes.contains_key(name));
    for (name, wanted) in &spec.nodes {
        let number = u32::try_from(report.nodes.len()).unwrap_or_default();
        let runs = wanted.wanted == Wanted::Running && wanted.gate.is_none();
        let node = report.nodes.entry(name.clone()).or_insert_with(|| NodeReport {
            since_ms: now_ms(),
            binary: Some(BinaryReport {
                path: wanted.launch.program.clone(),
                sha256: "5a".repeat(32),
                version: Some("simulated 1.0".to_owned()),
            }),
            identity: Identity::Address,
            ..NodeReport::default()
        });
        node.observed = if runs { NodeState::Ready } else { NodeState::Stopped };
        node.been_ready |= runs;
        node.pid = runs.then_some(1000 + number);
        node.incarnation = wanted.incarnation;
    }
    let fault = |fault: &faultbed_common::proxy_spec::LinkFault| FaultReport {
        revision: fault.revision,
        active: true,
        grade: Some(Grade::Packet),
        remaining_ms: fault.lasts.map(|lasts| lasts.0.as_millis() as u64),
        links: fault.links.iter().map(|link| (link.clone(), Default::default())).collect(),
        ..FaultReport::default()
    };
    report.faults = spec.proxy.faults.iter().map(|(name, f)| (name.clone(), fault(f))).collect();
    report.proxy = Some(ProxyReport {
        pid: 999,
        generation: spec.generation,
        listeners: u32::try_from(spec.proxy.listeners.len()).unwrap_or_default(),
        best_grade: Some(Grade::Packet),
        ..ProxyReport::default()
    });
}

fn from(kind: from_agent::Kind) -> FromAgent {
    FromAgent { kind: Some(kind) }
}

fn now_ms() -> u64 {
    faultbed_tests::field::look::boottime_ns() / 1_000_000
}
