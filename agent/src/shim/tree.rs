//! All processes of a node: everything below the shim, found, stopped, continued, ended.
//!
//! The shim is their subreaper, so whoever loses its parent becomes a child of the shim: nothing gets
//! away by forking twice or beginning a session. Signals go through pidfds whose process was seen to
//! hang in the tree after they were opened, so none can reach a stranger with a used pid.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use rustix::process::{Signal, WaitOptions, pidfd_send_signal, wait};

use crate::node::process::{ProcStat, open_pidfd};

/// Looks at a tree until all of it stands; a process needs to be seen twice at most, save for those
/// that sleep without being interruptible and cannot fork either.
const STOP_ROUNDS_MAX: u32 = 50;
/// Rounds of ending what a failed start has left.
const END_ROUNDS_MAX: u32 = 1000;
/// Between two such rounds.
const STOP_ROUND: Duration = Duration::from_millis(1);

/// One process below the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    pid: i32,
    parent: i32,
}

/// A process that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    /// Its pid.
    pub(super) pid: i32,
    /// Its exit status, unless a signal ended it.
    pub(super) code: Option<i32>,
    /// That signal.
    pub(super) signal: Option<i32>,
}

/// Collects children that ended. The second value is whether there is none left, living or dead.
pub(super) fn collect() -> (Vec<Ended>, bool) {
    let mut ended = Vec::new();
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => ended.push(Ended {
                pid: pid.as_raw_pid(),
                code: status.exit_status(),
                signal: status.terminating_signal(),
            }),
            Ok(None) => return (ended, false),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return (ended, true),
        }
    }
}

/// Sends SIGKILL to every process below the shim, and adds them to `killed`.
pub(super) fn kill_all(killed: &mut BTreeSet<i32>) {
    for member in members() {
        if send(member, Signal::KILL, |_| true) {
            killed.insert(member.pid);
        }
    }
}

/// Ends what a start that failed has left: normally nothing, at worst a child that just begins.
pub(super) fn end_quickly() {
    for _ in 0..END_ROUNDS_MAX {
        kill_all(&mut BTreeSet::new());
        if collect().1 {
            return;
        }
        std::thread::sleep(STOP_ROUND);
    }
}

/// Stops every process below the shim. Parents first, and until nobody is left who could fork.
///
/// A parent inside vfork(2) cannot stop before its child has executed something, and a child that
/// was stopped before that never would: children of a parent that cannot be interrupted come later.
pub(super) fn stop_all() {
    for round in 0..STOP_ROUNDS_MAX {
        let mut running = false;
        let mut forking = BTreeSet::new();
        for member in members() {
            if ProcStat::of(member.pid).is_some_and(|stat| stat.uninterruptible()) {
                forking.insert(member.pid);
            }
            if round < STOP_ROUNDS_MAX / 2 && forking.contains(&member.parent) {
                running = true;
            } else {
                running |= send(member, Signal::STOP, |stat| !stat.stopped());
            }
        }
        if !running {
            return;
        }
        std::thread::sleep(STOP_ROUND);
    }
}

/// Continues every process below the shim, children first.
pub(super) fn continue_all() {
    for member in members().into_iter().rev() {
        send(member, Signal::CONT, |_| true);
    }
}

/// Signals a process if it still is that member of the tree, has not ended, and `wanted` holds.
fn send(member: Member, signal: Signal, wanted: impl Fn(&ProcStat) -> bool) -> bool {
    let Ok(pidfd) = open_pidfd(member.pid) else { return false };
    let own = rustix::process::getpid().as_raw_pid();
    let Some(stat) = ProcStat::of(member.pid) else { return false };
    // Its parent may have ended since: then it is the shim's child.
    let in_tree = stat.parent == member.parent || stat.parent == own;
    if !in_tree || stat.ended() || !wanted(&stat) {
        return false;
    }
    pidfd_send_signal(pidfd, signal).is_ok()
}

/// Every process below the shim, parents before their children.
fn members() -> Vec<Member> {
    let own = rustix::process::getpid().as_raw_pid();
    let by_parent = if children_of(own).is_some() { None } else { Some(all_by_parent()) };
    let children = |parent: i32| match &by_parent {
        None => children_of(parent).unwrap_or_default(),
        Some(all) => all.get(&parent).cloned().unwrap_or_default(),
    };
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([own]);
    let mut parents = vec![own];
    while let Some(parent) = parents.pop() {
        for pid in children(parent) {
            if seen.insert(pid) {
                found.push(Member { pid, parent });
                parents.push(pid);
            }
        }
    }
    found
}

/// The children of all threads of a process; `None` where the process is gone or the kernel does
/// not tell (CONFIG_PROC_CHILDREN).
fn children_of(pid: i32) -> Option<Vec<i32>> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let Ok(task) = task else { continue };
        match fs::read_to_string(task.path().join("children")) {
            Ok(text) => {
                children.extend(text.split_ascii_whitespace().filter_map(|p| p.parse::<i32>().ok()))
            }
            // A thread that has ended in between; the first one exists as long as the process.
            Err(_)
                if children.is_empty() && task.file_name().to_str() == Some(&pid.to_string()) =>
            {
                return None;
            }
            Err(_) => {}
        }
    }
    Some(children)
}

/// Every process of the machine by its parent, for kernels that do not list children.
fn all_by_parent() -> BTreeMap<i32, Vec<i32>> {
    let mut all = BTreeMap::<i32, Vec<i32>>::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for (pid, stat) in pids.filter_map(|pid| Some((pid, ProcStat::of(pid)?))) {
        all.entry(stat.parent).or_default().push(pid);
    }
    all
}
