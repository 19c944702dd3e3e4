//! Talks to a coordinator of one lab: over its unix socket, or from another machine. Decides nothing.

mod remote;

use std::{path::Path, pin::Pin, time::Duration};

use faultbed_common::{
    edit::{EditReply, EditRequest, HistoryEntry, Query, WatchQuery},
    event::{Event, EventQuery},
    lab::Lab,
    logs::{LogLine, LogQuery},
    program::{Content, Held},
    status::Status,
    trust::{AuthorityReply, AuthorityRequest, ExpelReply, ExpelRequest, TokenReply, TokenRequest},
};
use faultbed_proto::v1::{
    Document, ExecPart, Piece, exec_client::ExecClient, operator_client::OperatorClient,
    trust_client::TrustClient,
};
use futures::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::cli::{
    context::Context,
    failure::Failure,
    push::{self, Looked, ROUNDS_MAX},
};

/// How long a connection to a socket of this machine may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long one answer may take; a coordinator answers from memory or with one store transaction.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The largest answer accepted: a status of a thousand nodes is far below.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Documents as they come.
pub type Documents<T> = Pin<Box<dyn Stream<Item = Result<T, Failure>> + Send>>;

/// A connection to one lab.
#[derive(Debug, Clone)]
pub struct Client {
    inner: OperatorClient<Channel>,
    trust: TrustClient<Channel>,
    channel: Channel,
    /// Which of the context's coordinators answers, where they are on other machines.
    via: Option<String>,
    /// The lab.
    pub context: Context,
    /// Files that were looked at for it.
    pub looked: Looked,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody answers: names lab, place and what to type.
    pub async fn connect(context: Context) -> Result<Self, Failure> {
        let (channel, via) = if context.is_remote() {
            let (channel, url) = remote::connect(&context).await?;
            (channel, Some(url))
        } else {
            let unix = unix(&context.socket()).await;
            (unix.map_err(|why| unreachable(&context, &why))?, None)
        };
        let trust = TrustClient::new(channel.clone());
        let inner =
            OperatorClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self { inner, trust, channel, via, context, looked: Looked::default() })
    }

    /// Asks for a change, and gives the lab the programs it needs for it.
    ///
    /// # Errors
    /// The lab refuses, with its reason, or cannot be reached; or a program cannot be read.
    pub async fn edit(&self, request: &EditRequest) -> Result<EditReply, Failure> {
        let mut request = request.clone();
        request.files.can_look = true;
        for _ in 0..ROUNDS_MAX {
            let document = self.document(&request)?;
            let answer = self.inner.clone().edit(document).await;
            let reply: EditReply = self.answer(answer)?;
            if reply.needs.is_empty() {
                return Ok(reply);
            }
            Box::pin(push::provide(self, &mut request.files, &reply.needs)).await?;
        }
        Err(Failure::no("the lab does not keep the programs that are pushed to it")
            .next(self.context.typed("events")))
    }

    /// What the lab has of a program.
    ///
    /// # Errors
    /// The lab cannot be reached.
    pub async fn content_held(&self, content: &Content) -> Result<Held, Failure> {
        let document = self.document(content)?;
        let answer = self.inner.clone().content_held(document).await;
        self.answer(answer)
    }

    /// Pushes a program; says what the lab has of it then.
    ///
    /// # Errors
    /// The lab does not take it, or cannot be reached.
    pub async fn content_push(
        &self,
        pieces: impl Stream<Item = Piece> + Send + 'static,
    ) -> Result<Held, Failure> {
        let answer = self.inner.clone().content_push(pieces).await;
        self.answer(answer)
    }

    /// A one-time token for a host or a user.
    ///
    /// # Errors
    /// The lab refuses, with its reason, or cannot be reached.
    pub async fn invite(&self, request: &TokenRequest) -> Result<TokenReply, Failure> {
        let document = self.document(request)?;
        let answer = self.trust.clone().invite(document).await;
        self.answer(answer)
    }

    /// Takes a user's way in.
    ///
    /// # Errors
    /// The lab refuses, with its reason, or cannot be reached.
    pub async fn expel(&self, request: &ExpelRequest) -> Result<ExpelReply, Failure> {
        let document = self.document(request)?;
        let answer = self.trust.clone().expel(document).await;
        self.answer(answer)
    }

    /// Shows, replaces or ends the lab's CA.
    ///
    /// # Errors
    /// The lab refuses, with its reason, or cannot be reached.
    pub async fn authority(&self, request: &AuthorityRequest) -> Result<AuthorityReply, Failure> {
        let document = self.document(request)?;
        let answer = self.trust.clone().authority(document).await;
        self.answer(answer)
    }

    /// The lab as it is.
    ///
    /// # Errors
    /// The lab cannot be reached.
    pub async fn status(&self) -> Result<Status, Failure> {
        let answer = self.inner.clone().status(limited(Document::default())).await;
        self.answer(answer)
    }

    /// What it says of its faults, without their links one by one.
    ///
    /// # Errors
    /// The lab cannot be reached.
    pub async fn faults(&self) -> Result<Status, Failure> {
        let document = self.document(&WatchQuery { only_faults: true, ..WatchQuery::default() })?;
        let answer = self.inner.clone().status(document).await;
        self.answer(answer)
    }

    /// The lab as it is, and again after every change.
    ///
    /// # Errors
    /// The lab cannot be reached.
    pub async fn watch(&self, query: WatchQuery) -> Result<Documents<Status>, Failure> {
        let document = Document { json: self.text(&query)? };
        let answer = self.inner.clone().watch(document).await;
        self.documents(answer)
    }

    /// The accepted lab.
    ///
    /// # Errors
    /// The lab cannot be reached.
    pub async fn lab(&self) -> Result<Lab, Failure> {
        let document = self.document(&Query::Lab)?;
        let answer = self.inner.clone().get(document).await;
        self.answer(answer)
    }

    /// Its accepted generations, newest last.
    ///
    /// # Errors
    /// The lab cannot be reached.
    pub async fn history(&self) -> Result<Vec<HistoryEntry>, Failure> {
        let document = self.document(&Query::History)?;
        let answer = self.inner.clone().get(document).await;
        self.answer(answer)
    }

    /// What happened, oldest first.
    ///
    /// # Errors
    /// The lab cannot be reached.
    pub async fn events(&self, query: &EventQuery) -> Result<Documents<Event>, Failure> {
        let document = Document { json: self.text(query)? };
        let answer = self.inner.clone().events(document).await;
        self.documents(answer)
    }

    /// Log lines of nodes.
    ///
    /// # Errors
    /// The lab refuses a target, or cannot be reached.
    pub async fn logs(&self, query: &LogQuery) -> Result<Documents<LogLine>, Failure> {
        let document = Document { json: self.text(query)? };
        let answer = self.inner.clone().logs(document).await;
        self.documents(answer)
    }

    /// Runs a command or copies a file: `parts` go down, what comes up is the answer.
    ///
    /// # Errors
    /// The lab refuses, with its reason, or cannot be reached.
    pub async fn exec(
        &self,
        parts: impl Stream<Item = ExecPart> + Send + 'static,
    ) -> Result<tonic::Streaming<ExecPart>, tonic::Status> {
        let answer = ExecClient::new(self.channel.clone()).run(parts).await;
        answer.map(tonic::Response::into_inner)
    }

    /// Another connection to the same coordinator.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn again(&self) -> Result<Self, Failure> {
        let remote = match &self.via {
            Some(url) => vec![url.clone()],
            None => self.context.remote.clone(),
        };
        Self::connect(Context { remote, ..self.context.clone() }).await
    }

    /// The lab's other coordinators, as far as they answer.
    pub async fn others(&self) -> Vec<Self> {
        self.each_other().await.into_iter().filter_map(|(_, reached)| reached.ok()).collect()
    }

    /// The lab's other coordinators by where they are, and why those that do not answer do not.
    pub async fn each_other(&self) -> Vec<(String, Result<Self, Failure>)> {
        let urls = self.context.remote.iter().filter(|url| Some(*url) != self.via.as_ref());
        let reached = urls.map(|url| async move {
            // What a renewal learns is written by who was asked first.
            let context = Context { remote: vec![url.clone()], ..self.context.clone() };
            (place(url), Self::connect(context).await)
        });
        futures::future::join_all(reached).await
    }

    /// Where the coordinator that answers is, in words.
    #[must_use]
    pub fn place(&self) -> String {
        self.via.as_deref().map_or_else(|| self.context.place(), place)
    }

    /// What a refusal of this lab means for the person who typed the command.
    #[must_use]
    pub fn failure(&self, status: &tonic::Status) -> Failure {
        failure_of(&self.context, status)
    }

    fn text(&self, value: &impl Serialize) -> Result<String, Failure> {
        serde_json::to_string(value).map_err(|e| {
            Failure::no(format!("write a request to lab `{}`: {e}", self.context.name))
        })
    }

    fn document(&self, value: &impl Serialize) -> Result<tonic::Request<Document>, Failure> {
        Ok(limited(Document { json: self.text(value)? }))
    }

    fn answer<T: DeserializeOwned>(
        &self,
        answer: Result<tonic::Response<Document>, tonic::Status>,
    ) -> Result<T, Failure> {
        let document = answer.map_err(|status| failure_of(&self.context, &status))?.into_inner();
        self.parse(&document)
    }

    fn parse<T: DeserializeOwned>(&self, document: &Document) -> Result<T, Failure> {
        parse(&self.context, document)
    }

    fn documents<T: DeserializeOwned + Send + 'static>(
        &self,
        answer: Result<tonic::Response<tonic::Streaming<Document>>, tonic::Status>,
    ) -> Result<Documents<T>, Failure> {
        let stream = answer.map_err(|status| failure_of(&self.context, &status))?.into_inner();
        let context = self.context.clone();
        Ok(Box::pin(stream.map(move |item| match item {
            Ok(document) => parse(&context, &document),
            Err(status) => Err(failure_of(&context, &status)),
        })))
    }
}

/// A coordinator's address without what all have.
fn place(url: &str) -> String {
    url.trim_start_matches("https://").to_owned()
}

/// A channel to the coordinator of this machine.
async fn unix(socket: &Path) -> Result<Channel, String> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://lab")
        .connect_timeout(CONNECT_MAX)
        .connect_with_connector(connector)
        .await
        .map_err(|error| root_cause(&error))
}

fn parse<T: DeserializeOwned>(context: &Context, document: &Document) -> Result<T, Failure> {
    serde_json::from_str(&document.json).map_err(|e| {
        Failure::unreachable(format!(
            "read the answer of lab `{}`: {e}; `faultbed` and its daemons may be of different versions",
            context.name
        ))
        .next(format!("{} && {}", context.typed("down"), context.typed("up -d")))
    })
}

fn limited(document: Document) -> tonic::Request<Document> {
    let mut request = tonic::Request::new(document);
    request.set_timeout(ANSWER_MAX);
    request
}

/// What a gRPC status means for the person who typed the command.
fn failure_of(context: &Context, status: &tonic::Status) -> Failure {
    let failure = plain_failure_of(context, status);
    if failure.next.is_empty() { failure.next(context.typed("status")) } else { failure }
}

fn plain_failure_of(context: &Context, status: &tonic::Status) -> Failure {
    use tonic::Code;
    match status.code() {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::AlreadyExists
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => split_next(status.message()),
        Code::ResourceExhausted | Code::Aborted => split_next(status.message()),
        Code::DeadlineExceeded => Failure::late(format!(
            "lab `{}` did not answer within {} s",
            context.name,
            ANSWER_MAX.as_secs()
        ))
        .next(format!("tail {}", context.coordinator_dir().join("coordinator.log").display())),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => unreachable(context, status.message()),
    }
}

/// A refusal may bring its own next lines: those that begin with `next: `.
fn split_next(message: &str) -> Failure {
    let (next, said): (Vec<&str>, Vec<&str>) =
        message.lines().partition(|line| line.trim_start().starts_with("next: "));
    let said = said.join("\n");
    let own = next.iter().map(|line| line.trim_start().trim_start_matches("next: "));
    // A command in the sentence is what to type, so it is shown as such.
    let in_words =
        commands(&said).filter(|command| !next.iter().any(|line| line.contains(command)));
    let next: Vec<&str> = own.chain(in_words).collect();
    next.into_iter().fold(Failure::refused(said.clone()), Failure::next)
}

/// The whole commands that a sentence quotes: `faultbed heal split`, and none with a gap in it.
fn commands(said: &str) -> impl Iterator<Item = &str> {
    let quoted = said.split('`').skip(1).step_by(2);
    quoted.filter(|text| text.starts_with("faultbed ") && !text.contains(['<', '…']))
}

fn unreachable(context: &Context, why: &str) -> Failure {
    let place = context.place();
    let failure =
        Failure::unreachable(format!("lab `{}` cannot be reached at {place}: {why}", context.name));
    if context.is_remote() {
        return failure.next(context.typed("status   # tries all its coordinators"));
    }
    failure.next(context.typed("up -d   # starts what is missing, keeps its data"))
}

/// The innermost reason: `No such file or directory` rather than `transport error`.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::failure::Exit;

    #[test]
    fn a_refusal_keeps_its_words_and_its_next_line() {
        let failure = split_next("no node `kv-9`; nearest is kv-2\nnext: faultbed status");
        assert_eq!(failure.exit, Exit::REFUSED);
        assert_eq!(
            failure.to_string(),
            "error: no node `kv-9`; nearest is kv-2\n  next: faultbed status"
        );
    }

    #[test]
    fn commands_in_a_refusal_are_what_to_type_next() {
        let failure = split_next(
            "there is a fault split already; `faultbed heal split` ends it, or give another `--name`",
        );
        assert_eq!(failure.next, ["faultbed heal split"]);
    }

    #[tokio::test]
    async fn a_lab_that_is_gone_is_exit_4_with_its_socket_and_the_way_back() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context {
            version: 1,
            name: "mine".parse().unwrap(),
            octet: 1,
            dir: dir.path().to_owned(),
            runtime: dir.path().to_owned(),
            store: "embedded".into(),
            hosts: 1,
            token: String::new(),
            ephemeral: false,
            terms: 0,
            etcd: Default::default(),
            remote: Vec::new(),
        };
        let failure = Client::connect(context).await.unwrap_err();
        assert_eq!(failure.exit, Exit::UNREACHABLE);
        let text = failure.to_string();
        assert!(text.contains("lab `mine`") && text.contains("api.sock"), "{text}");
        assert!(text.contains("faultbed up -d --lab mine   #"), "{text}");
    }
}
