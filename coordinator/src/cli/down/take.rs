//! Takes a lab down in order: agents end their nodes and proxies, then whatever is left is ended here,
//! then it is verified that nothing is. Blocking; callers keep their signals.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use faultbed_common::duration::Span;
use rustix::process::Signal;
use serde::Serialize;

use super::{
    inventory::{self, Kind, Process},
    listeners,
};
use crate::cli::{
    claim::{CLAIMS_DIR, Claims},
    context::{Context, Places},
    failure::Failure,
    output,
    up::{daemons::Programs, lock},
    wait::list,
};

/// How long agents may take to end their nodes: the longest usual grace, and some.
const AGENTS_MAX: Duration = Duration::from_secs(45);

/// How long a process may take after SIGTERM.
const TERM_MAX: Duration = Duration::from_secs(5);

/// How long a process may take after SIGKILL.
const KILL_MAX: Duration = Duration::from_secs(5);

/// What is awaited is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Nodes that have not ended are named after this long, and again where others are left by then.
const SAID_EVERY: Duration = Duration::from_secs(1);

/// Nodes that one line names.
const NAMED_MAX: usize = 8;

/// What became of a lab's parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What was there and is not.
    pub gone: Vec<String>,
    /// What is there on purpose, and how to delete it.
    pub kept: Vec<String>,
    /// What should not be there.
    pub left: Vec<String>,
}

/// Takes a lab down; with `wipe` its data too.
///
/// # Errors
/// Another command holds the lab for too long, or its files cannot be removed.
pub fn take_down(places: &Places, context: &Context, wipe: bool) -> Result<Report, Failure> {
    let _lock = lock(places, &context.name)?;
    take_down_held(places, context, wipe)
}

/// As [`take_down`], for who holds the lab already.
///
/// # Errors
/// Its files cannot be removed.
pub fn take_down_held(places: &Places, context: &Context, wipe: bool) -> Result<Report, Failure> {
    let before = inventory::processes(&context.dir);
    let listening = listeners::of_octet(context.octet);
    end_guards(&before);
    if wipe {
        // Data that goes needs no graceful end, which takes databases seconds.
        end_processes(&context.dir);
    }
    ask_agents(&context.dir, wipe);
    end_processes(&context.dir);
    let mut report = Report { gone: gone(&before, &context.dir), ..Report::default() };
    let still = await_closed(context.octet);
    let closed = listening.len().saturating_sub(still.len());
    if closed > 0 {
        report.gone.push(format!("listeners on {closed} addresses"));
    }
    report.left = inventory::processes(&context.dir).iter().map(describe).collect();
    report.left.extend(still.iter().map(|address| format!("a listener on {address}")));
    clear_runtime(&context.runtime);
    if wipe && report.left.is_empty() {
        wipe_data(places, context, &mut report)?;
    } else if context.dir.exists() {
        report.kept.push(format!(
            "data in {}; delete it with: {}",
            context.dir.display(),
            context.typed("down --wipe")
        ));
    }
    Ok(report)
}

/// Ends the processes of a directory that is no lab's any more.
#[must_use]
pub fn end_orphans(places: &Places, dir: &Path) -> Report {
    let _ = places;
    let before = inventory::processes(dir);
    end_guards(&before);
    end_processes(dir);
    let left = inventory::processes(dir).iter().map(describe).collect();
    Report { gone: gone(&before, dir), kept: Vec::new(), left }
}

fn describe(process: &Process) -> String {
    let Process { kind, pid, name, .. } = process;
    if name.is_empty() {
        format!("{} (pid {pid})", kind.word())
    } else {
        format!("{} {name} (pid {pid})", kind.word())
    }
}

/// What ended, a line for each kind.
fn gone(before: &[Process], dir: &Path) -> Vec<String> {
    let after = inventory::processes(dir);
    let mut by_kind: BTreeMap<Kind, Vec<&Process>> = BTreeMap::new();
    for process in before.iter().filter(|p| !after.contains(p) && p.kind != Kind::Guard) {
        by_kind.entry(process.kind).or_default().push(process);
    }
    by_kind
        .into_iter()
        .map(|(kind, processes)| {
            let names = named(&processes);
            format!("{} ({})", counted(kind, names.len()), names.join(", "))
        })
        .collect()
}

/// What processes belong to, each once: a node may have many, and is named with its first.
fn named(processes: &[&Process]) -> Vec<String> {
    let mut firsts: Vec<(&Process, usize)> = Vec::new();
    for process in processes {
        let is_same = |first: &Process| !first.name.is_empty() && first.name == process.name;
        match firsts.iter_mut().find(|(first, _)| is_same(first)) {
            Some((_, more)) => *more += 1,
            None => firsts.push((process, 0)),
        }
    }
    firsts
        .into_iter()
        .map(|(first, more)| match (first.name.as_str(), more) {
            ("", _) => format!("pid {}", first.pid),
            (name, 0) => format!("{name} pid {}", first.pid),
            (name, more) => format!("{name} pid {} and {more} more", first.pid),
        })
        .collect()
}

fn counted(kind: Kind, count: usize) -> String {
    match (kind, count) {
        (_, 1) => kind.word().to_owned(),
        (Kind::Proxy, many) => format!("{many} proxies"),
        (kind, many) => format!("{many} {}s", kind.word()),
    }
}

/// Guards go first: they would take down what is being taken down.
fn end_guards(processes: &[Process]) {
    for guard in processes.iter().filter(|process| process.kind == Kind::Guard) {
        inventory::signal(guard, Signal::TERM);
    }
}

/// Asks the agent program of every host to end its nodes as their blueprints say.
fn ask_agents(dir: &Path, wipe: bool) {
    let Ok(programs) = Programs::find() else { return };
    let mut children: Vec<Child> = host_dirs(dir)
        .into_iter()
        .filter_map(|host| {
            let mut command = Command::new(&programs.agent);
            command.arg("down").arg("--dir").arg(host);
            if wipe {
                command.arg("--wipe");
            }
            // A group of its own: a second Ctrl-C must not end it halfway.
            command
                .process_group(0)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.spawn().ok()
        })
        .collect();
    let begun = Instant::now();
    let (mut looked_at, mut said) = (begun, None);
    while !children.is_empty() && begun.elapsed() < AGENTS_MAX {
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if looked_at.elapsed() >= SAID_EVERY {
            looked_at = Instant::now();
            let awaited = awaited(&inventory::processes(dir), AGENTS_MAX);
            if let Some(text) = awaited.as_ref().filter(|_| awaited != said) {
                output::say(text);
            }
            said = awaited;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    for mut child in children {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The nodes that have not ended yet: `waiting for kv-1 and kv-3 to end, at most 45s`.
fn awaited(processes: &[Process], limit: Duration) -> Option<String> {
    let nodes = processes.iter().filter(|process| process.kind == Kind::Node);
    let nodes: BTreeSet<&str> = nodes.map(|process| process.name.as_str()).collect();
    let more = nodes.len().saturating_sub(NAMED_MAX);
    let mut named: Vec<String> = nodes.iter().take(NAMED_MAX).map(|n| (*n).to_owned()).collect();
    named.extend((more > 0).then(|| format!("{more} more")));
    let limit = Span(limit);
    (!named.is_empty()).then(|| format!("waiting for {} to end, at most {limit}", list(&named)))
}

fn host_dirs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.join("hosts")) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Ends what is left, those that would start others first.
fn end_processes(dir: &Path) {
    for kinds in [
        &[Kind::Agent, Kind::Coordinator][..],
        // A shim that is asked ends its whole node first.
        &[Kind::Shim],
        &[Kind::Proxy, Kind::Node, Kind::Guard],
    ] {
        let of = |process: &Process| kinds.contains(&process.kind);
        for (signal, limit) in [(Signal::TERM, TERM_MAX), (Signal::KILL, KILL_MAX)] {
            let living: Vec<Process> =
                inventory::processes(dir).into_iter().filter(|process| of(process)).collect();
            if living.is_empty() {
                break;
            }
            for process in &living {
                inventory::signal(process, signal);
            }
            let begun = Instant::now();
            while begun.elapsed() < limit && inventory::processes(dir).iter().any(of) {
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
}

/// Listeners close when their processes do; a moment is left for the kernel.
fn await_closed(octet: u8) -> BTreeSet<SocketAddr> {
    let begun = Instant::now();
    loop {
        let still = listeners::of_octet(octet);
        if still.is_empty() || begun.elapsed() > TERM_MAX {
            return still;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn clear_runtime(runtime: &Path) {
    let Ok(entries) = fs::read_dir(runtime) else { return };
    for entry in entries.flatten() {
        let _ = fs::remove_file(entry.path());
    }
    let _ = fs::remove_dir(runtime);
}

/// Deletes what is the lab's, and only that: a directory of the user's own choice may hold more.
fn wipe_data(places: &Places, context: &Context, report: &mut Report) -> Result<(), Failure> {
    let dir = &context.dir;
    let say = |e: std::io::Error| Failure::io(format!("delete {}", dir.display()), &e);
    for part in ["coordinator", "hosts"] {
        remove_tree(&dir.join(part)).map_err(say)?;
    }
    for file in ["guard.log", crate::cli::context::CONTEXT_FILE] {
        remove_file(&dir.join(file)).map_err(say)?;
    }
    match fs::remove_dir(dir) {
        Ok(()) => report.gone.push(format!("data in {}", dir.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(_) => {
            report.kept.push(format!("{}: it holds files that are not the lab's", dir.display()))
        }
    }
    let link = places.lab_dir(&context.name);
    if fs::symlink_metadata(&link).is_ok_and(|meta| meta.is_symlink()) {
        remove_file(&link).map_err(say)?;
    }
    if let Ok(claims) = Claims::lock(Path::new(CLAIMS_DIR)) {
        claims.release(context.octet, dir);
    }
    if let Some(url) = context.store.strip_prefix("etcd=") {
        report.kept.push(format!(
            "keys of the lab in {url}; delete them with: etcdctl --endpoints={url} del --prefix /faultbed/v1/{}/",
            context.name
        ));
    }
    Ok(())
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_have_not_ended_are_named_each_once() {
        let node = |pid, name: &str| Process {
            kind: if name.is_empty() { Kind::Proxy } else { Kind::Node },
            pid,
            start_ticks: 0,
            name: name.to_owned(),
        };
        let limit = Duration::from_secs(45);
        let told =
            awaited(&[node(1, "kv-1"), node(2, "kv-1"), node(3, "kv-3"), node(4, "")], limit);
        assert_eq!(told.as_deref(), Some("waiting for kv-1 and kv-3 to end, at most 45s"));
        assert_eq!(awaited(&[node(4, "")], limit), None);
        let many: Vec<Process> = (1..=10).map(|n| node(n, &format!("n{n}"))).collect();
        assert!(
            awaited(&many, limit).unwrap().contains("and 2 more"),
            "{:?}",
            awaited(&many, limit)
        );
    }

    #[test]
    fn a_node_of_many_processes_is_named_once() {
        let process =
            |kind, pid, name: &str| Process { kind, pid, start_ticks: 0, name: name.to_owned() };
        let all = [(10, "d-1"), (11, "d-1"), (12, "d-2"), (13, "d-1")]
            .map(|(pid, name)| process(Kind::Node, pid, name));
        let named = named(&all.iter().collect::<Vec<_>>());
        assert_eq!(named, ["d-1 pid 10 and 2 more", "d-2 pid 12"]);
        let coordinator = process(Kind::Coordinator, 9, "");
        assert_eq!(super::named(&[&coordinator]), ["pid 9"]);
    }
}
