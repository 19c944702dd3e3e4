//! What is really there, by /proc and by the files of agents, whatever a status says.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use super::{client::dial_once, net::Place};

/// A dial of [`opens_at`] that is not answered so fast met the cut.
const DIAL_MAX: Duration = Duration::from_millis(15);

/// The processes that run a node's program with this lab's data: more than one is a second copy.
///
/// # Panics
/// Without /proc.
#[must_use]
pub fn copies(place: &Place, node: &str) -> Vec<u32> {
    let name = format!("--name={node}");
    let pids = place.processes().into_iter();
    let own = pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == name.as_bytes())
    });
    own.filter_map(|pid| u32::try_from(pid).ok()).filter(|pid| crate::lab::is_alive(*pid)).collect()
}

/// The parent of a process: of a node, its shim.
#[must_use]
pub fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}

/// The proxy process of an agent's directory, by its record.
#[must_use]
pub fn proxy_pid(agent_dir: &Path) -> Option<u32> {
    let text = fs::read_to_string(agent_dir.join("proxy/proxy.pid.json")).ok()?;
    let record: serde_json::Value = serde_json::from_str(&text).ok()?;
    u32::try_from(record["process"]["pid"].as_u64()?).ok().filter(|pid| crate::lab::is_alive(*pid))
}

/// When the host itself says that each fault ends, in nanoseconds of CLOCK_BOOTTIME.
#[must_use]
pub fn deadlines(agent_dir: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for file in ["ledger.json", "ledger.next.json"] {
        let text = fs::read_to_string(agent_dir.join(file)).unwrap_or_default();
        let ledger: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let all = ledger["deadlines"].as_object().cloned().unwrap_or_default();
        found.extend(
            all.into_iter().filter_map(|(name, d)| Some((name, d["boottime_ns"].as_u64()?))),
        );
    }
    found
}

/// CLOCK_BOOTTIME in nanoseconds.
#[must_use]
pub fn boottime_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Dials from a place until it is answered; when that dial began, in nanoseconds of CLOCK_BOOTTIME.
/// Dials follow each other without a pause, each gives up after 15 ms.
///
/// # Panics
/// When it is not open after `within`.
#[must_use]
pub fn opens_at(place: &Place, address: SocketAddr, within: Duration) -> u64 {
    place.inside(|| {
        let end = Instant::now() + within;
        loop {
            let began = boottime_ns();
            let tried = Instant::now();
            match dial_once(address, DIAL_MAX) {
                Ok(()) => return began,
                Err(error) => assert!(Instant::now() < end, "{address} stays shut: {error}"),
            }
            // Where nobody listens the answer comes at once.
            std::thread::sleep(DIAL_MAX.saturating_sub(tried.elapsed()));
        }
    })
}
