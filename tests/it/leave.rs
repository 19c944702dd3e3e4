//! Nodes whose database does not let them go: why is said, and they go by force or are called back.

use faultbed_common::{report::NodeState, status::Status};
use faultbed_tests::{
    lab::Lab,
    mini::{Mini, blueprint},
};

/// Three nodes that serve; nobody leads them.
fn wait_for_three(lab: &Lab) {
    lab.wait("three nodes are ready", |status| {
        let ready = status.nodes.iter().filter(|node| node.observed == NodeState::Ready).count();
        (ready == 3 && status.leaving.is_empty()).then_some(())
    });
}

fn why_leaving(status: &Status, name: &str) -> Option<String> {
    let node = status.leaving.iter().find(|node| node.name.as_str() == name)?;
    node.why.clone().filter(|why| why.contains("leave the cluster"))
}

/// A lab whose nodes never leave: their step says why, and fails or hangs.
fn lab(name: &str, step: &str) -> Lab {
    let lab = Lab::new(name);
    let leave = format!(
        "leave = {{ before = [\"sh\", \"-c\", \"{step}\"], required = true, timeout = \"10m\" }}\n"
    );
    lab.write("mini.toml", &format!("{}{leave}", blueprint(Mini::Idle)));
    lab.write("lab.toml", "[lab]\nhosts = 1\n\n[cluster.kv]\nblueprint = \"./mini.toml\"\n");
    lab.ok(&["up", "-d", "lab.toml"]);
    wait_for_three(&lab);
    lab
}

#[test]
fn a_node_whose_leave_always_fails_says_why_and_is_called_back_or_goes_by_force() {
    let lab = lab("refuses", "echo shard 7 is here only >&2; exit 1");
    let before = lab.node("kv-3");
    let ran = lab.run(&["scale", "kv", "2", "--wait=1s"]);
    assert_eq!(ran.code, 3, "{}{}", ran.stdout, ran.stderr);
    let why = lab.wait("its last words", |status| {
        why_leaving(status, "kv-3").filter(|why| why.contains("shard 7 is here only"))
    });
    let shown = lab.ok(&["status"]);
    for part in [why.as_str(), "`faultbed remove kv-3 --force`", "`faultbed start kv-3`"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(lab.run(&["remove", "kv-3"]).code, 2, "it is leaving already");

    let said = lab.ok(&["start", "kv-3"]);
    assert!(said.contains("kv-3 stays in kv"), "{said}");
    wait_for_three(&lab);
    let back = lab.node("kv-3");
    assert_eq!((back.pid, back.endpoints), (before.pid, before.endpoints), "it went on running");

    lab.ok(&["scale", "kv", "2", "--no-wait"]);
    lab.wait("it is leaving again", |status| why_leaving(status, "kv-3"));
    lab.ok(&["remove", "kv-3", "--force"]);
    let status = lab.status();
    assert!(status.leaving.is_empty() && status.nodes.len() == 2, "{status:?}");
    assert!(status.nodes.iter().all(|node| node.observed == NodeState::Ready), "{status:?}");
}

#[test]
fn a_leave_that_hangs_is_ended_by_force() {
    let lab = lab("hangs", "exec sleep 600");
    lab.ok(&["remove", "kv-2", "--no-wait"]);
    lab.wait("it is leaving", |status| why_leaving(status, "kv-2"));
    lab.ok(&["remove", "kv-2", "--force"]);
    assert!(lab.status().leaving.is_empty());
}
