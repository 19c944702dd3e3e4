//! One stream for each agent: host specs down, reports up. The host is alive while its stream is.

use std::{pin::Pin, sync::Arc, time::Duration};

use faultbed_common::{
    host_spec::Around,
    lab::Host,
    logs::{LogBatch, LogRequest},
    name::HostName,
    program::FetchRequest,
    report::HostReport,
    session::{Hello, Orders, Still, TAKES_STILL},
};
use faultbed_proto::v1::{Document, FromAgent, ToAgent, agent_server::Agent, from_agent, to_agent};
use futures::Stream;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};
use tracing::{info, warn};

use super::{
    access::Parting,
    caller,
    compiled::{Compiled, Nodes},
    content::{self, Pieces},
    decode,
};
use crate::{
    chore::AUTOMATIC,
    content::Contents,
    decide::edit::{host_joins, removed},
    editor::{Editor, asked},
    mirror::{MirrorHandle, Published},
    pki::{Pki, authority::Authority},
    sessions::Sessions,
    store::{LeaseId, StoreError},
};

/// How long the first message of a stream may take.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// Messages on their way to one agent.
const TO_AGENT_MAX: usize = 16;

/// How long a host stays alive after its stream broke without a word; renewed three times as often.
pub const ALIVE_TTL: Duration = Duration::from_secs(9);

/// Agents report every 3 s at least. One that is silent for so long is gone or stands still, though
/// nobody closed its stream.
const SILENCE_MAX: Duration = Duration::from_secs(7);

type ToAgents = Pin<Box<dyn Stream<Item = Result<ToAgent, Status>> + Send>>;

/// The service for agents.
#[derive(Debug, Clone)]
pub struct AgentService {
    /// The lab.
    pub mirror: Arc<MirrorHandle>,
    /// Commits new hosts.
    pub editor: Editor,
    /// Who is connected.
    pub sessions: Arc<Sessions>,
    /// Programs that were pushed.
    pub contents: Arc<Contents>,
    /// What hosts must make true.
    pub compiled: Arc<Compiled>,
    /// The lab's CA; `None` where the lab is of this machine alone.
    pub pki: Option<Arc<Pki>>,
}

#[tonic::async_trait]
impl Agent for AgentService {
    type SessionStream = ToAgents;

    async fn session(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<ToAgents>, Status> {
        let caller = caller(&request)?;
        if let Some(Parting(why)) = request.extensions().get() {
            return Ok(Response::new(farewell(why.clone())));
        }
        let mut incoming = request.into_inner();
        let hello = read_hello(&mut incoming).await?;
        caller.must_be_host(&hello.host).map_err(Status::permission_denied)?;
        let lab = self.mirror.now().lab.name.clone();
        if hello.lab != lab {
            return Err(Status::failed_precondition(format!(
                "this is lab {lab}; the agent of {} serves lab {}",
                hello.host, hello.lab
            )));
        }
        if let Some(why) = removed(&self.mirror.now().lab, &hello.host) {
            return Ok(Response::new(farewell(why)));
        }
        self.register(&hello).await?;
        let (id, log_requests) = self.sessions.enter(&hello.host);
        info!(host = %hello.host, address = %hello.address, "agent connected");
        let (send, receive) = mpsc::channel(TO_AGENT_MAX);
        let lease = self.claim(&hello.host).await?;
        let session = Session {
            service: self.clone(),
            host: hello.host,
            id,
            lease,
            owed: None,
            said: None,
            told_trust: None,
            told_around: None,
            remembers: hello.remembers,
        };
        tokio::spawn(session.run(incoming, log_requests, send));
        let stream: ToAgents = Box::pin(tokio_stream::wrappers::ReceiverStream::new(receive));
        let mut answer = Response::new(stream);
        answer.metadata_mut().insert(TAKES_STILL, MetadataValue::from_static("1"));
        Ok(answer)
    }

    type FetchContentStream = Pieces;

    async fn fetch_content(&self, request: Request<Document>) -> Result<Response<Pieces>, Status> {
        let wanted: FetchRequest = decode("fetch", &request.get_ref().json)?;
        caller(&request)?.must_be_host(&wanted.host).map_err(Status::permission_denied)?;
        let pieces = content::fetch(&self.contents, &self.mirror, wanted).await?;
        Ok(Response::new(pieces))
    }
}

/// Told to the agent of a host that was removed: nothing else, so that it tries no more.
fn farewell(why: String) -> ToAgents {
    let message = ToAgent { kind: Some(to_agent::Kind::Removed(why)) };
    Box::pin(tokio_stream::once(Ok(message)))
}

async fn read_hello(incoming: &mut Streaming<FromAgent>) -> Result<Hello, Status> {
    let first = tokio::time::timeout(HELLO_WITHIN, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello within 5 s"))??;
    match first.and_then(|message| message.kind) {
        Some(from_agent::Kind::Hello(json)) => decode("hello", &json),
        Some(
            from_agent::Kind::Report(_)
            | from_agent::Kind::LogBatch(_)
            | from_agent::Kind::Still(_),
        )
        | None => Err(Status::invalid_argument("the first message must be hello")),
    }
}

impl AgentService {
    /// Makes the host alive, for as long as its lease is kept.
    async fn claim(&self, host: &HostName) -> Result<LeaseId, StoreError> {
        let lease = self.mirror.store().lease_grant(ALIVE_TTL).await?;
        self.mirror.claim_host(host, lease).await?;
        Ok(lease)
    }

    /// Enters a host into the lab the first time it comes, or when its address or directory moved.
    async fn register(&self, hello: &Hello) -> Result<(), Status> {
        loop {
            let seen = self.mirror.now();
            let host = Host {
                port_range: hello.port_range,
                identity_port: hello.identity_port,
                labels: hello.labels.clone(),
                ..Host::new(hello.address, hello.dir.clone())
            };
            let decision = host_joins(&seen.lab, (&hello.host, host), &asked(&seen, AUTOMATIC))
                .map_err(|refusal| Status::failed_precondition(refusal.to_string()))?;
            if !decision.reply.changed {
                return Ok(());
            }
            if self.editor.commit(&seen, &decision, AUTOMATIC).await? {
                return Ok(());
            }
        }
    }
}

struct Session {
    service: AgentService,
    host: HostName,
    id: u64,
    lease: LeaseId,
    /// The newest report, where the store has not taken it: the agent believes it is told.
    owed: Option<Arc<HostReport>>,
    /// The newest report on this stream.
    said: Option<Arc<HostReport>>,
    /// What the host was told last of the rest of the lab.
    told_around: Option<(Nodes, Around)>,
    /// Whether it remembers that.
    remembers: bool,
    /// The CAs to trust, as they were told last.
    told_trust: Option<Arc<Authority>>,
}

enum Wake {
    Changed,
    Logs(LogRequest),
    Message(Option<from_agent::Kind>),
    Renew,
    Silent,
    Gone,
}

impl Session {
    async fn run(
        mut self,
        mut incoming: Streaming<FromAgent>,
        mut log_requests: mpsc::Receiver<LogRequest>,
        send: mpsc::Sender<Result<ToAgent, Status>>,
    ) {
        let mirror = Arc::clone(&self.service.mirror);
        let mut changes = mirror.lab_changes();
        let mut news = mirror.news();
        changes.mark_changed();
        let mut sent_generation = None;
        let mut renew = tokio::time::interval(ALIVE_TTL / 3);
        let mut heard = Instant::now();
        loop {
            // Every arm is cancel-safe: watch, mpsc, a tonic stream and an interval lose nothing.
            let wake = tokio::select! {
                changed = changes.changed() => if changed.is_ok() { Wake::Changed } else { Wake::Gone },
                // Whatever comes from a store that was away says that it is back.
                _ = news.changed(), if self.owed.is_some() => Wake::Changed,
                Some(request) = log_requests.recv() => Wake::Logs(request),
                message = incoming.message() => match message {
                    Ok(Some(message)) => Wake::Message(message.kind),
                    Ok(None) | Err(_) => Wake::Gone,
                },
                _ = renew.tick() => Wake::Renew,
                () = sleep_until(heard + SILENCE_MAX) => Wake::Silent,
                () = send.closed() => Wake::Gone,
            };
            let gone = match wake {
                Wake::Changed => {
                    // A store that is back has not got what was said while it was away.
                    if self.owed.is_some() && mirror.now().trouble.is_none() {
                        self.publish().await;
                    }
                    !self.send_trust(&send).await
                        || !self.send_orders(&mut sent_generation, &send).await
                }
                Wake::Logs(request) => {
                    let json = serde_json::to_string(&request).unwrap_or_default();
                    send.send(Ok(ToAgent { kind: Some(to_agent::Kind::Logs(json)) })).await.is_err()
                }
                Wake::Message(kind) => {
                    let goes_on = self.take(kind).await;
                    heard = Instant::now();
                    !goes_on
                }
                Wake::Silent => {
                    warn!(host = %self.host, "agent is silent");
                    true
                }
                Wake::Renew => {
                    self.renew().await;
                    self.publish().await;
                    !self.service.sessions.is_current(&self.host, self.id)
                }
                Wake::Gone => true,
            };
            if gone {
                break;
            }
        }
        info!(host = %self.host, "agent disconnected");
        self.service.sessions.leave(&self.host, self.id);
        // The claim is the lease's own, so a newer session's claim stays.
        if let Err(error) = mirror.release_host(&self.host, self.lease).await {
            warn!(host = %self.host, %error, "release host");
        }
    }

    /// Keeps the host alive. A store that was away may have let the lease end: then a new one.
    async fn renew(&mut self) {
        let store = self.service.mirror.store();
        let renewed = match store.lease_keep(self.lease).await {
            Err(StoreError::NoLease) => match self.service.claim(&self.host).await {
                Ok(lease) => {
                    self.lease = lease;
                    Ok(())
                }
                Err(error) => Err(error),
            },
            kept => kept,
        };
        if let Err(error) = renewed {
            warn!(host = %self.host, %error, "renew host");
        }
    }

    /// Writes the newest report where it is not written yet; false where it still is not.
    async fn publish(&mut self) -> bool {
        let Some(report) = &self.owed else { return true };
        match self.service.mirror.publish_report(&self.host, report, self.lease).await {
            Ok(Published::Written) => {
                self.owed = None;
                true
            }
            Ok(Published::NotOurs) => false,
            Err(error) => {
                warn!(host = %self.host, %error, "publish report");
                false
            }
        }
    }

    /// Tells which CAs count where that has changed: the host renews its certificate where it has
    /// others, and this stream goes on.
    async fn send_trust(&mut self, send: &mpsc::Sender<Result<ToAgent, Status>>) -> bool {
        let now = self.service.pki.as_ref().and_then(|pki| pki.authority().ok());
        let Some(now) = now else { return true };
        if self.told_trust.as_ref().is_some_and(|told| Arc::ptr_eq(told, &now)) {
            return true;
        }
        let kind = Some(to_agent::Kind::Trust(now.bundle_hash()));
        self.told_trust = Some(now);
        send.send(Ok(ToAgent { kind })).await.is_ok()
    }

    /// Sends the host's share where the lab is at another generation than was sent last.
    async fn send_orders(
        &mut self,
        sent: &mut Option<faultbed_common::generation::Generation>,
        send: &mpsc::Sender<Result<ToAgent, Status>>,
    ) -> bool {
        let seen = self.service.mirror.now();
        if *sent == Some(seen.lab.generation) {
            return true;
        }
        let Some((specs, nodes)) = self.service.compiled.of(&seen.lab) else { return true };
        *sent = Some(seen.lab.generation);
        if let Some(why) = removed(&seen.lab, &self.host) {
            let kind = Some(to_agent::Kind::Removed(why));
            send.send(Ok(ToAgent { kind })).await.ok();
            return false;
        }
        let Some(spec) = specs.get(&self.host) else { return true };
        let now = Instant::now();
        let (fault_ages_ms, lease_ages) = (seen.fault_ages_ms(now), seen.lease_ages(now));
        let told = self.told_around.take().filter(|_| self.remembers);
        // In a large lab the rest of it is most of what there is: it is neither copied nor compared for a fault.
        let mut keeps_around = told.as_ref().is_some_and(|(of, _)| *of == nodes);
        let spec = if keeps_around {
            self.told_around = told;
            spec.without_around()
        } else {
            let mut spec = spec.clone();
            let around = spec.take_around();
            keeps_around = told.is_some_and(|(_, told)| told == around);
            if !keeps_around {
                spec.put_around(around.clone());
            }
            self.told_around = Some((nodes, around));
            spec
        };
        let orders = Orders { spec, keeps_around, fault_ages_ms, lease_ages };
        let json = serde_json::to_string(&orders).unwrap_or_default();
        send.send(Ok(ToAgent { kind: Some(to_agent::Kind::Orders(json)) })).await.is_ok()
    }

    /// Takes what the host says of itself.
    async fn heard(&mut self, report: HostReport) {
        let report = Arc::new(report);
        self.said = Some(Arc::clone(&report));
        self.owed = Some(report);
        if !self.publish().await {
            // The lease may have ended while the store, or this process, was away.
            self.renew().await;
            self.publish().await;
        }
    }

    async fn take(&mut self, kind: Option<from_agent::Kind>) -> bool {
        match kind {
            Some(from_agent::Kind::Report(json)) => match decode::<HostReport>("report", &json) {
                // An agent speaks for its own host only.
                Ok(report) if report.host.as_ref() == Some(&self.host) => {
                    self.heard(report).await;
                    true
                }
                Ok(report) => {
                    warn!(host = %self.host, claims = ?report.host, "refuse report for another host");
                    false
                }
                Err(error) => {
                    warn!(host = %self.host, %error, "refuse report");
                    false
                }
            },
            Some(from_agent::Kind::Still(json)) => match decode::<Still>("word", &json) {
                Ok(Still { now_ms }) => {
                    let Some(said) = &self.said else { return false };
                    self.heard(said.later(now_ms)).await;
                    true
                }
                Err(error) => {
                    warn!(host = %self.host, %error, "refuse word that all is as it was");
                    false
                }
            },
            Some(from_agent::Kind::LogBatch(json)) => {
                match decode::<LogBatch>("log batch", &json) {
                    Ok(batch) => {
                        let id = batch.id;
                        if !self.service.sessions.deliver(&self.host, batch).await {
                            self.service.sessions.end(&self.host, id);
                        }
                        true
                    }
                    Err(_) => false,
                }
            }
            Some(from_agent::Kind::Hello(_)) | None => false,
        }
    }
}
