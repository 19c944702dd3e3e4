//! An agent with 50 nodes is killed and started again: until the lab says of each what it is, and that it is the same process.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use faultbed_common::{
    report::NodeState,
    status::{HostState, Status},
};
use faultbed_tests::{
    bins,
    lab::{Lab, signal},
    mini::{self, Mini},
    wait::wait_for,
};
use rustix::process::Signal;

use super::table::{Bound, Row, Table};

/// Nodes of the one host.
const NODES: usize = 50;
/// How often its agent dies.
const DEATHS: usize = 15;
/// What is required, in milliseconds from the start of the new agent.
const ADOPTED_MS_MAX: f64 = 500.0;
/// How long anything may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// The agent's record of its process.
const PID_FILE: &str = "hosts/h1/agent.pid";

type Pids = BTreeMap<String, u32>;

pub(crate) fn run() -> anyhow::Result<Table> {
    let lab = Lab::new("benchadopt");
    lab.write("mini.toml", &mini::blueprint(Mini::Idle));
    let file = format!(
        "[lab]\nhosts = 1\n\n[cluster.m]\nblueprint = \"./mini.toml\"\n\n[cluster.m.mini]\ncount = {NODES}\n"
    );
    let file = lab.write("lab.toml", &file);
    lab.ok(&["up", "-d", &file.display().to_string()]);
    let before = lab.wait("all nodes ready", |status| status.converged.then(|| ready(status))?);
    let mut agent = Agent::of(&lab)?;
    let (mut up, mut adopted, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..DEATHS {
        agent.kill();
        wait_for("the host is down", PATIENCE, || {
            let is_down = lab.status().hosts[0].state == HostState::Down;
            is_down.then_some(()).ok_or_else(|| "up".to_owned())
        });
        let start = Instant::now();
        agent.start()?;
        let mut connected = None;
        let after = loop {
            let status = lab.status();
            if status.hosts[0].state == HostState::Up {
                connected.get_or_insert_with(|| start.elapsed());
            }
            if let Some(pids) = ready(&status).filter(|_| status.converged) {
                break pids;
            }
            anyhow::ensure!(start.elapsed() < PATIENCE, "not adopted: {:?}", status.pending);
        };
        adopted.push(ms(start.elapsed()));
        up.push(ms(connected.unwrap_or_default()));
        cpu.push(agent.cpu_ms());
        anyhow::ensure!(after == before, "other processes: {before:?} {after:?}");
    }
    let question: Vec<f64> = (0..DEATHS).map(|_| asked(&lab)).collect();
    Ok(Table {
        bench: "adopt",
        notes: vec![format!(
            "{NODES} nodes of one host, asked by `faultbed status`; all the same processes each time"
        )],
        rows: vec![
            Row::new("host up after the start", "faultbed-agent", "ms", up),
            Row::new("all ready after the start", "faultbed-agent", "ms", adopted)
                .bound(Bound::AtMost(ADOPTED_MS_MAX)),
            Row::new("processor time of it", "faultbed-agent", "ms", cpu),
            Row::new("one question", "faultbed status", "ms", question),
        ],
    })
}

/// The process of each node, where all of them are ready.
fn ready(status: &Status) -> Option<Pids> {
    let all = status.nodes.iter().map(|node| {
        let pid = node.pid.filter(|_| node.observed == NodeState::Ready)?;
        Some((node.name.to_string(), pid))
    });
    all.collect::<Option<Pids>>().filter(|pids| pids.len() == NODES)
}

fn asked(lab: &Lab) -> f64 {
    let start = Instant::now();
    let _status = lab.status();
    ms(start.elapsed())
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// The agent of the lab's host, started as the lab started it.
struct Agent {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: std::path::PathBuf,
    pid: i32,
    child: Option<Child>,
}

impl Agent {
    fn of(lab: &Lab) -> anyhow::Result<Self> {
        let pid = lab.daemon_pid(PID_FILE);
        let words = |file: &str| -> anyhow::Result<Vec<String>> {
            let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(file))?;
            Ok(text.split_terminator('\0').map(str::to_owned).collect())
        };
        let split = |word: &String| word.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        Ok(Self {
            arguments: words("cmdline")?,
            environment: words("environ")?.iter().filter_map(split).collect(),
            log: lab.dir().join("hosts/h1/agent.log"),
            pid,
            child: None,
        })
    }

    fn kill(&mut self) {
        signal(self.pid, Signal::KILL);
        if let Some(mut child) = self.child.take() {
            let _gone = child.wait();
        }
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let log = fs::File::options().append(true).create(true).open(&self.log)?;
        let child = Command::new(bins::path("faultbed-agent"))
            .args(self.arguments.get(1..).unwrap_or_default())
            .env_clear()
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start the agent")?;
        self.pid = i32::try_from(child.id())?;
        self.child = Some(child);
        Ok(())
    }

    /// Processor time since it was started, without that of its children.
    fn cpu_ms(&self) -> f64 {
        super::cost::process_ms(self.pid)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = child.kill();
            let _gone = child.wait();
        }
    }
}
