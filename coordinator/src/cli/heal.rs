//! `heal`: ends faults, and judges what they did where that is asked for.

use std::{collections::BTreeMap, time::Duration};

use clap_complete::ArgValueCandidates;
use faultbed_common::{
    edit::Edit,
    name::FaultName,
    status::{FaultState, FaultStatus, Status, Verdict},
};

use crate::cli::{
    Session,
    change::{self, ChangeArgs},
    completion,
    failure::{Exit, Failure, Outcome},
    fault::parse_name,
    output, status,
    status::words,
    wait::{self, Goal, follow},
};

/// How long the last evidence is waited for where nobody said how long.
const EVIDENCE_MAX: Duration = Duration::from_secs(15);

/// Arguments of `heal`.
#[derive(Debug, clap::Args)]
pub struct HealArgs {
    /// Which; all of your own with `--all`
    #[arg(value_name = "FAULT", add = ArgValueCandidates::new(completion::faults))]
    faults: Vec<String>,
    /// Every fault that is yours; with `--everyone` every fault
    #[arg(long, conflicts_with = "faults")]
    all: bool,
    /// Exit 1 unless traffic met every fault and it acted
    #[arg(long, value_parser = ["confirmed"], value_name = "confirmed")]
    require: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs `heal`.
///
/// # Errors
/// A fault is unknown, one that was required to act did not, or as [`change::perform`].
pub async fn heal(session: &Session, args: &HealArgs) -> Outcome {
    let client = session.client().await?;
    let names = args.faults.iter().map(|n| parse_name(n)).collect::<Result<Vec<_>, _>>()?;
    let before = client.faults().await?;
    let known: Vec<&str> = before.faults.iter().map(|fault| fault.name.as_str()).collect();
    if names.is_empty() && !args.all {
        return Err(which(&before));
    }
    if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(status::unknown("fault", name.as_str(), &known));
    }
    let request = args.change.request(Edit::Heal { faults: names.clone() }, BTreeMap::new());
    let outcome = change::perform(&client, request, &args.change).await?;
    if args.require.is_none() || args.change.plan {
        return Ok(outcome);
    }
    let checked = if names.is_empty() { healed(&before, &client.faults().await?) } else { names };
    if checked.is_empty() {
        return Err(Failure::no("not confirmed: no fault of yours was in force")
            .next(client.context.typed("status")));
    }
    // The last counts, and the canary's last word, come after the end.
    let limit = args.change.limit().unwrap_or(EVIDENCE_MAX);
    let goals = checked.iter().cloned().map(Goal::Judged).collect();
    let after = follow::until(&client, goals, limit).await?.status;
    let unmet: Vec<String> =
        checked.iter().filter_map(|name| wait::fault(&after, name)).filter_map(unmet).collect();
    if unmet.is_empty() {
        output::say(format!("confirmed: {}", wait::list(&checked)));
        return Ok(Exit::DONE);
    }
    let first = checked.iter().find(|name| !is_confirmed(&after, name)).unwrap_or(&checked[0]);
    Err(Failure::no(format!("not confirmed: {}", unmet.join("; ")))
        .next(client.context.typed(&format!("show {first}"))))
}

/// The refusal where nothing was named.
fn which(now: &Status) -> Failure {
    let open: Vec<&FaultName> =
        now.faults.iter().filter(|fault| is_open(fault)).map(|fault| &fault.name).collect();
    let failure = Failure::refused(match open.as_slice() {
        [] => "say which fault to heal; none is in force now".to_owned(),
        open => format!("say which fault to heal: {}, or all of them", wait::list(open)),
    });
    match open.first() {
        Some(first) => failure.next(format!("faultbed heal {first}")).next("faultbed heal --all"),
        None => failure.next("faultbed status"),
    }
}

fn is_open(fault: &FaultStatus) -> bool {
    matches!(fault.state, FaultState::Active | FaultState::Pending)
}

/// The faults that were in force and are so no longer: those of others may have stayed.
fn healed(before: &Status, after: &Status) -> Vec<FaultName> {
    let was_in_force = before.faults.iter().filter(|fault| fault.state == FaultState::Active);
    was_in_force
        .filter(|fault| wait::fault(after, &fault.name).is_none_or(|fault| !is_open(fault)))
        .map(|fault| fault.name.clone())
        .collect()
}

fn is_confirmed(status: &Status, name: &FaultName) -> bool {
    wait::fault(status, name).is_some_and(|fault| fault.evidence.verdict == Verdict::Confirmed)
}

/// Why a fault is not confirmed: `split is quiet (it met nothing that it could act on)`.
fn unmet(fault: &FaultStatus) -> Option<String> {
    let name = &fault.name;
    match fault.evidence.verdict {
        Verdict::Confirmed => None,
        Verdict::Quiet if fault.evidence.total.connections > 0 => Some(format!(
            "{name} is quiet: {} connections met it, and it had nothing to do",
            fault.evidence.total.connections
        )),
        Verdict::Quiet => Some(format!("{name} is quiet: it met nothing that it could act on")),
        Verdict::Mismatch => Some(format!("{name} is a {}", words::mismatch(fault))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing;

    fn with(verdict: Verdict) -> FaultStatus {
        let mut fault = testing::split();
        fault.evidence.verdict = verdict;
        fault
    }

    #[test]
    fn what_was_not_confirmed_says_why() {
        assert_eq!(unmet(&with(Verdict::Confirmed)), None);
        let mut quiet = with(Verdict::Quiet);
        assert!(unmet(&quiet).unwrap().contains("2 connections met it"));
        quiet.evidence.total.connections = 0;
        assert_eq!(unmet(&quiet).unwrap(), "split is quiet: it met nothing that it could act on");
        let mut bad = with(Verdict::Mismatch);
        bad.evidence.why = Some("7 bytes crossed kv-1>kv-2 while it was cut".into());
        assert_eq!(
            unmet(&bad).unwrap(),
            "split is a mismatch: 7 bytes crossed kv-1>kv-2 while it was cut"
        );
    }

    #[test]
    fn heal_without_arguments_names_what_can_be_healed() {
        let mut status = testing::three_nodes();
        assert!(which(&status).to_string().contains("none is in force"));
        status.faults.push(testing::split());
        let text = format!("{:?}", which(&status));
        assert!(text.contains("heal split") && text.contains("heal --all"), "{text}");
    }

    #[test]
    fn of_all_faults_only_those_that_ended_are_judged() {
        let mut before = testing::three_nodes();
        let other = FaultStatus { name: "other".parse().unwrap(), ..testing::split() };
        before.faults = vec![testing::split(), other];
        let mut after = before.clone();
        after.faults[0].state = FaultState::Healed;
        assert_eq!(healed(&before, &after), ["split".parse().unwrap()]);
    }
}
