//! What people and tools ask: edits, status, events, logs.

use std::{pin::Pin, sync::Arc, time::Duration};

use faultbed_common::{
    edit::{EditRequest, Query, WatchQuery},
    event::EventQuery,
    logs::{LogBatch, LogQuery, LogWanted},
    name::{HostName, NodeName},
    target,
    trust::Role,
};
use faultbed_proto::v1::{Document, Piece, operator_server::Operator};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{caller, content, decode, encode};
use crate::{
    chore::Refused,
    content::Contents,
    decide::status::Detail,
    editor::{Editor, reports_of_living, unix_ms},
    journal::Journal,
    mirror::MirrorHandle,
    sessions::{Sessions, absent},
    view::status_of,
};

/// Ages move without changes: a watcher hears at least this often.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// A watcher hears at most this often. Commands wait for what they asked through a watch, so this
/// is part of how long they take.
const WATCH_AT_MOST_EVERY: Duration = Duration::from_millis(4);

/// After each status a watcher hears nothing for so many times as long as that took to make.
const WATCH_REST: u32 = 2;

type Answers = Pin<Box<dyn Stream<Item = Result<Document, Status>> + Send>>;

/// The service for people.
#[derive(Debug, Clone)]
pub struct OperatorService {
    /// The lab.
    pub mirror: Arc<MirrorHandle>,
    /// Changes it.
    pub editor: Editor,
    /// Its events.
    pub journal: Arc<Journal>,
    /// Hand edits that were refused.
    pub refused: Arc<Refused>,
    /// Its agents.
    pub sessions: Arc<Sessions>,
    /// Programs that were pushed.
    pub contents: Arc<Contents>,
}

impl OperatorService {
    /// The status now.
    #[must_use]
    pub fn status_now(&self) -> faultbed_common::status::Status {
        self.status_with(Detail::All)
    }

    fn status_with(&self, detail: Detail) -> faultbed_common::status::Status {
        status_of(&self.mirror.now(), &self.refused.sentences(), (unix_ms(), detail))
    }
}

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn edit(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        let caller = caller(&request)?;
        let edit: EditRequest = decode("edit", &request.get_ref().json)?;
        // A plan changes nothing, so whoever may look may ask for one.
        if !edit.plan {
            caller.must_be(Role::Operator).map_err(Status::permission_denied)?;
        }
        let reply = self.editor.edit(&edit, &caller.user).await?;
        Ok(Response::new(encode(&reply)?))
    }

    async fn status(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        Ok(Response::new(encode(&self.status_with(detail(request.get_ref())?))?))
    }

    type WatchStream = Answers;

    async fn watch(&self, request: Request<Document>) -> Result<Response<Answers>, Status> {
        let detail = detail(request.get_ref())?;
        let service = self.clone();
        let mut changes = self.mirror.news();
        Ok(Response::new(Box::pin(async_stream::try_stream! {
            loop {
                changes.mark_unchanged();
                let began = tokio::time::Instant::now();
                let status = encode(&service.status_with(detail))?;
                // A large lab has news all the time, and a status of it takes long to make and to read.
                let rest = (began.elapsed() * WATCH_REST).max(WATCH_AT_MOST_EVERY);
                yield status;
                tokio::time::sleep(rest).await;
                if let Ok(Err(_)) = tokio::time::timeout(WATCH_EVERY, changes.changed()).await {
                    return;
                }
            }
        })))
    }

    async fn get(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        match decode("query", &request.get_ref().json)? {
            Query::Lab => Ok(Response::new(encode(&self.mirror.now().lab)?)),
            Query::History => Ok(Response::new(encode(&self.mirror.history().await?)?)),
        }
    }

    async fn content_held(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        content::held(&self.contents, request.get_ref()).map(Response::new)
    }

    async fn content_push(
        &self,
        request: Request<Streaming<Piece>>,
    ) -> Result<Response<Document>, Status> {
        caller(&request)?;
        let pushed = content::push(&self.contents, &self.mirror, request.into_inner()).await?;
        Ok(Response::new(pushed))
    }

    type EventsStream = Answers;

    async fn events(&self, request: Request<Document>) -> Result<Response<Answers>, Status> {
        let query: EventQuery = decode("query", &request.get_ref().json)?;
        let journal = Arc::clone(&self.journal);
        let mut newest = journal.subscribe();
        Ok(Response::new(Box::pin(async_stream::try_stream! {
            let mut events = journal.after(query.after.unwrap_or(0));
            if let Some(tail) = query.tail {
                events.drain(..events.len().saturating_sub(tail as usize));
            }
            let mut last = query.after.unwrap_or(0);
            loop {
                newest.mark_unchanged();
                for event in events {
                    last = event.seq;
                    yield encode(&event)?;
                }
                if !query.follow || newest.changed().await.is_err() {
                    return;
                }
                events = journal.after(last);
            }
        })))
    }

    type LogsStream = Answers;

    async fn logs(&self, request: Request<Document>) -> Result<Response<Answers>, Status> {
        let query: LogQuery = decode("query", &request.get_ref().json)?;
        let seen = self.mirror.now();
        let nodes = target::nodes(&seen.lab, &reports_of_living(&seen), &query.targets)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let streams: Vec<_> = by_host(&seen.lab, nodes)
            .into_iter()
            .map(|(host, nodes)| log_stream(Arc::clone(&self.sessions), host, nodes, &query))
            .collect();
        Ok(Response::new(Box::pin(futures::stream::select_all(streams))))
    }
}

/// How much whoever asks for a status wants of it; an older command line does not say.
fn detail(asked: &Document) -> Result<Detail, Status> {
    let query = match asked.json.as_str() {
        "" => WatchQuery::default(),
        json => decode("query", json)?,
    };
    Ok(match query {
        WatchQuery { only_faults: true, .. } => Detail::OnlyFaults,
        WatchQuery { brief: true, .. } => Detail::NoLinks,
        WatchQuery { .. } => Detail::All,
    })
}

fn by_host(
    lab: &faultbed_common::lab::Lab,
    nodes: Vec<NodeName>,
) -> std::collections::BTreeMap<HostName, Vec<NodeName>> {
    let mut hosts: std::collections::BTreeMap<HostName, Vec<NodeName>> = Default::default();
    for node in nodes {
        if let Some(placement) = lab.clusters.values().find_map(|c| c.nodes.get(&node)) {
            hosts.entry(placement.host.clone()).or_default().push(node);
        }
    }
    hosts
}

/// Ends the request at the agent when the reader goes away.
struct Reading {
    sessions: Arc<Sessions>,
    host: HostName,
    id: u64,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.sessions.end(&self.host, self.id);
    }
}

fn log_stream(
    sessions: Arc<Sessions>,
    host: HostName,
    nodes: Vec<NodeName>,
    query: &LogQuery,
) -> Answers {
    let wanted = LogWanted {
        nodes: nodes.clone(),
        follow: query.follow,
        tail: query.tail,
        incarnation: query.incarnation,
    };
    let Some((id, mut batches)) = sessions.ask(&host, wanted) else {
        let text = format!("the agent of {host} is not connected to this coordinator");
        let lines = nodes.iter().map(|node| encode(&absent(node, &text))).collect::<Vec<_>>();
        return Box::pin(futures::stream::iter(lines));
    };
    let reading = Reading { sessions, host, id };
    Box::pin(
        async_stream::stream! {
            let _reading = reading;
            while let Some(LogBatch { lines, end, .. }) = batches.recv().await {
                for line in lines {
                    yield encode(&line);
                }
                if end {
                    return;
                }
            }
        }
        .boxed(),
    )
}
