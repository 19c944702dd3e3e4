//! What an idle lab costs: memory and processor time of its agents, shims and proxies over a minute.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use faultbed_tests::lab::{ETCD, Lab};

use super::table::{Row, Table};

/// How long processor time is counted.
const OVER: Duration = Duration::from_secs(60);

pub(crate) fn run() -> anyhow::Result<Table> {
    let lab = Lab::up("benchidle", ETCD);
    lab.wait_ready();
    let agents = pids(&lab, "agent")?;
    let shims = pids(&lab, "shim")?;
    let proxies = pids(&lab, "proxy")?;
    anyhow::ensure!(agents.len() == 3 && shims.len() == 3 && proxies.len() == 3, "three of each");
    let before: Vec<f64> = agents.iter().map(|pid| cpu_seconds(*pid)).collect::<Result<_, _>>()?;
    std::thread::sleep(OVER);
    let cpu = agents
        .iter()
        .zip(before)
        .map(|(pid, before)| Ok((cpu_seconds(*pid)? - before) / OVER.as_secs_f64() * 100.0))
        .collect::<anyhow::Result<_>>()?;
    let memory = |pids: &[u32], field: &str| -> anyhow::Result<Vec<f64>> {
        pids.iter().map(|pid| megabytes(*pid, field)).collect()
    };
    Ok(Table {
        bench: "idle",
        notes: Vec::new(),
        rows: vec![
            Row::new("proportional memory", "agent", "MB", memory(&agents, "Pss:")?),
            Row::new("of a core", "agent", "%", cpu),
            Row::new("private memory", "shim", "MB", memory(&shims, "Private")?),
            Row::new("proportional memory", "proxy", "MB", memory(&proxies, "Pss:")?),
        ],
    })
}

/// The processes of the lab that are this part of `faultbed-agent`.
fn pids(lab: &Lab, part: &str) -> anyhow::Result<Vec<u32>> {
    let home = lab.home().display().to_string();
    let mut found = Vec::new();
    for entry in Path::new("/proc").read_dir()?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = line.split('\0');
        let program = arguments.next().unwrap_or_default();
        let is_agent = program.ends_with("faultbed-agent") || program == "/proc/self/exe";
        if is_agent && arguments.next() == Some(part) && line.contains(&home) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().context("stat")?.split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

/// The sum of the fields of `smaps_rollup` that start with `field`.
fn megabytes(pid: u32, field: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kilobytes = text
        .lines()
        .filter(|line| line.starts_with(field))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
        .sum::<f64>();
    Ok(kilobytes / 1024.0)
}
