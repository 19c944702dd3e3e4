//! Golden plans.

use expect_test::{Expect, expect};
use faultbed_common::generation::Generation;

use super::*;

fn check(reply: &EditReply, expected: Expect) {
    expected.assert_eq(&anstream::adapter::strip_str(&plan(reply)).to_string());
}

fn object(kind: &str, name: &str, before: Option<&str>, after: Option<&str>) -> ObjectChange {
    ObjectChange {
        kind: kind.into(),
        name: name.into(),
        before: before.map(str::to_owned),
        after: after.map(str::to_owned),
    }
}

#[test]
fn a_plan_shows_clusters_and_faults_alike_and_what_becomes_of_nodes() {
    let node = |n: u8| format!("kv-{n}").parse::<NodeName>().unwrap();
    let reply = EditReply {
        generation: Generation(5),
        changed: true,
        objects: vec![
            object(
                "cluster",
                "kv",
                Some("blueprint = \"etcd\"\n\n[etcd]\ncount = 3\npath = \"/opt/a/etcd\"\n"),
                Some("blueprint = \"etcd\"\n\n[etcd]\ncount = 4\npath = \"/opt/b/etcd\"\n"),
            ),
            object("fault", "split", None, Some("isolate = \"kv-1\"\nfor = \"30s\"\n")),
            object("fault", "old", Some("isolate = \"kv-2\"\nfor = \"30s\"\n"), None),
        ],
        nodes: [
            (node(1), NodeFate::Restart),
            (node(2), NodeFate::Restart),
            (node(3), NodeFate::Restart),
            (node(4), NodeFate::Start),
        ]
        .into(),
        resolved: [(
            "split".parse().unwrap(),
            Resolved {
                groups: vec![vec!["kv-1".into()], vec!["kv-2".into(), "kv-3".into()]],
                untouched: vec![node(4)],
                ..Resolved::default()
            },
        )]
        .into(),
        notes: vec!["fault slow is kept: a verb made it".into()],
        needs: faultbed_common::program::Needs::default(),
    };
    check(
        &reply,
        expect![[r#"
            ~ cluster kv
                [etcd]
              - count = 3
              - path = "/opt/a/etcd"
              + count = 4
              + path = "/opt/b/etcd"

            + fault split
              + isolate = "kv-1"
              + for = "30s"

            - fault old
              - isolate = "kv-2"
              - for = "30s"

            start    kv-4
            restart  kv-1, kv-2, kv-3

            split: kv-1 | kv-2, kv-3

            note: fault slow is kept: a verb made it"#]],
    );
}

#[test]
fn a_plan_without_changes_says_so() {
    check(&EditReply::default(), expect!["no changes"]);
}
