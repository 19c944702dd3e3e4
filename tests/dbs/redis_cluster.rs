//! Redis Cluster: several leaders, each of some slots.

use faultbed_common::{report::NodeState, status::Status};
use faultbed_tests::{
    lab::{Lab, find, summary},
    wait::wait_for,
};

use crate::{
    life::{PATIENCE, host_port, no_bypass, one_way, said},
    redis::Redis,
};

const FILE: &str = "[lab]\nhosts = 3\n\n[cluster.r]\nblueprint = \"redis-cluster\"\n";

/// Keys enough to be in the slots of every node.
const KEYS: u32 = 60;

fn cli(at: &str, args: &[&str]) -> Option<String> {
    let (host, port) = host_port(at);
    said("redis-cli", &[&["-c", "-h", host, "-p", port], args].concat())
}

fn at(status: &Status, node: &str) -> String {
    find(status, node).endpoints["client"].trim_start_matches("redis://").to_owned()
}

/// Waits until all nodes are ready and all slots are led.
fn whole(lab: &Lab, leaders: usize) -> Status {
    wait_for("all nodes ready, all slots led", PATIENCE, || {
        let status = lab.status();
        let ready = status.nodes.iter().all(|node| node.observed == NodeState::Ready);
        let led = status.nodes.iter().filter(|node| node.leader == Some(true));
        let (count, slots) = led.fold((0, 0), |(n, s), node| (n + 1, s + node.leads.unwrap_or(0)));
        if ready && status.converged && count == leaders && slots == 16384 {
            Ok(status)
        } else {
            Err(format!("{count} lead {slots} slots; {}", summary(&status)))
        }
    })
}

fn every_key_is_there(status: &Status) {
    let at = at(status, "r-1");
    for key in 0..KEYS {
        wait_for("a key", PATIENCE, || match cli(&at, &["get", &format!("key-{key}")]) {
            Some(value) if value == key.to_string() => Ok(()),
            other => Err(format!("key-{key}: {other:?}")),
        });
    }
}

pub(crate) fn slots_fail_over_and_move_and_every_key_stays() {
    let lab = Lab::up("redis-cluster", FILE);
    let status = whole(&lab, 3);
    for key in 0..KEYS {
        let set = cli(&at(&status, "r-1"), &["set", &format!("key-{key}"), &key.to_string()]);
        assert_eq!(set.as_deref(), Some("OK"));
    }

    // Its replica takes the slots of the one that is killed over.
    lab.ok(&["kill", "r-2"]);
    lab.wait("another node leads its slots", |status| {
        let led: u64 =
            status.nodes.iter().filter(|n| n.leader == Some(true)).filter_map(|n| n.leads).sum();
        (led == 16384 && !is_led_by(status, "r-2")).then_some(())
    });
    lab.ok(&["start", "r-2"]);
    let status = whole(&lab, 3);
    assert!(!is_led_by(&status, "r-2"), "who came back is a replica");
    every_key_is_there(&status);

    // One that is cut off says itself that the cluster is down, and takes no more writes.
    lab.ok(&["isolate", "r-3", "--name", "cut", "--for", "5m"]);
    lab.wait("r-3 says that it is alone", |status| {
        (find(status, "r-3").observed == NodeState::Unready).then_some(())
    });
    let refused = cli(&at(&lab.status(), "r-3"), &["set", "alone", "1"]);
    assert_ne!(refused.as_deref(), Some("OK"));
    lab.ok(&["heal", "cut", "--require", "confirmed"]);
    every_key_is_there(&whole(&lab, 3));

    let status = whole(&lab, 3);
    let replicas = status.nodes.iter().filter(|node| node.leader != Some(true));
    let replicas: Vec<_> = replicas.map(|node| &node.name).collect();
    one_way(&lab, &Redis, [replicas[0], replicas[1]]);
    whole(&lab, 3);

    // One more is a replica; then those go that lead, and their slots move first.
    lab.ok(&["set", "r", "count=7"]);
    assert!(!is_led_by(&whole(&lab, 3), "r-7"));
    for count in [6, 5] {
        lab.ok(&["set", "r", &format!("count={count}")]);
    }
    let status = lab.status();
    let leaders = status.nodes.iter().filter(|node| node.leader == Some(true)).count();
    every_key_is_there(&whole(&lab, leaders));
    no_bypass(&lab);
}

/// Whether this node leads some slots.
fn is_led_by(status: &Status, node: &str) -> bool {
    find(status, node).leader == Some(true)
}
