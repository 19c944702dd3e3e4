//! The control socket and the file of a proxy under edited requests and files, without a thread: what
//! does not end shows as the document that does not.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    time::Timespec,
};

use super::harness::Lab;
use crate::proxy::{
    acceptor::Acceptor,
    client::ProxyError,
    control::Control,
    engine::{Crew, Engine},
    identify::Lookup,
    rule_set::Board,
};

/// Turns in which a request is accepted, read and answered.
const TURNS: usize = 4;
/// Requests of one peer, then another comes.
const REQUESTS: usize = 64;
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A control thread that takes its turns in this one, with no worker behind it.
struct Stage {
    dir: PathBuf,
    control: Control,
    peer: UnixStream,
    requests: usize,
}

impl Stage {
    fn new(dir: &Path) -> Self {
        let crew = Crew {
            board: Arc::new(Board::new(0)),
            mailboxes: Vec::new(),
            acceptor: Arc::new(Acceptor::new().unwrap()),
            lookup: Arc::new(Lookup::default()),
        };
        let socket = dir.join("control");
        let _none = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let lock = File::create(dir.join("proxy.lock")).unwrap();
        let stop = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        let engine = Engine::new(dir, crew).unwrap();
        let control = Control::new(engine, listener, lock, stop).unwrap();
        Self { dir: dir.to_owned(), control, peer: connect(&socket), requests: 0 }
    }

    /// Says a line and has it answered. What is not read here fills the socket, as with a peer that
    /// reads nothing.
    fn say(&mut self, line: &[u8]) {
        self.requests += 1;
        let hung_up = self.peer.write_all(&[line, b"\n"].concat()).is_err();
        for _ in 0..TURNS {
            if self.control.turn(Some(&AT_ONCE)).is_some() {
                *self = Self::new(&self.dir);
                return;
            }
        }
        let _not_yet = self.peer.read(&mut [0; 4096]);
        if hung_up || self.requests.is_multiple_of(REQUESTS) {
            self.peer = connect(&self.dir.join("control"));
        }
    }

    /// Whether it still understands and answers.
    fn lives(&mut self) -> bool {
        self.peer = connect(&self.dir.join("control"));
        self.peer.write_all(b"{\"v\":1,\"op\":\"report\"}\n").unwrap();
        let mut reply = Vec::new();
        for _ in 0..TURNS {
            assert_eq!(self.control.turn(Some(&AT_ONCE)), None);
        }
        let _all_there_is = self.peer.read_to_end(&mut reply);
        reply.starts_with(b"{\"ok\":true")
    }
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

#[test]
fn fuzz_requests_of_a_control_socket() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Mutex::new(Stage::new(dir.path()));
    let requests = [
        "{\"v\":1,\"op\":\"apply\"}",
        "{\"v\":1,\"op\":\"report\"}",
        "{\"v\":1,\"op\":\"stop\"}",
        "{\"v\":1,\"op\":\"handover\",\"formats\":[1,9]}",
    ];
    faultbed_fuzz::fuzz!(requests, |line: &[u8]| stage.lock().unwrap().say(line));
    assert!(stage.lock().unwrap().lives());
}

#[test]
fn fuzz_files_that_a_proxy_makes_true() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Mutex::new(Stage::new(dir.path()));
    let path = dir.path().join("proxy.json");
    faultbed_fuzz::fuzz!(faultbed_fuzz::corpus("proxy_file"), |file: &[u8]| {
        fs::write(&path, file).unwrap();
        stage.lock().unwrap().say(b"{\"v\":1,\"op\":\"apply\"}");
    });
    assert!(stage.lock().unwrap().lives());
}

/// The same with workers, listeners and the acceptor behind it: what the agent asks is answered, whatever
/// the file says.
#[test]
fn fuzz_files_that_a_running_proxy_makes_true() {
    let lab = Lab::start(&["x", "y"]);
    let (path, client) = (lab.home().join("proxy.json"), lab.client());
    let own = serde_json::to_vec(&lab.file).unwrap();
    let files = faultbed_fuzz::corpus("proxy_file").into_iter().chain([own]);
    faultbed_fuzz::fuzz!(files, |file: &[u8]| {
        fs::write(&path, file).unwrap();
        if let Err(error @ ProxyError::Unreachable(_)) = client.apply() {
            panic!("it answers: {error:?}");
        }
    });
    lab.write();
    assert!(lab.client().apply().is_ok());
    lab.join("x", "y");
}
