//! Fetches from coordinators that lack a program, break off, or send something else.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
};

use faultbed_proto::v1::{
    FromAgent, ToAgent,
    agent_server::{Agent, AgentServer},
};
use futures::Stream;
use tonic::{Request, Response, Status};

use super::*;
use crate::session::Coordinator;

/// How a coordinator gives programs.
#[derive(Debug, Clone, Default)]
struct Gives {
    programs: BTreeMap<String, Vec<u8>>,
    /// It breaks off after so many bytes.
    breaks_at: Option<usize>,
    /// From which byte on it was asked, each time.
    asked: Arc<Mutex<Vec<u64>>>,
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for Gives {
    type SessionStream = Answer<ToAgent>;

    async fn session(
        &self,
        _: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("only programs"))
    }

    type FetchContentStream = Answer<Piece>;

    async fn fetch_content(
        &self,
        request: Request<Document>,
    ) -> Result<Response<Self::FetchContentStream>, Status> {
        let request: FetchRequest = serde_json::from_str(&request.get_ref().json).unwrap();
        let program = self.programs.get(request.sha256.as_str());
        let program = program.ok_or_else(|| Status::not_found("it is not here"))?;
        self.asked.lock().unwrap().push(request.offset);
        let mut pieces: Vec<Result<Piece, Status>> = program[request.offset as usize..]
            .chunks(4)
            .map(|data| Ok(Piece { head: String::new(), data: data.to_vec() }))
            .collect();
        if let Some(at) = self.breaks_at {
            pieces.truncate(at / 4);
            pieces.push(Err(Status::unavailable("the wire is cut")));
        }
        Ok(Response::new(Box::pin(futures::stream::iter(pieces))))
    }
}

struct Ground {
    dir: tempfile::TempDir,
    coordinators: Vec<Coordinator>,
}

impl Ground {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), coordinators: Vec::new() }
    }

    /// Adds a coordinator.
    fn add(&mut self, gives: Gives) {
        let path = self.dir.path().join(format!("c{}.sock", self.coordinators.len()));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(AgentServer::new(gives));
        tokio::spawn(server.serve_with_incoming(incoming));
        self.coordinators.push(Coordinator::Unix(path));
    }

    fn fetcher(&self) -> Fetcher {
        let known = Known { coordinators: self.coordinators.clone(), identity: None };
        Fetcher::new(self.host(), "h1".parse().unwrap(), known)
    }

    fn host(&self) -> PathBuf {
        self.dir.path().join("host")
    }
}

const PROGRAM: &[u8] = b"#!/bin/sh\nexit 0\n";

fn of(data: &[u8], path: &str) -> Pushed {
    let content = Content { sha256: Sha256::of(data), bytes: data.len() as u64 };
    Pushed { path: path.to_owned(), content }
}

fn gives(pushed: &Pushed, data: &[u8]) -> Gives {
    let programs = BTreeMap::from([(pushed.content.sha256.to_string(), data.to_vec())]);
    Gives { programs, ..Gives::default() }
}

#[tokio::test]
async fn a_program_comes_from_the_coordinator_that_has_it_and_can_be_executed() {
    let pushed = of(PROGRAM, "/home/ada/kv");
    let mut ground = Ground::new();
    ground.coordinators.push(Coordinator::Unix("/nowhere/api.sock".into()));
    ground.add(Gives::default());
    ground.add(gives(&pushed, PROGRAM));
    let fetcher = ground.fetcher();
    assert!(!is_here(&ground.host(), &pushed));
    fetcher.fetch(&pushed).await.unwrap();
    assert!(is_here(&ground.host(), &pushed));
    assert!(std::process::Command::new(pushed.file(&ground.host())).status().unwrap().success());
    assert_eq!(fetcher.now(), None);
}

#[tokio::test]
async fn a_fetch_that_broke_off_goes_on_where_it_ended_at_another_coordinator() {
    let pushed = of(PROGRAM, "/home/ada/kv");
    let mut ground = Ground::new();
    ground.add(Gives { breaks_at: Some(8), ..gives(&pushed, PROGRAM) });
    let broken = ground.fetcher().fetch(&pushed).await.unwrap_err();
    assert!(matches!(&broken, FetchError::Broken { bytes: 8, .. }), "{broken}");
    let whole = gives(&pushed, PROGRAM);
    ground.add(whole.clone());
    ground.coordinators.remove(0);
    ground.fetcher().fetch(&pushed).await.unwrap();
    assert_eq!(*whole.asked.lock().unwrap(), [8]);
    assert_eq!(fs::read(pushed.file(&ground.host())).unwrap(), PROGRAM);
}

#[tokio::test]
async fn what_is_not_what_was_asked_for_never_gets_its_name() {
    let pushed = of(PROGRAM, "/home/ada/kv");
    let mut ground = Ground::new();
    ground.add(gives(&pushed, b"#!/bin/sh\nexit 1\n"));
    let lie = ground.fetcher().fetch(&pushed).await.unwrap_err();
    assert!(matches!(lie, FetchError::Mismatch { .. }), "{lie}");
    assert!(!is_here(&ground.host(), &pushed));
    assert!(!pushed.file(&ground.host()).with_file_name(PART).exists(), "it begins anew");
}

#[tokio::test]
async fn where_no_coordinator_can_be_reached_or_has_it_that_is_said() {
    let pushed = of(PROGRAM, "/home/ada/kv");
    let mut ground = Ground::new();
    let nobody = ground.fetcher().fetch(&pushed).await.unwrap_err();
    assert!(nobody.to_string().contains("no coordinator can be reached"), "{nobody}");
    ground.add(Gives::default());
    let missing = ground.fetcher().fetch(&pushed).await.unwrap_err();
    assert_eq!(missing.to_string(), "it is not here");
}

#[tokio::test]
async fn a_program_that_no_disk_can_hold_is_refused_before_it_is_fetched() {
    let mut pushed = of(PROGRAM, "/home/ada/kv");
    pushed.content.bytes = u64::MAX / 2;
    let full = Ground::new().fetcher().fetch(&pushed).await.unwrap_err();
    assert!(matches!(full, FetchError::NoRoom { .. }), "{full}");
    assert!(full.to_string().contains("MB are needed; make room there"), "{full}");
}

#[tokio::test]
async fn the_same_content_under_another_name_is_not_fetched_again() {
    let pushed = of(PROGRAM, "/home/ada/kv");
    let mut ground = Ground::new();
    let gives = gives(&pushed, PROGRAM);
    ground.add(gives.clone());
    ground.fetcher().fetch(&pushed).await.unwrap();
    let other = of(PROGRAM, "/home/ada/kv-next");
    ground.fetcher().fetch(&other).await.unwrap();
    assert!(is_here(&ground.host(), &other));
    assert_eq!(gives.asked.lock().unwrap().len(), 1);
}
