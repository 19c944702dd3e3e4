//! Judges what is awaited of faults: in force, over, confirmed.

use std::time::Duration;

use faultbed_common::{
    name::{FaultName, HostName},
    nearest,
    status::{FaultState, FaultStatus, Status, Verdict},
};

use super::{Judgement, because, fault, is_over, list};
use crate::cli::status::words;

/// The last counts of a fault that is over arrive within this.
const LAST_COUNTS: Duration = Duration::from_secs(2);

/// Over everywhere, also where it was deleted meanwhile.
pub(super) fn ended(status: &Status, name: &FaultName) -> Judgement {
    let lingers = |hosts: &[HostName]| format!("fault {name} is still in force on {}", list(hosts));
    match (fault(status, name), status.forgotten.get(name)) {
        (None, None) => Judgement::Met(None),
        (None, Some(hosts)) => Judgement::NotYet(lingers(hosts)),
        (Some(fault), _) => {
            Judgement::met_if(is_over(fault), || match fault.lingers_on.as_slice() {
                [] => format!("fault {name} is {}", words::fault(fault).0),
                hosts => lingers(hosts),
            })
        }
    }
}

pub(super) fn in_force(fault: &FaultStatus) -> Judgement {
    match fault.state {
        FaultState::Active if fault.in_force => Judgement::Met(None),
        FaultState::Active | FaultState::Pending => Judgement::NotYet(format!(
            "fault {} is not in force yet{}",
            fault.name,
            because(fault.why.as_deref())
        )),
        FaultState::Expired => Judgement::Never(format!(
            "fault {} was over before all of its hosts had said that it is in force: \
             give it a longer `--for`",
            fault.name
        )),
        FaultState::Healed => Judgement::Never(format!("fault {} is over", fault.name)),
    }
}

pub(super) fn confirmed(fault: &FaultStatus) -> Judgement {
    match (fault.evidence.verdict, fault.state) {
        (Verdict::Confirmed, _) => Judgement::Met(None),
        (Verdict::Mismatch, _) => Judgement::Never(format!(
            "fault {} does not do what it says: {}",
            fault.name,
            words::mismatch(fault)
        )),
        (Verdict::Quiet, FaultState::Active | FaultState::Pending) => {
            Judgement::NotYet(format!("no traffic has met fault {} yet", fault.name))
        }
        (Verdict::Quiet, FaultState::Expired | FaultState::Healed) => Judgement::Never(format!(
            "fault {} ended and met nothing that it could act on",
            fault.name
        )),
    }
}

pub(super) fn judged(fault: &FaultStatus, waited: Duration) -> Judgement {
    let canaries = &fault.evidence.canary;
    if !is_over(fault) {
        Judgement::NotYet(format!("fault {} is {}", fault.name, words::fault(fault).0))
    } else if let Some((link, _)) = canaries.iter().find(|(_, canary)| !canary.is_over) {
        Judgement::NotYet(format!("the canary {link} has not answered since the heal"))
    } else if fault.evidence.verdict == Verdict::Quiet && waited < LAST_COUNTS {
        Judgement::NotYet(format!(
            "fault {} has met nothing to act on, as far as is known",
            fault.name
        ))
    } else {
        Judgement::Met(None)
    }
}

pub(super) fn with(
    status: &Status,
    name: &FaultName,
    judge: impl Fn(&FaultStatus) -> Judgement,
) -> Judgement {
    fault(status, name).map_or_else(|| Judgement::NotYet(none(status, name)), judge)
}

/// That there is no such fault; a mistyped name would be waited for all the same.
fn none(status: &Status, name: &FaultName) -> String {
    let known: Vec<&str> = status.faults.iter().map(|fault| fault.name.as_str()).collect();
    let near = nearest::did_you_mean(name.as_str(), &known);
    format!("there is no fault {name}{}", near.map_or_else(String::new, |near| format!("; {near}")))
}
