//! A lab of several hosts for tests: network namespaces joined by a bridge, real daemons, a real etcd, and every part of it may die.
//!
//! Hosts are `10.77.0.1` and on, or `fd77::1`, with a loopback device each, so private addresses are a host's own.
//! All of them share one kernel and, for this process, one list of processes.

pub mod client;
pub mod daemons;
pub mod look;
pub mod matrix;
pub mod net;
pub mod store;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use faultbed_common::{report::NodeState, status::Status};
use tempfile::TempDir;

use self::{
    client::Client,
    daemons::Daemon,
    net::{Net, Place},
    store::Etcd,
};
use crate::{
    bins, heard,
    lab::{Ran, summary},
    mini::{self, Mini},
    wait::wait_for,
};

/// How long anything may take on a slow machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The place of the first coordinator.
const COORDINATOR: u8 = 21;
/// Where coordinators serve hosts.
const PORT: u16 = 7373;
/// The place of clients.
const OUTSIDE: u8 = 31;
/// Private addresses are the namespace's own, so labs need no octet of their own.
const OCTET: &str = "7";

/// What a field has.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The lab's name.
    pub name: &'static str,
    /// Hosts, each with one node.
    pub hosts: u8,
    /// Coordinators.
    pub coordinators: u8,
    /// Whether daemons have wall clocks of their own.
    pub clocks: bool,
    /// Whether its addresses are IPv6, of hosts, coordinators and the store alike.
    pub ipv6: bool,
    /// The size of each agent's disk, where it has one of its own.
    pub disk_kib: Option<u32>,
}

/// A lab with all its parts.
#[derive(Debug)]
pub struct Field {
    shape: Shape,
    home: TempDir,
    /// The network.
    pub net: Net,
    /// The store.
    pub etcd: Etcd,
    /// The coordinators.
    pub coordinators: Vec<Daemon>,
    /// The agents; host `h1` is the first.
    pub hosts: Vec<Daemon>,
    /// Where clients are.
    pub outside: Place,
    /// The advertised address of each node's `client` port.
    pub nodes: BTreeMap<String, SocketAddr>,
    /// Where each node says whom it hears; only its own host reaches that.
    asked: BTreeMap<String, String>,
}

impl Field {
    /// A field whose nodes are ready, one on each host.
    ///
    /// # Panics
    /// Where it does not come up.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let mut field = Self::bare(shape);
        field.write("mini.toml", &mini::blueprint(Mini::Echoes));
        field.settle("");
        let hosts = shape.hosts;
        let status = field.wait("all nodes ready", |status| {
            let ready = status.nodes.iter().filter(|n| n.observed == NodeState::Ready).count();
            (status.converged && ready == usize::from(hosts)).then(|| status.clone())
        });
        let address = |text: &String| text.parse().expect("an address");
        field.nodes = status
            .nodes
            .iter()
            .map(|node| (node.name.to_string(), address(&node.endpoints["client"])))
            .collect();
        let asked = |url: &String| url.trim_start_matches("http://").to_owned();
        let nodes = status.nodes.iter();
        field.asked =
            nodes.map(|node| (node.name.to_string(), asked(&node.private["http"]))).collect();
        field
    }

    /// Applies the lab file, with these settings of the whole lab.
    ///
    /// # Panics
    /// Where they are refused.
    pub fn settle(&self, settings: &str) {
        let hosts = self.shape.hosts;
        let file = format!(
            "[lab]\n{settings}\n\n[cluster.m]\nblueprint = \"./mini.toml\"\non_crash = \"restart\"\n\n\
             [cluster.m.mini]\ncount = {hosts}\n"
        );
        let file = self.write("lab.toml", &file).display().to_string();
        self.ok(&["apply", "-f", &file]);
    }

    /// When a node last heard another one, in nanoseconds of CLOCK_MONOTONIC. It is asked on its own host.
    ///
    /// # Errors
    /// It does not say.
    ///
    /// # Panics
    /// Where there is no such node.
    pub fn heard(&self, from: &str, to: &str) -> anyhow::Result<u64> {
        let at = self.nodes.keys().position(|name| name == to).expect("a node of the field");
        let address = &self.asked[to];
        let stream = self.hosts[at].place.inside(|| TcpStream::connect(address))?;
        heard::heard_ns(stream, address, from)
    }

    /// A field without nodes, whose hosts are up.
    fn bare(shape: Shape) -> Self {
        let home = tempfile::Builder::new().prefix("fb").tempdir().expect("make directory");
        let net = Net::new(shape.ipv6);
        let etcd = Etcd::start(&net, home.path().join("etcd"));
        let outside = net.place(OUTSIDE);
        let mut field = Self {
            shape,
            net,
            etcd,
            coordinators: Vec::new(),
            hosts: Vec::new(),
            outside,
            nodes: BTreeMap::new(),
            asked: BTreeMap::new(),
            home,
        };
        for n in 0..shape.coordinators {
            let coordinator = field.coordinator(n);
            field.coordinators.push(coordinator);
        }
        for coordinator in &mut field.coordinators {
            coordinator.start();
        }
        for n in 0..usize::from(shape.coordinators) {
            wait_for("the coordinator answers", PATIENCE, || field.try_status(n).map(drop));
        }
        for n in 0..shape.hosts {
            let mut agent = field.agent(n);
            agent.start();
            field.hosts.push(agent);
        }
        field.wait("all hosts up", |status| {
            let up = |host: &&faultbed_common::status::HostStatus| {
                host.state == faultbed_common::status::HostState::Up
            };
            (status.hosts.iter().filter(up).count() == usize::from(shape.hosts)).then_some(())
        });
        // A token works once: whoever starts an agent again has what it wrote when it joined.
        for host in &mut field.hosts {
            let file = text(&host.dir.join("agent.toml"));
            host.args = words(&["agent", "--config", &file]);
        }
        field
    }

    fn coordinator(&self, n: u8) -> Daemon {
        let home = self.home.path().join(format!("c{}", n + 1));
        let name = self.shape.name;
        let (dir, runtime) =
            (home.join("state/faultbed/labs").join(name).join("coordinator"), home.join("run"));
        let program = bins::path("faultbed-coordinator");
        let mut daemon = Daemon::new(self.net.place(COORDINATOR + n), (dir, runtime), program);
        let listen = daemon.place.port(PORT).to_string();
        let context = serde_json::json!({
            "version": 1, "name": name, "octet": 7, "dir": daemon.dir.parent(), "runtime": daemon.runtime,
            "store": format!("etcd={}", self.etcd.urls().join(",")), "hosts": 0, "token": "field",
        });
        let lab = daemon.dir.parent().expect("a directory above").join("lab.json");
        std::fs::write(lab, context.to_string()).expect("write context");
        daemon.args = words(&["--lab", name, "--octet", OCTET]);
        daemon.args.extend(["--dir".into(), text(&daemon.dir)]);
        daemon.args.extend(["--runtime".into(), text(&daemon.runtime)]);
        daemon.args.push("--store".into());
        daemon.args.push(format!("etcd={}", self.etcd.urls().join(",")));
        daemon.args.extend(words(&["--listen", &listen, "--name", &format!("c{}", n + 1)]));
        self.give_clock(&mut daemon);
        daemon
    }

    fn agent(&self, n: u8) -> Daemon {
        let place = self.net.place(n + 1);
        let home = self.home.path().join(format!("h{}", n + 1));
        let address = place.address().to_string();
        let dirs = (home.join("agent"), home.join("run"));
        // A path of its own: another release may come to it.
        let program = home.join("faultbed-agent");
        std::fs::create_dir_all(&home).expect("make directory");
        std::fs::copy(bins::path("faultbed-agent"), &program).expect("copy the agent");
        let mut daemon = Daemon::new(place, dirs, program);
        let line = self.ok(&["host", "token", "--name", &format!("h{}", n + 1)]);
        let token = line.trim().rsplit(' ').next().expect("a token");
        daemon.args = words(&["join", token, "--foreground", "--address", &address]);
        daemon.args.extend(words(&["--dir", &text(&daemon.dir)]));
        daemon.args.extend(words(&["--runtime", &text(&daemon.runtime)]));
        if let Some(kib) = self.shape.disk_kib {
            let size = format!("size={kib}k");
            let ran = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "agent"])
                .arg(&daemon.dir)
                .output();
            let ran = ran.expect("run mount");
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        }
        self.give_clock(&mut daemon);
        daemon
    }

    fn give_clock(&self, daemon: &mut Daemon) {
        if self.shape.clocks {
            daemon.clock = Some(daemon.dir.with_extension("clock"));
            daemon.set_clock(0);
        }
    }

    /// Writes a file of the test.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).expect("write file");
        path
    }

    /// `faultbed` that speaks with the coordinator of this number, from 0.
    #[must_use]
    pub fn command(&self, at: usize, args: &[&str]) -> Command {
        let home = self.home.path().join(format!("c{}", at + 1));
        let mut command = Command::new(bins::path("faultbed"));
        command
            .args(args)
            .env("XDG_STATE_HOME", home.join("state"))
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_RUNTIME_DIR", home.join("run"))
            .env("FAULTBED_LAB", self.shape.name)
            .env("NO_COLOR", "1")
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs `faultbed` through one coordinator, to its end.
    ///
    /// # Panics
    /// Where it cannot be run at all.
    #[must_use]
    pub fn run(&self, at: usize, args: &[&str]) -> Ran {
        Ran::of(self.command(at, args).output().expect("run faultbed"))
    }

    /// Runs `faultbed` through the first coordinator and demands success; what it printed.
    ///
    /// # Panics
    /// Where it fails.
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(0, args);
        assert_eq!(
            ran.code,
            0,
            "faultbed {args:?}: {}\n{}\n{}",
            ran.stdout,
            ran.stderr,
            self.logs()
        );
        ran.stdout
    }

    /// The status as one coordinator gives it.
    ///
    /// # Errors
    /// What it said instead.
    pub fn try_status(&self, at: usize) -> Result<Status, String> {
        let ran = self.run(at, &["status", "-o", "json"]);
        if ran.code != 0 {
            return Err(ran.stderr);
        }
        serde_json::from_str(&ran.stdout).map_err(|error| error.to_string())
    }

    /// The status as the first coordinator gives it.
    ///
    /// # Panics
    /// Where it gives none.
    #[must_use]
    pub fn status(&self) -> Status {
        self.try_status(0).expect("a status")
    }

    /// Waits until the first coordinator's status is as `look` wants.
    ///
    /// # Panics
    /// Where it never is, with the last one and the ends of all logs.
    pub fn wait<T>(&self, what: &str, look: impl FnMut(&Status) -> Option<T>) -> T {
        self.wait_at(0, PATIENCE, what, look)
    }

    /// The same of any coordinator, and within a time.
    ///
    /// # Panics
    /// As [`Self::wait`].
    pub fn wait_at<T>(
        &self,
        at: usize,
        within: Duration,
        what: &str,
        mut look: impl FnMut(&Status) -> Option<T>,
    ) -> T {
        let mut tries = 0_u32;
        let what = format!("{what} (coordinator {})", at + 1);
        wait_for(&what, within, || {
            tries += 1;
            let said = self
                .try_status(at)
                .and_then(|status| look(&status).ok_or_else(|| summary(&status)));
            said.map_err(|last| format!("{last}\n{}", self.logs()))
        })
    }

    /// A client of all nodes, from outside of all hosts.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::start(&self.outside, &self.nodes)
    }

    /// The host that a node is on, as its number from 0: the first node is on the first host.
    ///
    /// # Panics
    /// Where there is no such node.
    #[must_use]
    pub fn host_of(&self, status: &Status, node: &str) -> usize {
        let node = crate::lab::find(status, node);
        let number: usize = node.host.as_str()[1..].parse().expect("h and a number");
        number - 1
    }

    /// The ends of all logs of daemons, for messages of failed tests.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut out = String::new();
        let proxies = self.hosts.iter().map(|host| host.dir.join("proxy/proxy.log"));
        let daemons = self.coordinators.iter().chain(&self.hosts).map(Daemon::log);
        for file in daemons.chain(proxies) {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(12)..];
            out.push_str(&format!("--- {}\n{}\n", file.display(), tail.join("\n")));
        }
        out
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        let mut hosts = std::mem::take(&mut self.hosts);
        hosts.iter_mut().for_each(Daemon::kill);
        for host in &mut hosts {
            host.place.end();
            if self.shape.disk_kib.is_some() {
                let _goes_with_us = Command::new("umount").arg("-l").arg(&host.dir).status();
            }
        }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
