//! What edits do to a lab, as people would notice.

mod apply;
mod crowd;
mod faults;
mod hosts;
mod laws;
mod leases;
mod nodes;
mod own;
mod programs;
mod removal;

use super::{Refusal, decide_hand_edit};
use crate::decide::fixtures::{World, empty, key, ready};

/// The refusal's sentence.
fn why<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
    result.unwrap_err().to_string()
}

fn hand(world: &World, kind: &str, name: &str, value: Option<&str>) -> Result<bool, Refusal> {
    let decided =
        decide_hand_edit(&world.lab, &world.reports, (kind, name, value), &world.asked())?;
    Ok(decided.reply.changed)
}

#[test]
fn a_hand_edit_is_adopted_like_a_file_of_one_object() {
    let mut world = empty();
    let spec = r#"{"blueprint": "etcd", "etcd": {"count": 1}}"#;
    let decided =
        decide_hand_edit(&world.lab, &world.reports, ("cluster", "kv", Some(spec)), &world.asked())
            .unwrap();
    assert_eq!(decided.what, "put cluster kv by hand");
    assert!(decided.reply.changed);
    world.lab = decided.lab;
    assert_eq!(world.lab.clusters[&key("kv")].nodes.len(), 1);
    // The echo of what is accepted already is no change.
    assert_eq!(hand(&world, "cluster", "kv", Some(spec)), Ok(false));
    let fault = r#"{"on": "kv-1", "pause": true, "for": "30s"}"#;
    assert_eq!(hand(&world, "fault", "still", Some(fault)), Ok(true));
    assert_eq!(hand(&world, "cluster", "kv", None), Ok(true));
    assert_eq!(hand(&world, "cluster", "other", None), Ok(false));
}

#[test]
fn a_bad_hand_edit_is_refused_with_the_reason() {
    let world = ready();
    let long = format!("{{\"blueprint\": \"{}\"}}", "x".repeat(10_000_000));
    for (kind, name, value, reason) in [
        ("cluster", "kv", "{", "read cluster kv: EOF"),
        ("cluster", "kv", r#"{"blueprint": "etcd", "etdc": {}}"#, "has no role etdc"),
        (
            "cluster",
            "kv",
            r#"{"blueprint": "etcd", "etcd": {"cuont": 3}}"#,
            "unknown field `cuont`",
        ),
        ("cluster", "kv", r#"{"blueprint": "etcd", "etcd": {"count": "x"}}"#, "invalid type"),
        ("cluster", "kv", &long, "at most 1000000 are allowed"),
        ("cluster", "a/b", r#"{"blueprint": "etcd"}"#, "only lower-case"),
        ("cluster", "a\nb", r#"{"blueprint": "etcd"}"#, "only lower-case"),
        ("fault", "x", r#"{"on": "kv-1", "pause": true}"#, "say how long it lasts"),
        ("fault", "x", r#"{"on": "kw-1", "pause": true, "for": "1s"}"#, "did you mean \"kv-1\""),
        ("fault", "x", r#"{"on": "kv-1", "pause": true, "for": "-3s"}"#, "must not be negative"),
        ("fault", "x", r#"{"partition": [["kv"]], "for": "1s"}"#, "two groups or more"),
        ("table", "x", "{}", "is no kind of spec"),
    ] {
        let error = why(hand(&world, kind, name, Some(value)));
        assert!(error.contains(reason), "{kind} {name}: {error}");
    }
}
