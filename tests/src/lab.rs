//! A lab of its own for one test, taken down and checked for leftovers when the test ends.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use faultbed_common::{
    name::NodeName,
    report::NodeState,
    status::{NodeStatus, Status},
};
use tempfile::TempDir;

use crate::{bins, wait::wait_for};

/// How long anything a test waits for may take on a slow machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// How long the command line waits there for what a test asks of it.
const WAIT: &str = "5m";

/// The lab that most tests start from: three hosts, three etcd nodes.
pub const ETCD: &str = "[lab]\nhosts = 3\n\n[cluster.kv]\nblueprint = \"etcd\"\n";

/// A lab of one test.
#[derive(Debug)]
pub struct Lab {
    home: TempDir,
    name: String,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; -1 where a signal ended it.
    pub code: i32,
    /// What it printed as data.
    pub stdout: String,
    /// What it printed for people.
    pub stderr: String,
}

impl Lab {
    /// A lab that does not exist yet, with directories of its own.
    ///
    /// # Panics
    /// Without a temporary directory.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let home = tempfile::Builder::new().prefix("fb").tempdir().expect("make directory");
        Self { home, name: name.to_owned() }
    }

    /// A running lab made from the text of a lab file.
    ///
    /// # Panics
    /// Where it does not come up.
    #[must_use]
    pub fn up(name: &str, file: &str) -> Self {
        let lab = Self::new(name);
        let path = lab.write("lab.toml", file);
        let ran = lab.run(&["up", "-d", &path.display().to_string()]);
        assert_eq!(ran.code, 0, "up: {}\n{}\n{}", ran.stdout, ran.stderr, lab.logs());
        lab
    }

    /// A directory of the test.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The lab's own directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.home.path().join("state/faultbed/labs").join(&self.name)
    }

    /// The lab's runtime directory.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.home.path().join("run/faultbed").join(&self.name)
    }

    /// Writes a file into the test's directory.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).expect("write file");
        path
    }

    /// `faultbed` with this lab's environment, to be run by the test itself.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let run = self.home.path().join("run");
        std::fs::create_dir_all(&run).expect("make directory");
        let mut command = Command::new(bins::path("faultbed"));
        command
            .args(args)
            .env("XDG_STATE_HOME", self.home.path().join("state"))
            .env("XDG_CONFIG_HOME", self.home.path().join("config"))
            .env("XDG_RUNTIME_DIR", run)
            .env("FAULTBED_LAB", &self.name)
            .env("FAULTBED_WAIT", WAIT)
            .env("NO_COLOR", "1")
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs `faultbed` to its end.
    ///
    /// # Panics
    /// Where it cannot be run at all.
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().expect("run faultbed"))
    }

    /// Runs `faultbed` and demands success; gives its standard output.
    ///
    /// # Panics
    /// Where it fails.
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "faultbed {args:?}: {}\n{}", ran.stdout, ran.stderr);
        ran.stdout
    }

    /// The status now.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn status(&self) -> Status {
        let text = self.ok(&["status", "-o", "json"]);
        serde_json::from_str(&text).expect("status is JSON")
    }

    /// Waits until the status is as `look` wants; `look` says what it misses.
    pub fn wait<T>(&self, what: &str, mut look: impl FnMut(&Status) -> Option<T>) -> T {
        wait_for(what, PATIENCE, || {
            let status = self.status();
            look(&status).ok_or_else(|| summary(&status))
        })
    }

    /// Waits until all nodes are ready and exactly one leads; gives it.
    pub fn wait_ready(&self) -> NodeName {
        self.wait("all nodes ready, one leader", |status| {
            let ready = status.nodes.iter().all(|n| n.observed == NodeState::Ready);
            (ready && status.converged).then(|| leader(status)).flatten()
        })
    }

    /// One node's status.
    ///
    /// # Panics
    /// Where there is no such node.
    #[must_use]
    pub fn node(&self, name: &str) -> NodeStatus {
        find(&self.status(), name).clone()
    }

    /// `etcdctl` through the advertised addresses of these nodes.
    ///
    /// # Panics
    /// Where etcdctl cannot be run.
    pub fn etcdctl(&self, nodes: &[&str], args: &[&str]) -> Ran {
        let status = self.status();
        let endpoints: Vec<_> =
            nodes.iter().map(|n| find(&status, n).endpoints["client"].clone()).collect();
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", endpoints.join(",")))
            .args(["--dial-timeout=2s", "--command-timeout=3s"])
            .args(args)
            .output()
            .expect("run etcdctl (deploy/setup.sh installs it)");
        Ran::of(output)
    }

    /// The ends of all log files of the lab's daemons, for messages of failed tests.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut out = String::new();
        let mut files = vec![self.dir().join("coordinator/coordinator.log")];
        for host in 1..=3 {
            files.push(self.dir().join(format!("hosts/h{host}/agent.log")));
            files.push(self.dir().join(format!("hosts/h{host}/proxy/proxy.log")));
        }
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(15)..];
            out.push_str(&format!("--- {}\n{}\n", file.display(), tail.join("\n")));
        }
        out
    }

    /// The pid in a pid file of a daemon, such as `coordinator/coordinator.pid`.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn daemon_pid(&self, file: &str) -> i32 {
        let path = self.dir().join(file);
        let text = std::fs::read_to_string(&path).expect("read pid file");
        text.trim().parse().expect("pid")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let down = self.run(&["down", "--wipe"]);
        let never_was = down.code == 4 && !self.dir().exists();
        if !std::thread::panicking() && !never_was {
            assert_eq!(down.code, 0, "down: {}\n{}", down.stdout, down.stderr);
        }
    }
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The leader of the only cluster; `None` where none or two claim it.
#[must_use]
pub fn leader(status: &Status) -> Option<NodeName> {
    let mut leaders = status.nodes.iter().filter(|n| n.leader == Some(true));
    match (leaders.next(), leaders.next()) {
        (Some(one), None) => Some(one.name.clone()),
        (Some(_), Some(_)) | (None, _) => None,
    }
}

/// A node of a status.
///
/// # Panics
/// Where there is no such node.
#[must_use]
pub fn find<'a>(status: &'a Status, name: &str) -> &'a NodeStatus {
    status.nodes.iter().find(|n| n.name.as_str() == name).expect("node is in the status")
}

/// A status in one line, for messages of failed tests.
#[must_use]
pub fn summary(status: &Status) -> String {
    let nodes: Vec<_> = status
        .nodes
        .iter()
        .map(|n| format!("{} {:?} leader={:?} why={:?}", n.name, n.observed, n.leader, n.why))
        .collect();
    let faults: Vec<_> = status
        .faults
        .iter()
        .map(|f| format!("{} {:?} in_force={} {:?}", f.name, f.state, f.in_force, f.evidence.total))
        .collect();
    format!(
        "generation {} converged {} nodes {nodes:?} faults {faults:?} pending {:?} stuck {:?}",
        status.generation, status.converged, status.pending, status.stuck
    )
}

/// Whether a process lives (and is no zombie).
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("Z").starts_with('Z'))
}

/// Sends a signal.
///
/// # Panics
/// Where the kernel refuses.
pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("signal process");
}
