//! Verbs on nodes: start, stop, restart, kill, pause, resume, wipe, set, upgrade.

pub mod rolling;
pub mod upgrade;

use std::collections::{BTreeMap, BTreeSet};

use clap_complete::ArgValueCandidates;
use faultbed_common::{
    duration::Span,
    edit::{Edit, NodeVerb},
    fault::{FOR_DEFAULT, FaultSpec, Lasts, Targets},
    name::{FaultName, NodeName},
    status::{FaultState, FaultStatus},
    target::{self, Reports},
};

use crate::cli::{
    Session,
    change::{self, ChangeArgs},
    completion,
    failure::{Exit, Failure, Outcome},
    fault::NameArgs,
    output::{self, Format},
    paths::{self, Hosts},
    status::words,
    wait::{Goal, follow, met::met},
};

/// SIGKILL, what `kill` sends where nothing is said.
const SIGKILL: i32 = 9;

/// Targets and the options of a change.
#[derive(Debug, clap::Args)]
pub struct VerbArgs {
    /// `kv-1`, `kv`, `db/tikv`, `leader:kv`, `host:h1`, `kv-*`; several with commas or spaces
    #[arg(required = true, value_name = "TARGET", add = ArgValueCandidates::new(completion::targets))]
    pub targets: Vec<String>,
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// Arguments of `kill`.
#[derive(Debug, clap::Args)]
pub struct KillArgs {
    #[command(flatten)]
    verb: VerbArgs,
    /// The signal, by name or number
    #[arg(long, default_value = "KILL", value_parser = words::parse_signal)]
    signal: i32,
    /// Keep it down for this long, as a fault that ends by itself
    #[arg(long = "for", allow_hyphen_values = true, value_name = "DURATION", conflicts_with_all = ["respawn", "signal"])]
    lasts: Option<Lasts>,
    /// Start it again at once
    #[arg(long)]
    respawn: bool,
    #[command(flatten)]
    name: NameArgs,
}

/// Arguments of `pause`.
#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    #[command(flatten)]
    verb: VerbArgs,
    /// How long, or `none` for until `resume` [default: 10m]
    #[arg(long = "for", allow_hyphen_values = true, value_name = "DURATION")]
    lasts: Option<Lasts>,
    #[command(flatten)]
    name: NameArgs,
}

/// Arguments of `set`.
#[derive(Debug, clap::Args)]
pub struct SetArgs {
    /// `kv-2`, `db/tikv` or `kv`
    #[arg(value_name = "TARGET", add = ArgValueCandidates::new(completion::targets))]
    target: String,
    /// `path=…`, `config=FILE`, `args=…`, `env.NAME=…`, `on_crash=stay|restart`, `lease=24h`, `count=N`
    #[arg(value_name = "FIELD=VALUE", add = ArgValueCandidates::new(completion::fields))]
    assignment: String,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Splits `a,b c` into its targets.
#[must_use]
pub fn split(targets: &[String]) -> Vec<String> {
    targets.iter().flat_map(|text| Targets::split(text).0).filter(|t| !t.is_empty()).collect()
}

/// Runs `start`, `stop`, `restart` and `wipe`.
///
/// # Errors
/// As [`change::perform`].
pub async fn verb(session: &Session, args: &VerbArgs, verb: NodeVerb) -> Outcome {
    let client = session.client().await?;
    let edit = Edit::Node { targets: split(&args.targets), verb };
    let request = args.change.request(edit, BTreeMap::new());
    change::perform(&client, request, &args.change).await
}

/// Runs `kill`: state, not a message, so the node stays down until `start` unless told otherwise.
///
/// # Errors
/// As [`change::perform`].
pub async fn kill(session: &Session, args: &KillArgs) -> Outcome {
    if let Some(lasts) = args.lasts {
        let spec = FaultSpec {
            on: Some(Targets(split(&args.verb.targets))),
            kill: true,
            lasts: Some(lasts),
            ..FaultSpec::default()
        };
        return inject(session, spec, &args.name, &args.verb.change).await;
    }
    let kill = NodeVerb::Kill { signal: args.signal, respawn: args.respawn };
    let outcome = verb(session, &args.verb, kill).await?;
    if !args.respawn && args.signal == SIGKILL && !args.verb.change.plan {
        output::say("killed nodes stay down until `faultbed start`, or use --respawn or --for 30s");
    }
    Ok(outcome)
}

/// Runs `pause`: a fault, so that it always ends.
///
/// # Errors
/// As [`change::perform`].
pub async fn pause(session: &Session, args: &PauseArgs) -> Outcome {
    let spec = FaultSpec {
        on: Some(Targets(split(&args.verb.targets))),
        pause: true,
        lasts: Some(args.lasts.unwrap_or(Lasts::For(Span(FOR_DEFAULT)))),
        ..FaultSpec::default()
    };
    inject(session, spec, &args.name, &args.verb.change).await
}

async fn inject(
    session: &Session,
    spec: FaultSpec,
    name: &NameArgs,
    change: &ChangeArgs,
) -> Outcome {
    let client = session.client().await?;
    let edit = Edit::Inject { name: name.parsed()?, spec: Box::new(spec), replace: false };
    let request = change.request(edit, BTreeMap::new());
    change::perform(&client, request, change).await
}

/// Runs `resume`: heals the pauses that hold the targets.
///
/// # Errors
/// Nothing holds them, or as [`change::perform`].
pub async fn resume(session: &Session, args: &VerbArgs) -> Outcome {
    let client = session.client().await?;
    let (lab, status) = tokio::try_join!(client.lab(), client.status())?;
    // Reports are not ours to have: `leader:` of a paused node would mean nothing anyway.
    let nodes = target::nodes(&lab, &Reports::new(), &split(&args.targets))
        .map_err(|e| Failure::refused(e.to_string()).next(client.context.typed("status")))?;
    let pauses: Vec<&FaultStatus> = status
        .faults
        .iter()
        .filter(|fault| is_pause(fault) && fault.resolved.nodes.iter().any(|n| nodes.contains(n)))
        .collect();
    if pauses.is_empty() {
        return Err(Failure::no(format!("no pause holds {}", crate::cli::wait::list(&nodes)))
            .next(client.context.typed("status")));
    }
    let others: BTreeSet<&NodeName> = pauses
        .iter()
        .flat_map(|fault| &fault.resolved.nodes)
        .filter(|node| !nodes.contains(node))
        .collect();
    if !others.is_empty() {
        let others: Vec<&NodeName> = others.into_iter().collect();
        output::say(format!("note: {} resumes too", crate::cli::wait::list(&others)));
    }
    let faults: Vec<FaultName> = pauses.iter().map(|fault| fault.name.clone()).collect();
    let request = args.change.request(Edit::Heal { faults }, BTreeMap::new());
    let outcome = change::perform(&client, request, &args.change).await?;
    let Some(limit) = args.change.limit() else { return Ok(outcome) };
    // The fault is over when its host says so; the nodes go on a moment later.
    let goals: Vec<Goal> = nodes.iter().cloned().map(Goal::Goes).collect();
    let waited = follow::until(&client, goals.clone(), limit).await?;
    if args.change.output == Format::Table {
        for goal in &goals {
            output::data(met(&waited.status, goal))?;
        }
    }
    Ok(outcome)
}

fn is_pause(fault: &FaultStatus) -> bool {
    matches!(fault.state, FaultState::Active | FaultState::Pending) && fault.summary == "pause"
}

/// Runs `set`.
///
/// # Errors
/// The assignment makes no sense, a path is no program, or as [`change::perform`].
pub async fn set(session: &Session, args: &SetArgs) -> Outcome {
    let (field, value) = assignment(&args.assignment, session.hosts())?;
    let client = session.client().await?;
    let edit = Edit::Set { targets: Targets::split(&args.target).0, field, value };
    let request = args.change.request(edit, BTreeMap::new());
    change::perform(&client, request, &args.change).await
}

/// Splits `FIELD=VALUE`; paths become absolute and are checked, files become their content.
fn assignment(text: &str, hosts: Hosts) -> Result<(String, String), Failure> {
    let (field, value) = text.split_once('=').ok_or_else(|| {
        Failure::refused(format!("{text:?} is no assignment; write FIELD=VALUE"))
            .next("faultbed set kv-2 path=./bin/etcd-next")
    })?;
    let base = paths::current_dir()?;
    let value = match field {
        "path" => paths::program(value, &base, hosts).map_err(|e| e.failure())?,
        "config" => paths::config(value, &base).map_err(|e| e.failure())?,
        _ => value.to_owned(),
    };
    Ok((field.to_owned(), value))
}

/// Stands for success in callers that go on.
pub(crate) fn is_done(outcome: &Outcome) -> bool {
    matches!(outcome, Ok(exit) if *exit == Exit::DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_need_no_quoting() {
        let words: Vec<String> = ["kv-1,kv-2", "kv-3"].map(str::to_owned).to_vec();
        assert_eq!(split(&words), ["kv-1", "kv-2", "kv-3"]);
    }

    #[test]
    fn a_path_that_is_no_program_is_refused_before_anything_changes() {
        let failure = assignment("path=./no-such-program", Hosts::Here).unwrap_err();
        assert_eq!(failure.exit, Exit::REFUSED);
        assert!(failure.to_string().contains("no-such-program"), "{failure}");
        assert_eq!(assignment("count=5", Hosts::Here).unwrap(), ("count".into(), "5".into()));
        assert!(assignment("count", Hosts::Here).unwrap_err().to_string().contains("FIELD=VALUE"));
    }
}
