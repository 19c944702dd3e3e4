//! Every pair of effects, and every option beside every effect: what is accepted acts, and what is
//! refused says what to write.

use super::{check, effect, resolve_text, spec, summary, two_clusters, with};
use crate::{file, proxy_spec::LinkEffect};

const EFFECTS: [&str; 20] = [
    "cut",
    "stall",
    "jam",
    "latency",
    "rtt",
    "bandwidth",
    "loss",
    "corrupt",
    "duplicate",
    "reorder",
    "slice",
    "refuse",
    "time_out",
    "accept_delay",
    "reset",
    "reset_after",
    "close_after",
    "limit",
    "slow_close",
    "preset",
];

const OPTIONS: [&str; 8] = [
    "probability",
    "canary",
    "fast_heal",
    "packet",
    "stream",
    "heal",
    "one_way",
    "one_way_packets",
];

/// How many parts of an effect do something.
fn parts(effect: &LinkEffect) -> usize {
    let LinkEffect {
        cut,
        hold,
        delay,
        bandwidth,
        loss,
        corrupt,
        slice,
        dials,
        accept_delay_us,
        endings,
    } = effect;
    [
        cut.is_some(),
        hold.is_some(),
        delay.is_some(),
        bandwidth.is_some(),
        !loss.is_empty(),
        corrupt.is_some(),
        slice.is_some(),
        dials.is_some(),
        *accept_delay_us > 0,
        endings.reset,
        endings.reset_after_us.is_some(),
        endings.close_after_us.is_some(),
        endings.limit_bytes.is_some(),
        endings.slow_close_us > 0,
    ]
    .into_iter()
    .filter(|is| *is)
    .count()
}

/// What is refused ends with a way out.
fn assert_helps(words: &str, why: &str) {
    let helps = ["write `", "write one", "leave", "needs", "nothing: write"];
    assert!(helps.iter().any(|help| why.contains(help)), "{words}: {why}");
}

#[test]
fn any_two_effects_both_act_or_are_refused_with_a_way_out() {
    let mut accepted = 0;
    for (at, one) in EFFECTS.iter().enumerate() {
        for other in &EFFECTS[at + 1..] {
            let words = format!("{one} {other}");
            let both = with(&words);
            match check(&both) {
                Ok(()) => {
                    // A preset and an effect of its own kind are one part, which the latter decides.
                    let least = if *other == "preset" { 1 } else { 2 };
                    assert!(parts(&effect(&both)) >= least, "{words}: {:?}", effect(&both));
                    accepted += 1;
                }
                Err(error) => assert_helps(&words, &error.to_string()),
            }
        }
    }
    assert!(accepted > 80, "most go together: {accepted}");
}

#[test]
fn every_option_beside_every_effect_is_taken_or_refused_with_a_way_out() {
    for one in EFFECTS {
        for option in OPTIONS {
            let words = format!("{one} {option}");
            let spec = with(&words);
            match check(&spec) {
                Ok(()) => assert_ne!(effect(&spec), LinkEffect::default(), "{words}"),
                Err(error) => assert_helps(&words, &error.to_string()),
            }
        }
    }
}

#[test]
fn what_is_accepted_reads_the_same_in_a_file() {
    for one in EFFECTS {
        for other in EFFECTS.iter().chain(&OPTIONS).filter(|other| **other != one) {
            let mut both = with(&format!("{one} {other}"));
            if check(&both).is_err() {
                continue;
            }
            both.lasts = Some(crate::fault::Lasts::UntilHealed);
            let text = file::to_toml_fault(&"f".parse().unwrap(), &both);
            let read = file::parse_lab(&text).map(|mut lab| lab.fault.pop_first());
            let Ok(Some((_, read))) = read else { panic!("{text}") };
            assert_eq!(read, both, "{text}");
            assert!(!summary(&read).is_empty());
        }
    }
}

#[test]
fn jitter_is_told_by_what_it_does() {
    let told = |distribution: &str| {
        summary(&spec(&format!(
            "isolate = \"a\"\nlatency = \"9ms\"\njitter = \"2ms\"\ndistribution = \"{distribution}\""
        )))
    };
    assert_eq!(told("uniform"), "latency 9ms ±2ms");
    assert_eq!(told("normal"), "latency 9ms ±2ms normal");
    assert_eq!(told("pareto"), "latency 9ms +2ms pareto");
}

#[test]
fn a_canary_needs_a_link_between_nodes() {
    let lab = two_clusters();
    let clients = "between = [\"clients\", \"kv-1\"]\ncut = true\ncanary = true";
    let error = resolve_text(&lab, clients).unwrap_err();
    assert!(error.to_string().contains("all these links are of clients"), "{error}");
    let both = "isolate = \"kv-1\"\nclients = true\ncanary = true";
    resolve_text(&lab, both).unwrap();
}
