//! From `apply` to three ready etcd nodes, against the same processes started by a bare shell script.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use faultbed_tests::lab::{ETCD, Lab};

use super::table::{Row, Table};

/// Interleaved pairs.
const PAIRS: usize = 20;

/// How often the bare script's nodes are asked, as often as ours.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// How long an answer is waited for before it is asked anew, as ours are while a node starts.
const ANSWER_MAX: Duration = Duration::from_millis(100);

pub(crate) fn run() -> anyhow::Result<Table> {
    let lab = Lab::up("benchstart", "[lab]\nhosts = 3\n");
    let file = lab.write("kv.toml", ETCD).display().to_string();
    let mut ours = Vec::new();
    let mut bare = Vec::new();
    for _ in 0..PAIRS {
        let start = Instant::now();
        lab.ok(&["apply", "-f", &file]);
        ours.push(ms(start));
        let commands = commands(&lab)?;
        lab.ok(&["delete", "cluster", "kv", "--wipe"]);
        lab.wait("kv is gone", |status| status.nodes.is_empty().then_some(()));
        bare.push(start_bare(&lab, &commands)?);
    }
    let difference = ours.iter().zip(&bare).map(|(a, b)| a - b).collect();
    Ok(Table {
        bench: "start",
        notes: Vec::new(),
        rows: vec![
            Row::new("three etcd ready", "faultbed apply", "ms", ours.clone())
                .ratio("bare", &ours, &bare),
            Row::new("three etcd ready", "bare", "ms", bare),
            Row::new("ours - bare", "faultbed apply", "ms", difference),
        ],
    })
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// The very command lines our nodes run with, moved to addresses without proxies.
fn commands(lab: &Lab) -> anyhow::Result<Vec<(SocketAddr, Vec<String>)>> {
    let status = lab.status();
    let strip = |url: &String| url.trim_start_matches("http://").to_owned();
    let mut commands = Vec::new();
    for node in &status.nodes {
        let pid = node.pid.context("node runs")?;
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let mut arguments: Vec<String> = line.split_terminator('\0').map(str::to_owned).collect();
        for argument in &mut arguments {
            for other in &status.nodes {
                for (port, advertised) in &other.endpoints {
                    *argument = argument.replace(&strip(advertised), &strip(&other.private[port]));
                }
            }
            if let Some(data) = argument.strip_prefix("--data-dir=") {
                let bare = lab.home().join("bare").join(node.name.as_str());
                anyhow::ensure!(!data.is_empty(), "data directory of {}", node.name);
                *argument = format!("--data-dir={}", bare.display());
            }
        }
        commands.push((strip(&node.private["client"]).parse()?, arguments));
    }
    Ok(commands)
}

fn start_bare(lab: &Lab, commands: &[(SocketAddr, Vec<String>)]) -> anyhow::Result<f64> {
    let _ = std::fs::remove_dir_all(lab.home().join("bare"));
    std::fs::create_dir_all(lab.home().join("bare"))?;
    let lines: Vec<String> = commands
        .iter()
        .map(|(_, arguments)| {
            let quoted: Vec<_> = arguments.iter().map(|a| format!("'{a}'")).collect();
            format!("{} &", quoted.join(" "))
        })
        .collect();
    let script = lab.write("bare.sh", &format!("{}\nwait\n", lines.join("\n")));
    let start = Instant::now();
    let mut shell = Command::new("sh")
        .arg(script)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let deadline = start + Duration::from_secs(60);
    while !commands.iter().all(|(address, _)| is_healthy(*address)) {
        anyhow::ensure!(Instant::now() < deadline, "the bare cluster did not get ready");
        std::thread::sleep(POLL_EVERY);
    }
    let took = ms(start);
    let group = format!("pkill -KILL -P {}", shell.id());
    Command::new("sh").args(["-c", &group]).status()?;
    shell.wait()?;
    Ok(took)
}

fn is_healthy(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        write!(stream, "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}
