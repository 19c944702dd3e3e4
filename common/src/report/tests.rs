//! What evidence of a fault is, and how it adds up.

use super::*;
use crate::proxy_spec::{Cut, Dials, Endings, Hold};

#[test]
fn each_effect_is_shown_by_its_own_counters_only() {
    let none = LinkEffect::default;
    let rows: Vec<(LinkEffect, LinkEvidence)> = vec![
        (
            LinkEffect { cut: Some(Cut::Packets), ..none() },
            LinkEvidence { attempts_refused: 1, ..LinkEvidence::default() },
        ),
        (
            LinkEffect { hold: Some(Hold::Jam), ..none() },
            LinkEvidence { held_bytes: 1, ..LinkEvidence::default() },
        ),
        (
            LinkEffect { delay: Some(Default::default()), ..none() },
            LinkEvidence { delayed_chunks: 1, ..LinkEvidence::default() },
        ),
        (
            LinkEffect { bandwidth: "1Mbit".parse().ok(), ..none() },
            LinkEvidence { paced_bytes: 1, ..LinkEvidence::default() },
        ),
        (
            LinkEffect { loss: vec!["1%".parse().unwrap()], ..none() },
            LinkEvidence { lost_chunks: 1, ..LinkEvidence::default() },
        ),
        (
            LinkEffect { corrupt: "1%".parse().ok(), ..none() },
            LinkEvidence { corrupted_bytes: 1, ..LinkEvidence::default() },
        ),
        (
            LinkEffect { dials: Some(Dials::TimeOut), ..none() },
            LinkEvidence { attempts_refused: 1, ..LinkEvidence::default() },
        ),
        (
            LinkEffect { accept_delay_us: 5, ..none() },
            LinkEvidence { delayed_accepts: 1, ..LinkEvidence::default() },
        ),
        (
            LinkEffect { endings: Endings { reset: true, ..Endings::default() }, ..none() },
            LinkEvidence { resets: 1, ..LinkEvidence::default() },
        ),
    ];
    for (effect, evidence) in &rows {
        assert!(evidence.shows(effect), "{effect:?}");
        assert!(!LinkEvidence::default().shows(effect), "{effect:?} without traffic");
        assert!(!evidence.shows(&none()), "no effect, no proof");
    }
    let healed = LinkEvidence { resets: 3, ..LinkEvidence::default() };
    assert!(!healed.shows(&rows[0].0), "a reset at its end does not prove a cut");
    assert!(!rows[2].1.shows(&rows[3].0), "a delay does not prove a bandwidth");
}

#[test]
fn counters_that_are_nothing_are_not_said_and_read_as_they_were() {
    let counted = LinkEvidence {
        dropped_segments: 3,
        delay_histogram: [0, 1, 0, 0, 0],
        last_hit_ms: Some(7),
        ..LinkEvidence::default()
    };
    let links = [("kv-1>kv-2", counted), ("kv-2>kv-1", LinkEvidence::default())];
    let links = links.map(|(link, counted)| (link.parse().unwrap(), counted));
    let report = FaultReport { links: links.into(), ..FaultReport::default() };
    let text = serde_json::to_string(&report).unwrap();
    assert!(text.contains(r#""kv-2>kv-1":{}"#) && !text.contains("leaked_bytes"), "{text}");
    assert_eq!(serde_json::from_str::<FaultReport>(&text).unwrap(), report);
}

#[test]
fn a_report_that_stands_still_ages_and_says_the_same() {
    let fault = FaultReport { remaining_ms: Some(5000), ..FaultReport::default() };
    let lease = LeaseReport { remaining_ms: 2000, ..LeaseReport::default() };
    let report = HostReport {
        now_ms: 1000,
        faults: [("cut-1".parse().unwrap(), fault)].into(),
        lab_lease: Some(lease),
        ..HostReport::default()
    };
    let later = report.later(2500);
    let left = later.faults.values().map(|fault| fault.remaining_ms).collect::<Vec<_>>();
    assert_eq!((later.now_ms, left), (2500, vec![Some(3500)]));
    assert_eq!(later.without_ages(), report.without_ages());
    assert_ne!(report.later(4000).without_ages(), report.without_ages(), "the lease is over");
}
