//! Finds the processes of a lab in /proc: daemons, proxies, shims and nodes. Trusts no pid file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, PidfdFlags, Signal};

/// What a process is to its lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Takes the lab down when its parent dies.
    Guard,
    /// Keeps the desired state.
    Coordinator,
    /// Makes it true on a host.
    Agent,
    /// Is the parent of a node.
    Shim,
    /// Is the database.
    Node,
    /// Forwards.
    Proxy,
}

impl Kind {
    /// As a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Coordinator => "coordinator",
            Self::Agent => "agent",
            Self::Shim => "shim",
            Self::Node => "node",
            Self::Proxy => "proxy",
        }
    }
}

/// One process of a lab.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// What it is.
    pub kind: Kind,
    /// Its number.
    pub pid: i32,
    /// When it began, in ticks since boot: with the number, its identity.
    pub start_ticks: u64,
    /// Whose, such as `kv-1` or `h1`.
    pub name: String,
}

/// A process as /proc shows it.
#[derive(Debug, Clone, Default)]
struct Seen {
    pid: i32,
    parent: i32,
    start_ticks: u64,
    argv: Vec<String>,
}

/// The processes of the lab in `dir`, this one excluded.
#[must_use]
pub fn processes(dir: &Path) -> Vec<Process> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let seen = scan();
    let mut found: BTreeMap<i32, Process> = BTreeMap::new();
    for process in &seen {
        if let Some((kind, name)) = daemon_of(&process.argv, dir) {
            found.insert(process.pid, identified(process, kind, name));
        }
    }
    add_nodes(&seen, &mut found, dir);
    found.remove(&own);
    let mut processes: Vec<Process> = found.into_values().collect();
    processes.sort();
    processes
}

fn identified(seen: &Seen, kind: Kind, name: String) -> Process {
    Process { kind, pid: seen.pid, start_ticks: seen.start_ticks, name }
}

/// Children of shims are nodes, whatever they call themselves; so is what carries a shim's tag and
/// still works in the lab's directory.
fn add_nodes(seen: &[Seen], found: &mut BTreeMap<i32, Process>, dir: &Path) {
    loop {
        let before = found.len();
        for process in seen {
            let parent = match found.get(&process.parent) {
                Some(parent) if matches!(parent.kind, Kind::Shim | Kind::Node) => parent.clone(),
                _ => continue,
            };
            found
                .entry(process.pid)
                .or_insert_with(|| identified(process, Kind::Node, parent.name.clone()));
        }
        if found.len() == before {
            break;
        }
    }
    for process in seen {
        if !found.contains_key(&process.pid)
            && let Some(node) = stray_of(process.pid, dir)
        {
            found.insert(process.pid, identified(process, Kind::Node, node));
        }
    }
}

/// The node that an orphan was of: its environment has a shim's tag and it works in the lab.
fn stray_of(pid: i32, dir: &Path) -> Option<String> {
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    if !cwd.starts_with(dir) {
        return None;
    }
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let tag = environ.split(|b| *b == 0).find_map(|line| line.strip_prefix(b"FAULTBED_NODE="))?;
    let tag = String::from_utf8_lossy(tag).into_owned();
    Some(tag.split('/').nth(1).unwrap_or(&tag).to_owned())
}

/// What a command line of ours says: the kind and whose.
fn daemon_of(argv: &[String], dir: &Path) -> Option<(Kind, String)> {
    let after = |flag: &str| {
        argv.iter().position(|word| word == flag).and_then(|at| argv.get(at + 1)).map(PathBuf::from)
    };
    let below = |path: &Path| path.starts_with(dir);
    let program = Path::new(argv.first()?).file_name()?.to_str()?.to_owned();
    let verb = argv.get(1).map(String::as_str);
    match verb {
        Some("agent") => {
            let at = after("--dir").filter(|at| below(at))?;
            Some((Kind::Agent, last_part(&at)))
        }
        Some("shim") => {
            let run = PathBuf::from(argv.get(2)?);
            below(&run).then(|| (Kind::Shim, node_of(&run)))
        }
        Some("proxy") => {
            let at = PathBuf::from(argv.get(2)?);
            let host = at.parent().map(last_part).unwrap_or_default();
            below(&at).then_some((Kind::Proxy, host))
        }
        Some("__guard") => {
            let at = after("--dir")?;
            (at == dir).then(|| (Kind::Guard, String::new()))
        }
        _ if program == "faultbed-coordinator" => {
            let at = after("--dir")?;
            below(&at).then(|| (Kind::Coordinator, String::new()))
        }
        _ => None,
    }
}

fn last_part(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// `kv-1` of `…/nodes/kv-1/runs/0001`.
fn node_of(run: &Path) -> String {
    run.parent().and_then(Path::parent).map(last_part).unwrap_or_default()
}

/// The directories of labs that processes of this user belong to.
#[must_use]
pub fn lab_dirs() -> BTreeSet<PathBuf> {
    let mut dirs = BTreeSet::new();
    for process in scan() {
        let words = &process.argv;
        let path = match words.get(1).map(String::as_str) {
            Some("shim" | "proxy") => words.get(2).map(PathBuf::from),
            _ => words
                .iter()
                .position(|w| w == "--dir")
                .and_then(|at| words.get(at + 1))
                .map(PathBuf::from),
        };
        let Some(path) = path else { continue };
        // …/hosts/h1/… and …/coordinator are parts of a lab's directory.
        let lab = path.ancestors().find_map(|part| match part.file_name()?.to_str()? {
            "hosts" | "coordinator" => part.parent().map(Path::to_owned),
            _ => None,
        });
        if let Some(lab) = lab.filter(|lab| daemon_of(words, lab).is_some()) {
            dirs.insert(lab);
        }
    }
    dirs
}

/// Processes that have this in their environment.
#[must_use]
pub fn tagged(tag: &str) -> Vec<Process> {
    let has = |process: &Seen| {
        let environ = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|line| line == tag.as_bytes())
    };
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    scan()
        .into_iter()
        .filter(|process| process.pid != own && has(process))
        .map(|process| identified(&process, Kind::Node, String::new()))
        .collect()
}

/// Every process of this user.
fn scan() -> Vec<Seen> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(look)
        .collect()
}

fn look(pid: i32) -> Option<Seen> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may hold anything, brackets and blanks included.
    let rest: Vec<&str> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
    if rest.first() == Some(&"Z") {
        return None;
    }
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let argv = cmdline
        .split(|byte| *byte == 0)
        .map(|word| std::ffi::OsStr::from_bytes(word).to_string_lossy().into_owned())
        .filter(|word| !word.is_empty())
        .collect();
    Some(Seen {
        pid,
        parent: rest.get(1)?.parse().ok()?,
        start_ticks: rest.get(19)?.parse().ok()?,
        argv,
    })
}

/// When a process began; `None` where there is none.
#[must_use]
pub fn start_ticks(pid: i32) -> Option<u64> {
    look(pid).map(|seen| seen.start_ticks)
}

/// A handle of exactly this process; `None` where it is gone or its number is another's now.
#[must_use]
pub fn pin(process: &Process) -> Option<OwnedFd> {
    let pid = Pid::from_raw(process.pid)?;
    let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
    (start_ticks(process.pid) == Some(process.start_ticks)).then_some(fd)
}

/// Sends a signal to exactly this process; one that is gone is none.
pub fn signal(process: &Process, signal: Signal) {
    if let Some(fd) = pin(process) {
        let _ = rustix::process::pidfd_send_signal(fd, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn our_processes_are_known_by_their_command_lines() {
        let dir = Path::new("/s/labs/lab");
        let kind = |text: &str| daemon_of(&words(text), dir);
        let agent = "/b/faultbed-agent agent --lab lab --host h1 --dir /s/labs/lab/hosts/h1";
        assert_eq!(kind(agent), Some((Kind::Agent, "h1".into())));
        let shim = "/proc/self/exe shim /s/labs/lab/hosts/h1/nodes/kv-1/runs/0001";
        assert_eq!(kind(shim), Some((Kind::Shim, "kv-1".into())));
        let proxy = "/b/faultbed-agent proxy /s/labs/lab/hosts/h1/proxy /run/h1-proxy.sock";
        assert_eq!(kind(proxy), Some((Kind::Proxy, "h1".into())));
        let coordinator = "/b/faultbed-coordinator --lab lab --dir /s/labs/lab/coordinator";
        assert_eq!(kind(coordinator), Some((Kind::Coordinator, String::new())));
    }

    #[test]
    fn other_labs_and_people_who_look_are_left_alone() {
        let dir = Path::new("/s/labs/lab");
        for text in [
            "/b/faultbed-coordinator --lab lab2 --dir /s/labs/lab2/coordinator",
            "tail -f /s/labs/lab/hosts/h1/agent.log",
            "vim /s/labs/lab/lab.json",
        ] {
            assert_eq!(daemon_of(&words(text), dir), None, "{text}");
        }
    }

    #[test]
    fn a_process_is_found_with_its_beginning() {
        let own = look(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.start_ticks > 0 && !own.argv.is_empty());
    }
}
