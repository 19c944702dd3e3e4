//! What faults did to links, in words: counts, delays, first and last hits, canaries. Pure.

use std::ops::Not;

use faultbed_common::{
    report::{CanaryReport, CanaryVerdict, LinkEvidence},
    status::Evidence,
};

/// The buckets of the histogram of added lateness.
const LATENESS: [&str; 5] = ["under 1 ms", "1–10 ms", "10–100 ms", "100 ms–1 s", "over 1 s"];

/// Units of bytes, each a thousand of the one before.
const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];

/// Bytes as people read them: `512 B`, `1.4 MB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    let mut unit = 0;
    let mut scale = 1_u64;
    while count / scale >= 1000 && unit + 1 < UNITS.len() {
        scale *= 1000;
        unit += 1;
    }
    let (whole, tenth) = (count / scale, count % scale * 10 / scale);
    match unit {
        0 => format!("{count} B"),
        _ => format!("{whole}.{tenth} {}", UNITS[unit]),
    }
}

/// `1 segment`, `12 segments`.
#[must_use]
pub fn counted(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// The counts of all links for a table: `12 dropped`, `3 dials stopped`.
#[must_use]
pub fn in_short(total: &LinkEvidence) -> Vec<String> {
    let dials = if total.attempts_refused == 1 { "dial stopped" } else { "dials stopped" };
    let slices = if total.slices == 1 { "slice" } else { "slices" };
    [
        (total.dropped_segments, false, "dropped"),
        (total.attempts_refused, false, dials),
        (total.held_bytes, true, "held"),
        (total.delayed_chunks, false, "delayed"),
        (total.delayed_accepts, false, "accepted late"),
        (total.lost_chunks, false, "lost"),
        (total.corrupted_bytes, true, "corrupted"),
        (total.paced_bytes, true, "paced"),
        (total.slices, false, slices),
        (total.resets, false, "reset"),
        (total.closes, false, "closed"),
        (total.leaked_bytes, true, "LEAKED"),
    ]
    .into_iter()
    .filter(|(count, ..)| *count > 0)
    .map(|(count, is_bytes, word)| {
        let amount = if is_bytes { bytes(count) } else { count.to_string() };
        format!("{amount} {word}")
    })
    .collect()
}

/// The counts of one link.
#[must_use]
pub fn of_link(evidence: &LinkEvidence) -> String {
    let LinkEvidence {
        connections,
        held_bytes,
        dropped_segments,
        delayed_chunks,
        delay_histogram: _,
        attempts_refused,
        delayed_accepts,
        lost_chunks,
        corrupted_bytes,
        paced_bytes,
        slices,
        resets,
        closes,
        leaked_bytes,
        first_hit_ms: _,
        last_hit_ms: _,
    } = evidence;
    let counts: Vec<String> = [
        (connections, Some("connection"), ""),
        (dropped_segments, Some("segment"), "dropped"),
        // Answered by a reset or by nothing: which, the effect says.
        (attempts_refused, Some("dial"), "stopped"),
        (held_bytes, None, "held"),
        (delayed_chunks, Some("chunk"), "delayed"),
        (delayed_accepts, Some("accept"), "delayed"),
        (lost_chunks, Some("chunk"), "lost and sent again"),
        (corrupted_bytes, None, "corrupted"),
        (paced_bytes, None, "paced"),
        (slices, Some("slice"), ""),
        (resets, Some("connection"), "reset"),
        (closes, Some("connection"), "closed"),
        (leaked_bytes, None, "LEAKED"),
    ]
    .into_iter()
    .filter(|(count, ..)| **count > 0)
    .map(|(count, thing, fate)| {
        let many = thing.map_or_else(|| bytes(*count), |thing| counted(*count, thing));
        format!("{many} {fate}").trim_end().to_owned()
    })
    .collect();
    if counts.is_empty() { "no traffic".to_owned() } else { counts.join(", ") }
}

/// How late chunks were made: `30 by 10–100 ms, 10 by 100 ms–1 s`.
#[must_use]
pub fn lateness(evidence: &LinkEvidence) -> Option<String> {
    let buckets: Vec<String> = evidence
        .delay_histogram
        .iter()
        .zip(LATENESS)
        .filter(|(count, _)| **count > 0)
        .map(|(count, word)| format!("{count} by {word}"))
        .collect();
    buckets.is_empty().not().then(|| format!("late: {}", buckets.join(", ")))
}

/// When it was met: `first hit 12:31:04.120, last 12:31:09.000`, with points told by `clock`.
#[must_use]
pub fn hits(evidence: &LinkEvidence, clock: impl Fn(u64) -> String) -> Option<String> {
    match (evidence.first_hit_ms, evidence.last_hit_ms) {
        (Some(first), Some(last)) if first == last => Some(format!("hit at {}", clock(first))),
        (Some(first), Some(last)) => {
            Some(format!("first hit {}, last {}", clock(first), clock(last)))
        }
        (Some(only), None) | (None, Some(only)) => Some(format!("hit at {}", clock(only))),
        (None, None) => None,
    }
}

/// What all canaries of a fault say together: `canary agrees on 4 links`.
#[must_use]
pub fn canaries_in_short(evidence: &Evidence) -> Option<String> {
    let all = evidence.canary.len();
    let agree = evidence.canary.values().filter(|one| one.verdict == CanaryVerdict::Agrees).count();
    match (all, agree) {
        (0, _) => None,
        (_, 0) => Some("canary has proved nothing yet".to_owned()),
        (all, agree) if all == agree => Some("canary agrees".to_owned()),
        (all, agree) => Some(format!("canary agrees on {agree} of {all} links")),
    }
}

/// What one canary saw: before, during and after.
#[must_use]
pub fn canary(report: &CanaryReport) -> String {
    let CanaryReport { before, tries, answers, fastest_us, healed_after_ms, .. } = report;
    let mut parts = Vec::new();
    parts.extend(match before {
        Some(true) => Some("answered before".to_owned()),
        Some(false) => Some("did not answer before".to_owned()),
        None => None,
    });
    let fastest = fastest_us.map(|us| format!(", the fastest in {}", millis(us)));
    parts.push(match (tries, answers) {
        (0, _) => "not asked while in force".to_owned(),
        (tries, answers) => {
            let tries = if *tries == 1 { "1 try".to_owned() } else { format!("{tries} tries") };
            match answers {
                0 => format!("no answer to {tries} while in force"),
                _ => format!(
                    "{} to {tries} while in force{}",
                    counted(*answers, "answer"),
                    fastest.unwrap_or_default()
                ),
            }
        }
    });
    parts.extend(match (healed_after_ms, report.is_over) {
        (Some(ms), _) => Some(format!("answered {ms} ms after the end")),
        (None, true) => Some("no answer after the end".to_owned()),
        (None, false) => None,
    });
    let verdict = match report.verdict {
        CanaryVerdict::Agrees => "agrees",
        CanaryVerdict::Contradicts => "CONTRADICTS",
        CanaryVerdict::Unproven => "proves nothing",
    };
    let why = report.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    format!("{verdict}: {}{why}", parts.join(", "))
}

/// Microseconds as milliseconds with one digit: `50.3 ms`.
fn millis(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well() {
        let rows = [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (1_450_000, "1.4 MB")];
        for (count, text) in rows {
            assert_eq!(bytes(count), text);
        }
        assert!(bytes(u64::MAX).ends_with(" TB"));
    }

    #[test]
    fn delays_are_told_by_how_late_they_made_chunks() {
        let evidence =
            LinkEvidence { delay_histogram: [0, 0, 30, 10, 0], ..LinkEvidence::default() };
        assert_eq!(lateness(&evidence).unwrap(), "late: 30 by 10–100 ms, 10 by 100 ms–1 s");
        assert_eq!(lateness(&LinkEvidence::default()), None);
    }

    #[test]
    fn every_counter_is_told() {
        let one = LinkEvidence {
            connections: 1,
            held_bytes: 1,
            dropped_segments: 1,
            delayed_chunks: 1,
            attempts_refused: 1,
            delayed_accepts: 1,
            lost_chunks: 1,
            corrupted_bytes: 1,
            paced_bytes: 1,
            slices: 1,
            resets: 1,
            closes: 1,
            leaked_bytes: 1,
            ..LinkEvidence::default()
        };
        assert_eq!(of_link(&one).split(", ").count(), 13);
        assert_eq!(in_short(&one).len(), 12, "connections alone are no act");
    }

    #[test]
    fn a_canary_tells_before_during_and_after() {
        let report = CanaryReport {
            before: Some(true),
            tries: 12,
            healed_after_ms: Some(3),
            is_over: true,
            verdict: CanaryVerdict::Agrees,
            ..CanaryReport::default()
        };
        assert_eq!(
            canary(&report),
            "agrees: answered before, no answer to 12 tries while in force, answered 3 ms after the end"
        );
        let late = CanaryReport {
            tries: 4,
            answers: 4,
            fastest_us: Some(50_310),
            verdict: CanaryVerdict::Contradicts,
            why: Some("an answer in 50.3 ms, and the delay is 80 ms".into()),
            ..CanaryReport::default()
        };
        let text = canary(&late);
        assert!(text.starts_with("CONTRADICTS: 4 answers to 4 tries"), "{text}");
        assert!(text.ends_with("(an answer in 50.3 ms, and the delay is 80 ms)"), "{text}");
    }

    #[test]
    fn a_single_hit_is_told_once() {
        let hit =
            LinkEvidence { first_hit_ms: Some(5), last_hit_ms: Some(5), ..LinkEvidence::default() };
        assert_eq!(hits(&hit, |ms| format!("t{ms}")).unwrap(), "hit at t5");
    }
}
