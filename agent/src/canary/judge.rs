//! Judges what a canary saw against what its fault says. Pure.

use faultbed_common::{
    effect::Ratio,
    link::Link,
    proxy_spec::{Delay, LinkEffect},
    report::{CanaryReport, CanaryVerdict},
};

use super::{Canary, HEALED_MAX, keeps_out};

/// What a fault lets a canary see while it is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// No answer.
    Silence,
    /// No answer sooner than after so many microseconds.
    Late(u64),
    /// Nothing that could not be without the fault.
    Anything,
}

/// What the fault of a canary lets it see.
pub(super) fn expect(canary: &Canary, link: &Link) -> Expect {
    let fault = &canary.fault;
    // By chance the canary's connections may be spared.
    if fault.probability.is_some_and(|share| share < Ratio::ONE) {
        return Expect::Anything;
    }
    let LinkEffect { cut, hold, delay, dials, accept_delay_us, .. } = &fault.effect;
    if dials.is_some() || keeps_out(fault, canary.grade) {
        return Expect::Silence;
    }
    // The proxy itself completes a connection, so one that only opens tells nothing of bytes.
    if !canary.question.is_http {
        return Expect::Anything;
    }
    if cut.is_some() || hold.is_some() {
        return Expect::Silence;
    }
    // Question and answer are both late where both ways are.
    let ways = 1 + u64::from(fault.links.contains(&link.reversed()));
    let late = delay.map_or(0, |delay| least(&delay).saturating_mul(ways));
    match late.saturating_add(*accept_delay_us) {
        0 => Expect::Anything,
        late => Expect::Late(late),
    }
}

/// The least that a delay makes of a chunk; a normal part is taken to be within four deviations.
fn least(delay: &Delay) -> u64 {
    let Delay { base_us, jitter_us, normal_us, pareto_us: _ } = delay;
    base_us.saturating_sub(*jitter_us).saturating_sub(normal_us.saturating_mul(4))
}

/// The verdict, and why where it is not plain agreement. The words hold no counts, so that they
/// change only when the verdict does.
pub(super) fn judge(
    seen: &CanaryReport,
    expect: Expect,
    excuse: Option<&str>,
    link: &Link,
) -> (CanaryVerdict, Option<String>) {
    let Link { from, to } = link;
    let contradicts = |why: String| (CanaryVerdict::Contradicts, Some(why));
    let unproven = |why: &str| (CanaryVerdict::Unproven, Some(why.to_owned()));
    match (expect, seen.fastest_us) {
        (Expect::Silence, Some(_)) => {
            return contradicts(format!("{to} answered {from} while the fault was in force"));
        }
        (Expect::Late(least), Some(us)) if us < least => {
            return contradicts(format!(
                "{to} answered {from} in {}, and the fault makes it {} at least",
                millis(us),
                millis(least)
            ));
        }
        _ => {}
    }
    let is_silent_after = seen.is_over && seen.healed_after_ms.is_none();
    if is_silent_after && seen.tries > 0 {
        match (excuse, seen.before) {
            (Some(excuse), _) => return unproven(&format!("no answer after the end: {excuse}")),
            (None, Some(true)) => {
                let seconds = HEALED_MAX.as_secs();
                return contradicts(format!(
                    "{to} has not answered {from} within {seconds} s after the end"
                ));
            }
            (None, _) => return unproven("it never answered"),
        }
    }
    match expect {
        Expect::Anything => unproven("what this fault does, a canary cannot tell"),
        Expect::Late(_) if seen.answers > 0 => (CanaryVerdict::Agrees, None),
        Expect::Silence if seen.tries == 0 => (CanaryVerdict::Unproven, None),
        // Silence proves something where there was an answer without the fault.
        Expect::Silence if seen.before == Some(true) || seen.healed_after_ms.is_some() => {
            (CanaryVerdict::Agrees, None)
        }
        Expect::Silence if seen.before == Some(false) => {
            unproven("it did not answer before either")
        }
        Expect::Silence | Expect::Late(_) => (CanaryVerdict::Unproven, None),
    }
}

fn millis(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}
