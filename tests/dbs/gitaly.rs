//! Gitaly and Praefect as stand-ins, with a real PostgreSQL between them: what they are told, and what
//! comes and goes.

use std::{fs, os::unix::fs::PermissionsExt as _};

use faultbed_common::{name::NodeName, status::Status};
use faultbed_tests::lab::{Lab, find};

use crate::stand_ins::{all_ready, programs, up};

pub(crate) fn what_gitaly_and_praefect_are_told_satisfies_their_stand_ins() {
    let lab = Lab::new("gitaly");
    // Run by root, PostgreSQL runs as its own user, who must get in.
    fs::set_permissions(lab.home(), fs::Permissions::from_mode(0o711)).expect("open the directory");
    programs(&lab, &["gitaly", "praefect"]);
    up(
        &lab,
        "[lab]\nhosts = 3\n[cluster.g]\nblueprint = \"gitaly\"\n\
         gitaly.path = \"bin/gitaly\"\npraefect.path = \"bin/praefect\"\n",
    );
    all_ready(&lab);
    let first = another_primary(&lab, None);

    // The Praefects lose it, and so it does not stay the primary.
    lab.ok(&["isolate", &first, "--name", "cut", "--for", "5m"]);
    let second = another_primary(&lab, Some(&first));
    lab.ok(&["heal", "cut"]);
    lab.ok(&["kill", &second]);
    let third = another_primary(&lab, Some(&second));
    lab.ok(&["start", &second]);
    assert_eq!(another_primary(&lab, None), third, "who came back has no repository of its own");

    // A Praefect serves only with its database; started again it finds what was set up before.
    lab.ok(&["restart", "g/praefect"]);
    lab.ok(&["kill", "g-postgres-1"]);
    lab.ok(&["start", "g-postgres-1"]);
    all_ready(&lab);

    scales(&lab);
    assert!(lab.status().bypasses.is_empty(), "{:?}", lab.status().bypasses);
    lab.write("more.toml", "no_such_key = 1\n");
    let refused = lab.run(&["set", "g-gitaly-1", "config=more.toml"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("no_such_key"), "{}", refused.stderr);
}

/// What comes is told to the Praefects, who start again for it; what goes takes nothing with it.
fn scales(lab: &Lab) {
    let before = run_of(lab, "g-praefect-1");
    lab.ok(&["scale", "g/gitaly", "4"]);
    lab.wait("the new storage has the repository", |status| {
        (find(status, "g-gitaly-4").role_state.as_deref() == Some("replica")).then_some(())
    });
    lab.wait("all have learned of it", |status| {
        (status.converged && run_of(lab, "g-praefect-1") > before).then_some(())
    });
    // Who lists the others starts again for each that comes or goes, and is not there meanwhile.
    for (role, count) in [("g/gitaly", "3"), ("g/praefect", "3"), ("g/praefect", "2")] {
        lab.ok(&["scale", role, count]);
        lab.wait("all have learned of it", |status| status.converged.then_some(()));
        all_ready(lab);
    }
    let refused = lab.run(&["scale", "g/postgres", "2"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("has 1 at most"), "{}", refused.stderr);
}

fn run_of(lab: &Lab, node: &str) -> u64 {
    lab.node(node).incarnation.0
}

/// Waits for a storage to be the repository's primary, other than `old`.
fn another_primary(lab: &Lab, old: Option<&str>) -> String {
    lab.wait("a primary", |status: &Status| {
        let leads: Vec<&NodeName> = status
            .nodes
            .iter()
            .filter(|node| node.leader == Some(true) && node.leads == Some(1))
            .map(|node| &node.name)
            .collect();
        match leads.as_slice() {
            [one] if old != Some(one.as_str()) => Some(one.to_string()),
            _ => None,
        }
    })
}
