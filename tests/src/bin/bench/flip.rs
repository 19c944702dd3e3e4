//! From the start of the CLI's `partition` to the last byte delivered on any cut link, with a 1 kHz writer on each.

use std::{
    collections::BTreeMap,
    net::TcpStream,
    time::{Duration, Instant},
};

use faultbed_tests::{
    heard::{heard_ns, monotonic_ns},
    lab::Lab,
    mini::{self, Mini},
    wait::wait_for,
};

use super::table::{Row, Table};

/// Cuts measured.
const CUTS: usize = 50;

pub(crate) fn run() -> anyhow::Result<Table> {
    let lab = Lab::new("benchflip");
    lab.write("mini.toml", &mini::blueprint(Mini::Streams));
    let file =
        lab.write("lab.toml", "[lab]\nhosts = 3\n\n[cluster.m]\nblueprint = \"./mini.toml\"\n");
    lab.ok(&["up", "-d", &file.display().to_string()]);
    let addresses: BTreeMap<String, String> = lab
        .status()
        .nodes
        .iter()
        .map(|n| {
            let url = n.private["http"].trim_start_matches("http://").to_owned();
            (n.name.to_string(), url)
        })
        .collect();
    let cut_links = [("m-1", "m-2"), ("m-2", "m-1"), ("m-1", "m-3"), ("m-3", "m-1")];
    let heard_since = |since: u64| {
        cut_links.iter().all(|(from, to)| last_ns(&addresses[*to], from).is_ok_and(|at| at > since))
    };
    let mut flips = Vec::new();
    let mut startups = Vec::new();
    for _ in 0..CUTS {
        let now = monotonic_ns();
        wait_for("all links carry bytes", Duration::from_secs(30), || {
            heard_since(now).then_some(()).ok_or_else(|| "not yet".to_owned())
        });
        let start = Instant::now();
        lab.ok(&["version"]);
        startups.push(start.elapsed().as_secs_f64() * 1e3);

        let start = monotonic_ns();
        lab.ok(&["partition", "m-1", "m-2,m-3", "--name", "flip", "--for", "1m"]);
        let in_force = monotonic_ns();
        std::thread::sleep(Duration::from_millis(50));
        let mut last = start;
        for (from, to) in cut_links {
            let at = last_ns(&addresses[to], from)?;
            anyhow::ensure!(at < in_force, "{from}>{to} delivered after the cut was in force");
            last = last.max(at);
        }
        flips.push(Duration::from_nanos(last - start).as_secs_f64() * 1e3);
        lab.ok(&["heal", "flip"]);
        lab.ok(&["delete", "fault", "flip"]);
    }
    let apart = flips.iter().zip(&startups).map(|(f, s)| f - s).collect();
    Ok(Table {
        bench: "flip",
        notes: Vec::new(),
        rows: vec![
            Row::new("last byte after the start", "faultbed partition", "ms", flips),
            Row::new("CLI start-up", "faultbed version", "ms", startups),
            Row::new("last byte less start-up", "faultbed partition", "ms", apart),
        ],
    })
}

fn last_ns(address: &str, from: &str) -> anyhow::Result<u64> {
    heard_ns(TcpStream::connect(address)?, address, from)
}
