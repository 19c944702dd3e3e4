//! What a target's processes cost: processor time and memory of a whole tree of them.

use std::{collections::BTreeMap, fs, time::Instant};

/// A process and all that descend from it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Processes {
    /// `None` has no processes and costs nothing.
    root: Option<u32>,
}

impl Processes {
    pub(crate) fn of(root: Option<u32>) -> Self {
        Self { root }
    }

    fn pids(self) -> Vec<u32> {
        let Some(root) = self.root else { return Vec::new() };
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if let Some(parent) = parent_of(pid) {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut found = vec![root];
        let mut at = 0;
        while let Some(pid) = found.get(at).copied() {
            found.extend(children.remove(&pid).unwrap_or_default());
            at += 1;
        }
        found
    }

    /// Processor time of every thread that lives, in seconds.
    pub(crate) fn cpu_seconds(self) -> f64 {
        let threads = self.pids().into_iter().flat_map(|pid| {
            fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten()
        });
        let nanoseconds = |entry: fs::DirEntry| -> Option<f64> {
            let text = fs::read_to_string(entry.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse().ok()
        };
        threads.filter_map(nanoseconds).sum::<f64>() / 1e9
    }

    /// Memory in kilobytes; what is shared counts in proportion.
    pub(crate) fn memory_kilobytes(self) -> f64 {
        let of = |pid| -> Option<f64> {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
            let line = text.lines().find(|line| line.starts_with("Pss:"))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        self.pids().into_iter().filter_map(of).sum()
    }
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything, also parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Processor time that one process has taken, in milliseconds; threads that ended included.
pub(crate) fn process_ms(pid: i32) -> f64 {
    let pid = u32::try_from(pid).unwrap_or_default();
    // A tick is 10 ms.
    ticks_of(pid, false) * 10.0
}

/// Processor time of this process with its children, and of the whole machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    at: Instant,
    busy_s: f64,
    own_s: f64,
    stolen_s: f64,
}

impl Machine {
    /// As of now.
    pub(crate) fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<f64> =
            line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal.
        let of = |at: usize| ticks.get(at).copied().unwrap_or(0.0);
        let busy = [0, 1, 2, 5, 6].into_iter().map(of).sum::<f64>();
        let own = std::process::id();
        let pids = Processes::of(Some(own)).pids();
        let ticks = pids.into_iter().map(|pid| ticks_of(pid, pid == own)).sum::<f64>();
        let (busy_s, own_s, stolen_s) = (busy / 100.0, ticks / 100.0, of(7) / 100.0);
        Self { at: Instant::now(), busy_s, own_s, stolen_s }
    }

    /// How many cores others have used since `before`, and how many the host of a virtual machine has
    /// kept for its other guests. A run in which either is much tells little about latency.
    pub(crate) fn noise(self, before: Self) -> String {
        let took_s = (self.at - before.at).as_secs_f64();
        let others_s = ((self.busy_s - before.busy_s) - (self.own_s - before.own_s)).max(0.0);
        let stolen_s = self.stolen_s - before.stolen_s;
        format!(
            "others used {:.2} cores, and {:.2} were kept from this machine",
            others_s / took_s,
            stolen_s / took_s
        )
    }
}

/// Processor time of a process in ticks, where asked with that of children which have ended.
fn ticks_of(pid: u32, with_children: bool) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_ascii_whitespace().skip(11))
        .into_iter()
        .flatten()
        .take(if with_children { 4 } else { 2 })
        .filter_map(|field| field.parse().ok())
        .collect();
    fields.into_iter().sum()
}
