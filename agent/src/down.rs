//! Takes everything of one host down without a coordinator, and says what is gone and what is kept.
//!
//! It is the same loop with other orders: every node stopped. The ledger stays as it was, so the
//! next agent brings back what was wanted.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use faultbed_common::name::NodeName;
use serde::Serialize;

use crate::{
    agent::Lock,
    args::DownArgs,
    clock,
    ledger::{Accepted, LedgerError},
    node,
    reconcile::{Asked, Hands as _, Run, Why, real::RealHands},
};

/// An agent that was asked to end has ended by then.
const AGENT_END_MAX: Duration = Duration::from_secs(10);

/// After SIGKILL to its tree a node is gone by then.
const KILL_MAX: Duration = Duration::from_secs(10);

/// How often it is looked at what is left.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Nodes are asked to end one after another, this far apart at most: a member that hands over its
/// leadership before it ends must find somebody to hand it to, else it waits for seconds.
const STAGGER: Duration = Duration::from_millis(250);

/// The last node is asked no later than this after the first.
const STAGGER_ALL: Duration = Duration::from_secs(2);

/// How a node is stopped whose orders are lost.
const STOP_SIGNAL_DEFAULT: i32 = 15;

/// How long such a node has.
const STOP_GRACE_DEFAULT: Duration = Duration::from_secs(10);

/// What is told on standard output, as one line.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    gone: Gone,
    kept: Vec<PathBuf>,
    left: Vec<String>,
}

/// What was there and is not any more.
#[derive(Debug, Default, Serialize)]
struct Gone {
    processes: Vec<String>,
    listeners: Vec<String>,
    directories: Vec<PathBuf>,
}

/// One node that is being stopped.
#[derive(Debug)]
struct Stopping {
    node: NodeName,
    name: String,
    grace: Duration,
    asked_at: Option<Instant>,
    killed_at: Option<Instant>,
    doubted_since: Option<Instant>,
    is_gone: bool,
}

/// Takes the host down.
///
/// # Errors
/// Its directory cannot be read, or its agent does not end.
pub fn run(args: &DownArgs) -> anyhow::Result<ExitCode> {
    let dir = std::path::absolute(&args.dir)?;
    let mut outcome = Outcome::default();
    if !dir.exists() {
        return tell(&outcome);
    }
    let _lock = end_agent(&dir, &mut outcome)?;
    let accepted = read_ledger(&dir);
    let hands = RealHands::for_down(&dir, accepted.as_ref(), args.runtime.as_deref());
    stop_nodes(&hands, accepted.as_ref(), &mut outcome)?;
    stop_proxy(&hands, accepted.as_ref(), &mut outcome);
    remove_leftovers(&dir, &mut outcome)?;
    put_away(&dir, args.wipe, &mut outcome)?;
    tell(&outcome)
}

fn tell(outcome: &Outcome) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, outcome)?;
    writeln!(out)?;
    Ok(if outcome.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ends the agent, and takes its place so that no other begins meanwhile.
fn end_agent(dir: &Path, outcome: &mut Outcome) -> anyhow::Result<Lock> {
    let path = dir.join("agent.pid");
    let began = Instant::now();
    let mut asked = None;
    loop {
        match Lock::try_take(&path).with_context(|| format!("lock {}", path.display()))? {
            Ok(lock) => {
                outcome.gone.processes.extend(asked.map(|pid| format!("agent pid {pid}")));
                return Ok(lock);
            }
            Err(pid) if asked.is_none() => {
                // Its lock is held, so this pid is the agent's and nobody else's.
                let process = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
                if let Some(process) = process {
                    rustix::process::kill_process(process, rustix::process::Signal::TERM)
                        .with_context(|| format!("end the agent, pid {pid}"))?;
                    asked = Some(pid);
                }
            }
            Err(pid) if began.elapsed() > AGENT_END_MAX => {
                anyhow::bail!("the agent, pid {pid}, does not end; `kill -9 {pid}` and try again")
            }
            Err(_) => {}
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What the agent was told last. A damaged ledger must not keep anything alive.
fn read_ledger(dir: &Path) -> Option<Accepted> {
    match crate::ledger::read_newest(dir) {
        Ok(accepted) => accepted,
        Err(error @ (LedgerError::Disk { .. } | LedgerError::Unreadable { .. })) => {
            tracing::warn!("{error}; nodes are stopped by SIGTERM");
            None
        }
    }
}

fn stop_nodes(
    hands: &RealHands,
    accepted: Option<&Accepted>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let nodes = hands.nodes().context("list nodes")?;
    let mut stopping: Vec<Stopping> = nodes
        .into_iter()
        .map(|node| {
            let spec = accepted.and_then(|accepted| {
                let leaving = accepted.retiring.get(&node).map(|leaving| &leaving.spec);
                accepted.spec.nodes.get(&node).or(leaving)
            });
            let grace = spec.map_or(STOP_GRACE_DEFAULT, |spec| spec.stop.grace.0);
            let name = node.to_string();
            Stopping {
                node,
                name,
                grace,
                asked_at: None,
                killed_at: None,
                doubted_since: None,
                is_gone: false,
            }
        })
        .collect();
    let count = u32::try_from(stopping.len().max(1)).unwrap_or(u32::MAX);
    let stagger = STAGGER.min(STAGGER_ALL / count);
    let mut asked_last: Option<Instant> = None;
    loop {
        for one in &mut stopping {
            // What was asked before and is gone needs no more time; `retain` below has removed it.
            let waits = asked_last.is_some_and(|asked| asked.elapsed() < stagger);
            if one.asked_at.is_none() && waits {
                continue;
            }
            let spec = accepted.and_then(|accepted| accepted.spec.nodes.get(&one.node));
            let signal = spec.map_or(STOP_SIGNAL_DEFAULT, |spec| spec.stop.signal);
            let was_asked = one.asked_at.is_some();
            advance(hands, one, signal, outcome);
            if !was_asked {
                asked_last = one.asked_at.or(asked_last);
            }
        }
        stopping.retain(|one| !one.is_gone);
        if stopping.iter().all(|one| one.asked_at.is_none()) {
            asked_last = None;
        }
        if stopping.is_empty() {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// One look at a node on its way down.
fn advance(hands: &RealHands, one: &mut Stopping, signal: i32, outcome: &mut Outcome) {
    let running = match hands.inspect(&one.node) {
        Run::None | Run::Ended(_) => {
            if one.asked_at.is_some() {
                outcome.gone.processes.push(one.name.clone());
            }
            one.is_gone = true;
            return;
        }
        Run::Unknown { why } => {
            // It may be ending just now; what stays unknown is left to be named.
            let since = *one.doubted_since.get_or_insert_with(Instant::now);
            if since.elapsed() > KILL_MAX {
                outcome.left.push(format!("{}: {why}", one.node));
                one.is_gone = true;
            }
            return;
        }
        Run::Running(running) => running,
    };
    one.doubted_since = None;
    one.name = format!("{} pid {}", one.node, running.pid);
    let incarnation = running.incarnation;
    match (one.asked_at, one.killed_at) {
        (None, _) => {
            one.asked_at = Some(Instant::now());
            // A node that stands still cannot hear a request.
            if running.paused
                && let Err(why) = hands.set_orders(&one.node, incarnation, &Default::default())
            {
                tracing::warn!(node = %one.node, %why, "resume");
            }
            let asked = Asked { why: Why::Stop, signal, at: clock::now() };
            if let Err(why) = hands.signal(&one.node, incarnation, &asked) {
                tracing::warn!(node = %one.node, %why, "stop");
            }
        }
        (Some(asked_at), None) if asked_at.elapsed() > one.grace => {
            one.killed_at = Some(Instant::now());
            if let Err(why) = hands.kill_tree(&one.node, incarnation) {
                tracing::warn!(node = %one.node, %why, "kill");
            }
        }
        (Some(_), Some(killed_at)) if killed_at.elapsed() > KILL_MAX => {
            outcome.left.push(format!("{} pid {} does not die", one.node, running.pid));
            one.is_gone = true;
        }
        (Some(_), _) => {}
    }
}

fn stop_proxy(hands: &RealHands, accepted: Option<&Accepted>, outcome: &mut Outcome) {
    let Some(pid) = hands.find_proxy() else { return };
    match hands.stop_proxy() {
        Ok(()) => {
            outcome.gone.processes.push(format!("proxy pid {pid}"));
            let listeners = accepted.iter().flat_map(|accepted| &accepted.spec.proxy.listeners);
            outcome.gone.listeners.extend(listeners.map(|listener| listener.listen.to_string()));
        }
        Err(why) => outcome.left.push(format!("proxy pid {pid}: {why}")),
    }
}

/// Ends what hangs on no shim any more: a shim that was killed may have left something.
fn remove_leftovers(dir: &Path, outcome: &mut Outcome) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut ended: Vec<String> = Vec::new();
    loop {
        let left = node::leftovers(dir).context("look for leftovers")?;
        if left.is_empty() {
            outcome.gone.processes.append(&mut ended);
            return Ok(());
        }
        for leftover in &left {
            let name = format!("{} pid {}", leftover.tag, leftover.process.pid);
            if began.elapsed() > KILL_MAX {
                outcome.left.push(format!("{name} ({})", leftover.command));
            } else if let Err(error) = node::signal::send(&leftover.process, libc::SIGKILL) {
                tracing::debug!(%error, %name, "end a leftover");
            }
            if !ended.contains(&name) {
                ended.push(name);
            }
        }
        if !outcome.left.is_empty() {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn put_away(dir: &Path, wipe: bool, outcome: &mut Outcome) -> anyhow::Result<()> {
    // What lives must keep its files: somebody will want to look at it.
    let nodes = dir.join("nodes");
    if wipe && outcome.left.is_empty() {
        fs::remove_dir_all(dir).with_context(|| format!("delete {}", dir.display()))?;
        outcome.gone.directories.push(dir.to_owned());
    } else if nodes.exists() {
        outcome.kept.push(nodes);
    }
    Ok(())
}
