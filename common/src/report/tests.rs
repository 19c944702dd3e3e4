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
