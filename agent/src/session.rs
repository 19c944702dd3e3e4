//! The one stream to a coordinator: orders down, reports up. Its loss changes nothing on the host.

mod known;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use faultbed_common::{
    host_spec::HostSpec,
    logs::{LogBatch, LogRequest},
    name::NodeName,
    session::{Hello, Still, TAKES_STILL},
};
use faultbed_proto::v1::{FromAgent, ToAgent, agent_client::AgentClient, from_agent, to_agent};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

pub use self::known::{ConnectError, Coordinator, Known};
use crate::{
    allow::{self, Allow},
    exec::{self, Attending},
    ledger::{Told, ToldAround},
    line::Line,
    logs::{self, Places},
    reconcile::report::{Shared, Urgency, urgency},
};

/// The first try to connect again comes after this; each further one after twice as long.
const RETRY_FIRST: Duration = Duration::from_millis(10);

/// No try waits longer.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Work in progress is told after this, for what comes of it may be there by then: each report costs
/// the coordinator a write to its disk, and who waits for a fault waits for all of them.
const IN_PROGRESS: Duration = Duration::from_millis(5);

/// Counters are told at most this often.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// How long the first look at the host may hold up its coming.
const FIRST_REPORT_MAX: Duration = Duration::from_secs(2);

/// A report is sent at least this often, so that silence means a dead host: a coordinator that
/// hears nothing for more than twice as long gives the session up.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// Messages that wait to be sent. A coordinator that does not read holds us up, not our memory.
const OUTBOX_MAX: usize = 16;

/// Log batches that wait to be sent.
const LOG_BATCHES_MAX: usize = 8;

/// Requests for logs at a time; more are answered with an end.
const LOG_REQUESTS_MAX: usize = 64;

/// The largest message taken: the orders of a host with very many nodes.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A session that lived so long was a good one: the next is tried at once.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// What a session needs from the rest of the agent.
#[derive(Debug)]
pub struct Session {
    /// The coordinators: any of them will do.
    pub known: Known,
    /// What this agent says first.
    pub hello: Hello,
    /// Where orders go.
    pub orders: mpsc::Sender<Told>,
    /// Where reports come from.
    pub reports: watch::Receiver<Shared>,
    /// Who must know whether a coordinator is on the line.
    pub line: Line,
    /// The nodes that commands may be run for, by the orders that came last.
    execs: exec::Nodes,
    /// The log files of nodes, by the orders that came last.
    places: Places,
}

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
enum Over {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("talk to the coordinator: {0}")]
    Status(#[from] tonic::Status),
    #[error("the coordinator closed the stream")]
    Closed,
    #[error("the agent stops")]
    Stopping,
    #[error("{0}")]
    Removed(String),
}

impl Session {
    /// A session that has not begun.
    #[must_use]
    pub fn new(
        known: Known,
        hello: Hello,
        orders: mpsc::Sender<Told>,
        reports: watch::Receiver<Shared>,
    ) -> Self {
        Self {
            known,
            hello,
            orders,
            reports,
            line: Line::default(),
            execs: exec::Nodes::default(),
            places: Places::default(),
        }
    }

    /// Bounds what operators may run.
    pub fn allow(&mut self, allow: Allow) {
        self.execs.allow(allow);
    }

    /// Knows where logs are before the first orders of this run came.
    pub fn knows(&mut self, spec: &HostSpec) {
        self.execs.know(spec, &self.hello.dir);
        let dir = |name: &NodeName| faultbed_common::render::node_dir(&self.hello.dir, name);
        self.places = Places {
            dirs: spec.nodes.keys().map(|name| (name.clone(), dir(name))).collect(),
            files: spec
                .nodes
                .iter()
                // What a blueprint may not touch, nobody reads through us.
                .filter(|(name, node)| allow::check_paths(&dir(name), node).is_ok())
                .map(|(name, node)| (name.clone(), node.logs.clone()))
                .collect(),
        };
    }

    /// Keeps a session, and tries again whenever it is lost, until `stop`; or until a coordinator
    /// says that this host is of the lab no more, and why.
    pub async fn run(mut self, stop: CancellationToken) -> Option<String> {
        let mut retry = RETRY_FIRST;
        let mut was_told = false;
        // Which coordinator is tried, and how many in a row were of no use.
        let (mut turn, mut useless) = (0, 0);
        // A host that comes says at once which of its ports others have.
        let first = tokio::time::timeout(FIRST_REPORT_MAX, self.reports.changed());
        tokio::select! {
            () = stop.cancelled() => return None,
            _ = first => {}
        }
        while !stop.is_cancelled() {
            let began = Instant::now();
            let known = self.known.all();
            let coordinator = known[turn % known.len()].clone();
            let over = tokio::select! {
                () = stop.cancelled() => Over::Stopping,
                result = self.hold(&coordinator) => match result {
                    Ok(()) => Over::Closed,
                    Err(over) => over,
                },
            };
            self.line.is_down();
            match over {
                Over::Stopping => return None,
                Over::Removed(why) => return Some(why),
                Over::Connect(_) | Over::Status(_) | Over::Closed => {}
            }
            if began.elapsed() > GOOD_AFTER {
                (retry, was_told, useless) = (RETRY_FIRST, false, 0);
            }
            turn += 1;
            useless += 1;
            // Once is enough: a coordinator may be away for days.
            if was_told {
                tracing::debug!(%coordinator, error = %over, "session lost");
            } else {
                tracing::warn!(%coordinator, error = %over, "session lost; nodes and faults stay as they are");
                was_told = true;
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = sleep(retry) => {}
            }
            // Each coordinator is tried once before anybody is waited for longer.
            if useless % known.len() == 0 {
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
        None
    }

    async fn hold(&mut self, coordinator: &Coordinator) -> Result<(), Over> {
        let channel = self.known.connect(coordinator).await?;
        let attend = channel.clone();
        let mut client = AgentClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (outbox, queued) = mpsc::channel(OUTBOX_MAX);
        let hello = encode(&self.hello)?;
        outbox.try_send(message(from_agent::Kind::Hello(hello))).ok();
        // The first report goes with the hello: the coordinator knows the host at once.
        let mut reporter = Reporter::new(self.reports.clone());
        outbox.try_send(reporter.next()?).ok();
        let answer = client.session(ReceiverStream::new(queued)).await?;
        reporter.says_still = answer.metadata().contains_key(TAKES_STILL);
        let mut stream = answer.into_inner();
        tracing::info!("session begun");
        self.line.is_up();
        let _attending = Attending::begin(attend, self.hello.host.clone(), self.execs.clone());
        let (batches, mut batched) = mpsc::channel::<LogBatch>(LOG_BATCHES_MAX);
        let mut requests = Requests::default();
        let mut around = None;
        loop {
            // Every arm is cancel-safe; sending happens outside of the select.
            let next = tokio::select! {
                message = stream.message() => match message? {
                    Some(ToAgent { kind: Some(to_agent::Kind::Removed(why)) }) => {
                        return Err(Over::Removed(why));
                    }
                    Some(message) => {
                        self.take(message, &mut around, &mut requests, &batches).await;
                        continue;
                    }
                    None => return Err(Over::Closed),
                },
                () = reporter.is_due() => reporter.next()?,
                Some(batch) = batched.recv() => {
                    message(from_agent::Kind::LogBatch(encode(&batch)?))
                }
            };
            outbox.send(next).await.map_err(|_| Over::Closed)?;
        }
    }

    async fn take(
        &mut self,
        message: ToAgent,
        around: &mut Option<ToldAround>,
        requests: &mut Requests,
        batches: &mpsc::Sender<LogBatch>,
    ) {
        match message.kind {
            Some(to_agent::Kind::Orders(text)) => {
                let told = Told::read(&text).whole(around);
                if let Told::Orders(orders, _) = &told {
                    self.knows(&orders.spec);
                }
                // The loop is gone only when the agent stops.
                self.orders.send(told).await.ok();
            }
            Some(to_agent::Kind::Logs(text)) => match serde_json::from_str::<LogRequest>(&text) {
                Ok(request) => requests.take(request, self.places.clone(), batches),
                Err(error) => tracing::error!(%error, "read a request for logs"),
            },
            Some(to_agent::Kind::Trust(hash)) => {
                if let Some(identity) = &self.known.identity {
                    identity.should_trust(hash);
                }
            }
            // Told before; and a newer coordinator may say what we do not know.
            Some(to_agent::Kind::Removed(_)) | None => {}
        }
    }
}

/// The requests for logs that are being answered. They end with the session.
#[derive(Debug, Default)]
struct Requests {
    answering: BTreeMap<u64, AbortHandle>,
}

impl Requests {
    fn take(&mut self, request: LogRequest, places: Places, batches: &mpsc::Sender<LogBatch>) {
        let LogRequest { id, wanted } = request;
        if let Some(task) = self.answering.remove(&id) {
            task.abort();
        }
        self.answering.retain(|_, task| !task.is_finished());
        let Some(wanted) = wanted else { return };
        if self.answering.len() >= LOG_REQUESTS_MAX {
            tracing::warn!(id, "refuse a request for logs: too many at a time");
            batches.try_send(LogBatch { id, lines: Vec::new(), end: true }).ok();
            return;
        }
        let task = tokio::spawn(logs::send(id, wanted, places, batches.clone()));
        self.answering.insert(id, task.abort_handle());
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.answering.values().for_each(AbortHandle::abort);
    }
}

/// Decides when a report is sent: transitions at once, counters once a second.
#[derive(Debug)]
struct Reporter {
    reports: watch::Receiver<Shared>,
    told: Shared,
    told_at: Instant,
    /// Whether the coordinator takes a word for a report in which nothing is new.
    says_still: bool,
}

impl Reporter {
    fn new(reports: watch::Receiver<Shared>) -> Self {
        Self { reports, told: Shared::default(), told_at: Instant::now(), says_still: false }
    }

    /// Is over when a report must be sent.
    async fn is_due(&mut self) {
        let mut news_since = None;
        loop {
            let (urgency, is_settled) = {
                let next = self.reports.borrow_and_update();
                (urgency(&self.told, &next), next.pending.is_empty())
            };
            let at = match urgency {
                Urgency::Now if is_settled => return,
                Urgency::Now => *news_since.get_or_insert_with(Instant::now) + IN_PROGRESS,
                Urgency::Soon => self.told_at + REPORT_EVERY,
                Urgency::None => self.told_at + KEEPALIVE,
            };
            tokio::select! {
                () = sleep_until(at) => return,
                changed = self.reports.changed() => {
                    if changed.is_err() {
                        // The loop is gone: the agent stops.
                        std::future::pending::<()>().await;
                    }
                }
            }
        }
    }

    fn next(&mut self) -> Result<FromAgent, Over> {
        let report = self.reports.borrow_and_update().clone();
        // Ages count from the moment of sending, however old the report is.
        let now_ms = crate::clock::now().ms();
        let kind = match self.says_still && urgency(&self.told, &report) == Urgency::None {
            true => from_agent::Kind::Still(encode(&Still { now_ms })?),
            false => from_agent::Kind::Report(encode(&report.later(now_ms))?),
        };
        self.told = report;
        self.told_at = Instant::now();
        Ok(message(kind))
    }
}

fn message(kind: from_agent::Kind) -> FromAgent {
    FromAgent { kind: Some(kind) }
}

fn encode(document: &impl serde::Serialize) -> Result<String, Over> {
    serde_json::to_string(document)
        .map_err(|error| Over::Status(tonic::Status::internal(error.to_string())))
}
