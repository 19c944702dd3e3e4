//! Whatever lies on a host's disk or comes from its kernel: it is refused, and nothing panics or hangs.

use std::fs;

use faultbed_agent::{
    ledger,
    node::{LaunchSpec, RunRecord, ShimOrders, last_lines, process::ProcStat},
};
use faultbed_fuzz::{corpus, fuzz};

#[test]
fn stat_of_a_process() {
    fuzz!(corpus("proc"), |document: &[u8]| {
        let _none = ProcStat::parse(document);
    });
}

#[test]
fn records_of_a_run() {
    fuzz!(corpus("run"), |document: &[u8]| {
        let _refused = serde_json::from_slice::<LaunchSpec>(document);
        let _refused = serde_json::from_slice::<ShimOrders>(document);
        let _refused = serde_json::from_slice::<RunRecord>(document);
    });
}

#[test]
fn ledgers() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().to_owned();
    fuzz!(corpus("run"), |document: &[u8]| {
        fs::write(path.join("ledger.json"), document).expect("write a ledger");
        let _refused = ledger::read_newest(&path);
    });
}

#[test]
fn tails_of_logs() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().to_owned();
    let logs = ["one\ntwo\nthree", "\n\n\n", "no end", "\u{1f980}\r\n"];
    fuzz!(logs, |document: &[u8]| {
        fs::write(path.join("output.log"), document).expect("write a log");
        let lines = last_lines(&path, 3).expect("read a log");
        assert!(lines.len() <= 3);
    });
}
