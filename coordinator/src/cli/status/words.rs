//! States, exits, ages and hashes in the words and tones that people see. Pure.

use faultbed_common::{
    report::{BinaryReport, NodeState},
    status::{ClusterState, FaultState, FaultStatus, HostState, LeaseStatus, NodeStatus, Verdict},
};

use super::proof;
use crate::cli::table::Tone;

/// Hexadecimal digits of a hash that people are shown.
const HASH_DIGITS: usize = 8;

/// Every state of a node, as typed and shown.
pub const STATES: [&str; 11] = [
    "absent",
    "preparing",
    "starting",
    "ready",
    "unready",
    "paused",
    "stopping",
    "stopped",
    "killed",
    "crashed",
    "unknown",
];

/// A node's state as a word.
#[must_use]
pub fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Absent => "absent",
        NodeState::Preparing => "preparing",
        NodeState::Starting => "starting",
        NodeState::Ready => "ready",
        NodeState::Unready => "unready",
        NodeState::Paused => "paused",
        NodeState::Stopping => "stopping",
        NodeState::Stopped => "stopped",
        NodeState::Killed => "killed",
        NodeState::Crashed => "crashed",
        NodeState::Unknown => "unknown",
    }
}

/// Its tone: down on purpose, killed and crashed are three different things.
#[must_use]
pub fn state_tone(state: NodeState) -> Tone {
    match state {
        NodeState::Ready => Tone::Good,
        NodeState::Preparing | NodeState::Starting | NodeState::Stopping | NodeState::Paused => {
            Tone::Calm
        }
        NodeState::Unready | NodeState::Killed | NodeState::Unknown => Tone::Warn,
        NodeState::Crashed => Tone::Bad,
        NodeState::Absent | NodeState::Stopped => Tone::Faint,
    }
}

/// The state with what ended it: `crashed (exit 2)`, `killed (SIGKILL)`.
#[must_use]
pub fn state_and_exit(node: &NodeStatus) -> String {
    let word = state(node.observed);
    match node.observed {
        NodeState::Crashed | NodeState::Killed => match ending(node) {
            Some(ending) => format!("{word} ({ending})"),
            None => word.to_owned(),
        },
        NodeState::Absent
        | NodeState::Preparing
        | NodeState::Starting
        | NodeState::Ready
        | NodeState::Unready
        | NodeState::Paused
        | NodeState::Stopping
        | NodeState::Stopped
        | NodeState::Unknown => word.to_owned(),
    }
}

/// What ended the last incarnation: `exit 2`, `SIGKILL`.
fn ending(node: &NodeStatus) -> Option<String> {
    let exit = node.exit.as_ref()?;
    match (exit.code, exit.signal) {
        (_, Some(number)) => Some(signal_name(number)),
        (Some(code), None) => Some(format!("exit {code}")),
        (None, None) => None,
    }
}

/// How a crashed node ended, as a sentence without its subject.
#[must_use]
pub fn exit(node: &NodeStatus) -> String {
    match ending(node) {
        Some(ending) => format!("crashed in run {}: {ending}", node.incarnation),
        None => format!("crashed in run {}", node.incarnation),
    }
}

/// `crashed: exit 2`, or `crashed 3 times, last: exit 2`.
#[must_use]
pub fn crashed(node: &NodeStatus, count: u32) -> String {
    let ending = ending(node);
    match (count, ending) {
        (..=1, Some(ending)) => format!("crashed: {ending}"),
        (..=1, None) => "crashed".to_owned(),
        (many, Some(ending)) => format!("crashed {many} times, last: {ending}"),
        (many, None) => format!("crashed {many} times"),
    }
}

/// Signals that people name, and their numbers on Linux.
pub const SIGNALS: [(&str, i32); 16] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("XCPU", 24),
];

/// `SIGKILL` for 9.
#[must_use]
pub fn signal_name(number: i32) -> String {
    SIGNALS
        .iter()
        .find(|(_, n)| *n == number)
        .map_or_else(|| format!("signal {number}"), |(name, _)| format!("SIG{name}"))
}

/// The number of `KILL`, `SIGKILL` or `9`.
///
/// # Errors
/// Names what is allowed.
pub fn parse_signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err("signals are numbered from 1 to 64".to_owned())
        };
    }
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS.iter().find(|(name, _)| *name == short).map(|(_, number)| *number).ok_or_else(|| {
        let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| *name).collect();
        format!("no such signal; known are {} and numbers", names.join(", "))
    })
}

/// A host's state.
#[must_use]
pub fn host(state: HostState) -> (&'static str, Tone) {
    match state {
        HostState::Up => ("up", Tone::Good),
        HostState::Down => ("down", Tone::Bad),
    }
}

/// A cluster's state.
#[must_use]
pub fn cluster(state: ClusterState) -> (&'static str, Tone) {
    match state {
        ClusterState::Starting => ("starting", Tone::Calm),
        ClusterState::Ready => ("ready", Tone::Good),
        ClusterState::Degraded => ("degraded", Tone::Warn),
        ClusterState::Stopped => ("stopped", Tone::Faint),
    }
}

/// What is left of a cluster's lease: ` (lease 11h59m)`, ` (lease ended)`, or nothing.
#[must_use]
pub fn lease(lease: Option<&LeaseStatus>) -> String {
    match lease {
        Some(lease) if lease.ended => " (lease ended)".to_owned(),
        Some(lease) => format!(" (lease {})", age(lease.remaining_ms)),
        None => String::new(),
    }
}

/// What is left of the lab's: ` · 59m left`, ` · its time is up`, or nothing.
#[must_use]
pub fn lab_lease(lease: Option<&LeaseStatus>) -> String {
    match lease {
        Some(lease) if lease.ended => " · its time is up".to_owned(),
        Some(lease) => format!(" · {} left", age(lease.remaining_ms)),
        None => String::new(),
    }
}

/// A fault's state: one that should act and does not is not simply active.
#[must_use]
pub fn fault(fault: &FaultStatus) -> (&'static str, Tone) {
    match fault.state {
        FaultState::Pending => ("pending", Tone::Calm),
        FaultState::Active if fault.in_force => ("active", Tone::Warn),
        // Some hosts have ended it already: each does so at its own deadline.
        FaultState::Active if fault.remaining_ms == Some(0) => ("ending", Tone::Calm),
        FaultState::Active => ("beginning", Tone::Calm),
        FaultState::Expired if fault.in_force => ("ending", Tone::Calm),
        FaultState::Healed if fault.in_force => ("healing", Tone::Calm),
        FaultState::Expired => ("expired", Tone::Faint),
        FaultState::Healed => ("healed", Tone::Faint),
    }
}

/// A fault's verdict and what it is drawn from: `confirmed: 12 dropped, 3 dials stopped`.
#[must_use]
pub fn evidence(fault: &FaultStatus) -> (String, Tone) {
    let (word, tone) = match fault.evidence.verdict {
        Verdict::Confirmed => ("confirmed", Tone::Good),
        Verdict::Quiet => ("quiet", Tone::Faint),
        Verdict::Mismatch => ("MISMATCH", Tone::Bad),
    };
    let mut parts = proof::in_short(&fault.evidence.total);
    parts.extend(proof::canaries_in_short(&fault.evidence));
    // What contradicts the fault is more than what agrees with it.
    parts.splice(0..0, fault.evidence.why.clone());
    let text =
        if parts.is_empty() { word.to_owned() } else { format!("{word}: {}", parts.join(", ")) };
    (text, tone)
}

/// What makes a fault a mismatch: `mismatch: 12 bytes crossed kv-1>kv-2 while it was cut`.
#[must_use]
pub fn mismatch(fault: &FaultStatus) -> String {
    match &fault.evidence.why {
        Some(why) => format!("mismatch: {why}"),
        None => "mismatch: traffic went around it".to_owned(),
    }
}

/// A duration in milliseconds as people read it: `850ms`, `12s`, `3m10s`, `2h5m`, `4d3h`.
#[must_use]
pub fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..=59 => format!("{seconds}s"),
        60..=3599 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// The first digits of a hash.
#[must_use]
pub fn hash(binary: &BinaryReport) -> &str {
    binary.sha256.get(..HASH_DIGITS).unwrap_or(&binary.sha256)
}

/// What to do about a node whose leave has not succeeded yet.
#[must_use]
pub fn stays(node: &NodeStatus) -> Option<String> {
    let NodeStatus { name, .. } = node;
    node.why.as_ref()?;
    Some(format!(
        "{name} has not left yet; `faultbed remove {name} --force` takes it away without its leave, \
         `faultbed start {name}` calls it back"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_word() {
        for word in STATES {
            let parsed: NodeState =
                serde_json::from_value(serde_json::Value::String(word.to_owned())).unwrap();
            assert_eq!(state(parsed), word);
        }
    }

    #[test]
    fn signals_are_named_in_any_usual_way() {
        for text in ["9", "KILL", "kill", "SIGKILL"] {
            assert_eq!(parse_signal(text), Ok(9), "{text}");
        }
        assert!(parse_signal("NOPE").unwrap_err().contains("KILL"));
        assert!(parse_signal("0").is_err() && parse_signal("65").is_err());
        assert_eq!(signal_name(15), "SIGTERM");
    }

    #[test]
    fn ages_are_short() {
        let ages: Vec<String> =
            [850, 12_300, 190_000, 7_500_000, 360_000_000].into_iter().map(age).collect();
        assert_eq!(ages, ["850ms", "12s", "3m10s", "2h05m", "4d04h"]);
    }
}
