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

/// How long it may take to stand still.
const STOP_MAX: Duration = Duration::from_secs(10);

/// A running server, of a cluster of its own or of several.
#[derive(Debug)]
pub(crate) struct EtcdServer {
    dir: TempDir,
    member: Member,
    /// All members, itself included.
    members: String,
    child: Child,
}

#[derive(Debug)]
struct Member {
    name: String,
    client: u16,
    peer: u16,
}

impl EtcdServer {
    /// Starts a server and waits until it answers.
    pub(crate) async fn start() -> Self {
        Self::start_cluster(1).await.remove(0)
    }

    /// Starts a cluster of so many members and waits until each answers.
    pub(crate) async fn start_cluster(count: usize) -> Vec<Self> {
        assert!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing: run deploy/test.sh, which brings what tests need"
        );
        let members: Vec<_> = free_ports(count * 2)
            .chunks(2)
            .enumerate()
            .map(|(n, ports)| Member { name: format!("m{n}"), client: ports[0], peer: ports[1] })
            .collect();
        let all = members.iter().map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.peer));
        let all = all.collect::<Vec<_>>().join(",");
        let start = |member: Member| {
            let dir = tempfile::tempdir().unwrap();
            let child = spawn(dir.path(), &member, &all);
            Self { dir, member, members: all.clone(), child }
        };
        let servers: Vec<_> = members.into_iter().map(start).collect();
        for server in &servers {
            server.answers().await;
        }
        servers
    }

    /// Where clients reach it.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.member.client)
    }

    /// The choice of this store under a namespace.
    pub(crate) fn choice(&self, namespace: &str) -> StoreChoice {
        format!("etcd={}/{namespace}", self.url()).parse().unwrap()
    }

    /// Waits until it answers.
    pub(crate) async fn answers(&self) {
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            let answer = match open(&self.choice(""), self.dir.path()).await {
                Ok(store) => store.range(b"/nothing").await.map(drop),
                Err(error) => Err(error),
            };
            let Err(error) = answer else { return };
            assert!(Instant::now() < deadline, "etcd does not start: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same data and ports.
    pub(crate) fn respawn(&mut self) {
        self.child = spawn(self.dir.path(), &self.member, &self.members);
    }

    /// Stops it without ending it. Its threads stop one after another: returns when all have.
    pub(crate) fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
        let began = std::time::Instant::now();
        while !self.is_stopped() {
            assert!(began.elapsed() < STOP_MAX, "it does not stop");
            std::hint::spin_loop();
        }
    }

    fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('T'))
        })
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
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

fn spawn(dir: &Path, member: &Member, members: &str) -> Child {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let (client, peer) = (url(member.client), url(member.peer));
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    // Dies with the thread that started it, so that a killed test leaves no server behind.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", PROGRAM, "--logger=zap"])
        .arg(format!("--name={}", member.name))
        .arg(format!("--data-dir={}", dir.join("data").display()))
        .args([
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
        ])
        .args([
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
        ])
        .arg(format!("--initial-cluster={members}"))
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone().unwrap()))
        .stderr(Stdio::from(log))
        .spawn()
        .unwrap()
}

fn free_ports(count: usize) -> Vec<u16> {
    // All held at once, so that no two are the same.
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}
