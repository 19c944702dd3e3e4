//! One coordinator and 200 simulated agents with 10 nodes each: how soon all have a fault in force, and what idling costs.

use std::{
    fmt::Write as _,
    fs,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use faultbed_common::{status::Status, trust::Token};
use faultbed_tests::bins;

use super::{
    cost,
    crowd::Crowd,
    options::Options,
    table::{Bound, Row, Table},
};

/// Hosts, unless `--hosts` says another number, each with as many nodes as a cluster of 5 on each fifth
/// host makes.
const HOSTS: usize = 200;
const NODES_EACH: usize = 10;
const CLUSTER: usize = 5;
/// Links that a cut of a cluster into two and three nodes meets.
const LINKS_EACH: usize = 12;
/// Faults measured, unless `--faults` says another number.
const FAULTS: usize = 20;
/// What is required from the start of the command to its end, in milliseconds.
const ACKNOWLEDGED_MS_MAX: f64 = 500.0;
/// How long an idle lab is watched.
const IDLE: Duration = Duration::from_secs(20);
/// How long anything may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(180);
const LAB: &str = "crowd";

pub(crate) fn run(options: &Options) -> anyhow::Result<Table> {
    let hosts = options.number("hosts", HOSTS);
    let site = Site::start()?;
    let crowd = Crowd::new()?;
    let joining = Instant::now();
    for number in 1..=u8::try_from(hosts).context("simulate at most 255 hosts")? {
        let label = format!("side={}", if number % 2 == 0 { "even" } else { "odd" });
        let line =
            site.ok(&["host", "token", "--name", &format!("h{number}"), "--label", &label])?;
        let token = line.trim().rsplit(' ').next().context("a token")?;
        crowd.join(number, &token.parse::<Token>().map_err(|e| anyhow::anyhow!("{e}"))?)?;
    }
    let joined = joining.elapsed().as_secs_f64() * 1e3;
    let start = Instant::now();
    site.ok(&["apply", "-f", &site.lab_file(hosts)?])?;
    let applied = start.elapsed().as_secs_f64() * 1e3;
    let nodes = hosts * NODES_EACH;
    site.wait(|status| status.converged && status.nodes.len() == nodes)?;
    let mut rows = vec![
        Row::new(format!("{hosts} hosts joined"), "faultbed host token", "ms", vec![joined]),
        Row::new(format!("{nodes} nodes ready"), "faultbed apply", "ms", vec![applied]),
    ];
    rows.extend(idle(&site, &crowd, "idle")?);
    rows.extend(faults(&site, &crowd, options.number("faults", FAULTS))?);
    let clusters = nodes / CLUSTER;
    let fault = ["partition", "label:side=odd", "label:side=even", "--name", "stays"];
    site.ok(&fault)?;
    rows.extend(idle(&site, &crowd, "idle, fault in force")?);
    Ok(Table {
        bench: "agents",
        rows,
        notes: vec![
            format!(
                "one coordinator with the embedded store; {hosts} agents over mutual TLS, in the process of the benchmark, on the same machine"
            ),
            format!(
                "the fault is a partition of each of {clusters} clusters: {} links, at least 24 on each host",
                clusters * LINKS_EACH
            ),
        ],
    })
}

/// A partition that cuts each cluster in two, and its heal.
fn faults(site: &Site, crowd: &Crowd, count: usize) -> anyhow::Result<Vec<Row>> {
    let [mut cut, mut healed, mut startups, mut cpu, mut sent] = [(); 5].map(|()| Vec::new());
    let mut statuses = Vec::new();
    for _ in 0..count {
        startups.push(site.timed(&["version"])?);
        let (busy, down) = (site.cpu_ms(), crowd.traffic.down.load(Ordering::Relaxed));
        cut.push(site.timed(&["partition", "label:side=odd", "label:side=even", "--name", "f"])?);
        cpu.push(site.cpu_ms() - busy);
        sent.push((crowd.traffic.down.load(Ordering::Relaxed) - down) as f64 / 1e6);
        statuses.push(site.timed(&["status"])?);
        healed.push(site.timed(&["heal", "f"])?);
        site.ok(&["delete", "fault", "f"])?;
    }
    Ok(vec![
        Row::new("in force on all hosts", "faultbed partition", "ms", cut)
            .bound(Bound::AtMost(ACKNOWLEDGED_MS_MAX)),
        Row::new("processor time for it", "coordinator", "ms", cpu),
        Row::new("orders sent for it", "coordinator", "MB", sent),
        Row::new("healed on all hosts", "faultbed heal", "ms", healed),
        Row::new("status meanwhile", "faultbed status", "ms", statuses),
        Row::new("CLI start-up", "faultbed version", "ms", startups),
    ])
}

/// What a lab costs in which nothing happens.
fn idle(site: &Site, crowd: &Crowd, what: &str) -> anyhow::Result<Vec<Row>> {
    // What was just ordered is said and written by then.
    std::thread::sleep(IDLE / 5);
    let (cpu, loopback) = (site.cpu_ms(), loopback_bytes()?);
    let (up, down) = (&crowd.traffic.up, &crowd.traffic.down);
    let documents = up.load(Ordering::Relaxed) + down.load(Ordering::Relaxed);
    std::thread::sleep(IDLE);
    let seconds = IDLE.as_secs_f64();
    let cpu = (site.cpu_ms() - cpu) / 10.0 / seconds;
    let loopback = (loopback_bytes()? - loopback) / seconds / 1e3;
    let documents = up.load(Ordering::Relaxed) + down.load(Ordering::Relaxed) - documents;
    let memory = cost::Processes::of(Some(site.coordinator.id())).memory_kilobytes() / 1e3;
    Ok(vec![
        Row::new(format!("{what}: of a core"), "coordinator", "%", vec![cpu]),
        Row::new(format!("{what}: on the wire"), "all agents", "kB/s", vec![loopback]),
        Row::new(
            format!("{what}: documents"),
            "all agents",
            "kB/s",
            vec![documents as f64 / seconds / 1e3],
        ),
        Row::new(format!("{what}: memory"), "coordinator", "MB", vec![memory]),
    ])
}

/// Bytes of all packets on the loopback device; a namespace of our own has nobody else's.
fn loopback_bytes() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    let field = line.and_then(|line| line.split_whitespace().next());
    Ok(field.context("a loopback device")?.parse()?)
}

/// A coordinator that serves other machines.
struct Site {
    home: tempfile::TempDir,
    coordinator: Child,
}

impl Site {
    fn start() -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("fb").tempdir()?;
        let log = fs::File::create(home.path().join("coordinator.log"))?;
        let coordinator = Command::new(bins::path("faultbed-coordinator"))
            .args(["--lab", LAB, "--listen", "127.0.0.1:0", "--dir"])
            .arg(home.path().join("c"))
            .arg("--runtime")
            .arg(home.path().join("cr"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        let site = Self { home, coordinator };
        let began = Instant::now();
        while !fs::read_to_string(site.log())?.contains("coordinator ready") {
            anyhow::ensure!(began.elapsed() < PATIENCE, "the coordinator does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        let socket = site.home.path().join("cr/api.sock");
        site.ok(&["context", "add", &format!("unix:{}", socket.display())])?;
        Ok(site)
    }

    fn log(&self) -> std::path::PathBuf {
        self.home.path().join("coordinator.log")
    }

    /// Clusters, 400 for 200 hosts, which the lab spreads evenly.
    fn lab_file(&self, hosts: usize) -> anyhow::Result<String> {
        let blueprint = r#"
name = "mini"
summary = "is never run"
[role.mini]
program = "mini-node"
count = 5
port.client = { default = 7000 }
port.peer = { default = 7001 }
args = ["--listen={{ node.port.peer.bind }}", "--peers={% for n in role.mini %}{{ n.port.peer.advertise }},{% endfor %}"]
"#;
        fs::write(self.home.path().join("mini.toml"), blueprint)?;
        let mut text = String::new();
        for number in 1..=hosts * NODES_EACH / CLUSTER {
            writeln!(text, "[cluster.c{number}]\nblueprint = \"./mini.toml\"")?;
        }
        let path = self.home.path().join("lab.toml");
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(bins::path("faultbed"));
        command.args(args).env("NO_COLOR", "1").env("FAULTBED_LAB", LAB).stdin(Stdio::null());
        for (name, dir) in
            [("XDG_STATE_HOME", "state"), ("XDG_CONFIG_HOME", "config"), ("XDG_RUNTIME_DIR", "run")]
        {
            command.env(name, self.home.path().join(dir));
        }
        command
    }

    fn ok(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(args).output().context("run faultbed")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let log = || fs::read_to_string(self.log()).unwrap_or_default();
        anyhow::ensure!(output.status.success(), "faultbed {args:?}: {said}\n{}", tail(&log()));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Milliseconds that a command takes.
    fn timed(&self, args: &[&str]) -> anyhow::Result<f64> {
        let start = Instant::now();
        self.ok(args)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    fn wait(&self, is_so: impl Fn(&Status) -> bool) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let status: Status = serde_json::from_str(&self.ok(&["status", "-o", "json"])?)?;
            if is_so(&status) {
                return Ok(());
            }
            anyhow::ensure!(began.elapsed() < PATIENCE, "not so: {:?}", status.pending.first());
        }
    }

    fn cpu_ms(&self) -> f64 {
        cost::process_ms(i32::try_from(self.coordinator.id()).unwrap_or_default())
    }
}

fn tail(log: &str) -> &str {
    let from = log.char_indices().rev().nth(2000).map_or(0, |(at, _)| at);
    log.get(from..).unwrap_or_default()
}

impl Drop for Site {
    fn drop(&mut self) {
        let _gone = self.coordinator.kill();
        let _gone = self.coordinator.wait();
    }
}
