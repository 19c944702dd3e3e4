//! An etcd server for tests: of its own directory and ports, killed when it is dropped.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::Instant;

use crate::store::{StoreChoice, open};

/// Debian's package puts it there.
const PROGRAM: &str = "/usr/bin/etcd";

/// How long a server may take until it answers.
const START_TIME_MAX: Duration = Duration::from_secs(30);

/// A running server.
#[derive(Debug)]
pub(in crate::store) struct EtcdServer {
    dir: TempDir,
    client: u16,
    peer: u16,
    child: Child,
}

impl EtcdServer {
    /// Starts a server and waits until it answers.
    pub(in crate::store) async fn start() -> Self {
        assert!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing: run deploy/test.sh, which brings what tests need"
        );
        let dir = tempfile::tempdir().unwrap();
        let (client, peer) = free_ports();
        let child = spawn(dir.path(), client, peer);
        let server = Self { dir, client, peer, child };
        server.answers().await;
        server
    }

    /// Where clients reach it.
    pub(in crate::store) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    /// The choice of this store under a namespace.
    pub(in crate::store) fn choice(&self, namespace: &str) -> StoreChoice {
        format!("etcd={}/{namespace}", self.url()).parse().unwrap()
    }

    /// Waits until it answers.
    pub(in crate::store) async fn answers(&self) {
        let deadline = Instant::now() + START_TIME_MAX;
        while let Err(error) = open(&self.choice(""), self.dir.path()).await {
            assert!(Instant::now() < deadline, "etcd does not start: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it as a crash would.
    pub(in crate::store) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same data and ports.
    pub(in crate::store) fn respawn(&mut self) {
        self.child = spawn(self.dir.path(), self.client, self.peer);
    }

    /// Stops it without ending it.
    pub(in crate::store) fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Lets it go on.
    pub(in crate::store) fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, client: u16, peer: u16) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    // Dies with the thread that started it, so that a killed test leaves no server behind.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", PROGRAM, "--name=t", "--logger=zap"])
        .arg(format!("--data-dir={}", dir.join("data").display()))
        .args([
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
        ])
        .args([
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
        ])
        .arg(format!("--initial-cluster=t={peer}"))
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone().unwrap()))
        .stderr(Stdio::from(log))
        .spawn()
        .unwrap()
}

fn free_ports() -> (u16, u16) {
    let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [client, peer] = held.map(|listener| listener.local_addr().unwrap().port());
    (client, peer)
}
