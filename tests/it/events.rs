//! What is followed goes on over restarts of who tells it.

use std::fs::{self, File};

use faultbed_tests::{
    lab::{Lab, PATIENCE, signal},
    wait::wait_for,
};
use rustix::process::Signal;

#[test]
fn following_goes_on_over_a_restart_of_the_coordinator_and_tells_nothing_twice() {
    let lab = Lab::up("follow", "[lab]\nhosts = 1\n");
    let [out, err] = ["out", "err"].map(|name| lab.home().join(name));
    let mut follower = lab
        .command(&["events", "-f", "-o", "json"])
        .stdout(File::create(&out).expect("make file"))
        .stderr(File::create(&err).expect("make file"))
        .spawn()
        .expect("run faultbed");
    let contains = |path: &std::path::Path, text: &str| {
        wait_for(text, PATIENCE, || {
            let told = fs::read_to_string(path).unwrap_or_default();
            told.contains(text).then_some(()).ok_or(told)
        });
    };
    let change = |label: &str| {
        lab.ok(&["host", "label", "h1", label]);
        contains(&out, &format!("generation {} by", lab.status().generation));
    };
    change("rack=north");
    signal(lab.daemon_pid("coordinator/coordinator.pid"), Signal::KILL);
    contains(&err, "tells no more");
    lab.ok(&["up", "-d"]);
    contains(&err, "tells again");
    change("rack=south");
    follower.kill().expect("end it");
    follower.wait().expect("wait");
    let told = fs::read_to_string(&out).expect("read file");
    let seqs: Vec<u64> = told
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .map(|event| event["seq"].as_u64().expect("a number"))
        .collect();
    let expected: Vec<u64> = (seqs[0]..).take(seqs.len()).collect();
    assert_eq!(seqs, expected, "each once, none missing\n{told}");
}
