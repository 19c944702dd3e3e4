//! A real etcd of three members, each in a place of its own, as the store of a lab.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::net::{Net, Place};
use crate::wait::wait_for;

/// Members of the store.
pub const MEMBERS: u8 = 3;
/// The first member's place.
const FIRST: u8 = 11;
/// How long a store may take to serve.
const START_MAX: Duration = Duration::from_secs(60);

/// An etcd cluster.
#[derive(Debug)]
pub struct Etcd {
    dir: PathBuf,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    place: Place,
    child: Option<Child>,
}

impl Etcd {
    /// Three members that have a leader.
    ///
    /// # Panics
    /// Where they do not come up.
    #[must_use]
    pub fn start(net: &Net, dir: PathBuf) -> Self {
        let member = |n| Member { place: net.place(FIRST + n), child: None };
        let mut etcd = Self { dir, members: (0..MEMBERS).map(member).collect() };
        (0..MEMBERS.into()).for_each(|n| etcd.start_member(n));
        etcd.wait_ready();
        etcd
    }

    /// Waits until a majority answers.
    ///
    /// # Panics
    /// Where it does not.
    pub fn wait_ready(&self) {
        wait_for("the store answers", START_MAX, || {
            let output = self.members[0].place.inside(|| {
                Command::new("etcdctl")
                    .env("ETCDCTL_API", "3")
                    .arg(format!("--endpoints={}", self.urls().join(",")))
                    .args(["--command-timeout=2s", "get", "ready"])
                    .output()
            });
            let output = output.expect("run etcdctl (deploy/setup.sh installs it)");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            output.status.success().then_some(()).ok_or(said)
        });
    }

    /// How its clients reach it.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|m| format!("http://{}", m.place.port(2379))).collect()
    }

    /// Starts a member with the data that it has.
    ///
    /// # Panics
    /// Where etcd cannot be run.
    pub fn start_member(&mut self, n: usize) {
        let peers: Vec<_> = self
            .members
            .iter()
            .enumerate()
            .map(|(n, member)| format!("e{n}=http://{}", member.place.port(2380)))
            .collect();
        std::fs::create_dir_all(&self.dir).expect("make directory");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("e{n}.log")))
            .expect("open log");
        let member = &mut self.members[n];
        let url = |port| format!("http://{}", member.place.port(port));
        let (client, peer) = (url(2379), url(2380));
        let child = member.place.spawn(
            Command::new("etcd")
                .args(["--name", &format!("e{n}"), "--logger=zap", "--data-dir"])
                .arg(self.dir.join(format!("e{n}")))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &peers.join(",")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log),
        );
        member.child = Some(child);
    }

    /// SIGKILL to one member.
    pub fn kill_member(&mut self, n: usize) {
        if let Some(mut child) = self.members[n].child.take() {
            let _gone = child.kill();
            let _gone = child.wait();
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|n| self.kill_member(n));
    }
}
