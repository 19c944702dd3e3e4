//! What happened, as several coordinators tell it: one story, whoever saw it. And contexts that go.

use std::net::TcpListener;

use faultbed_tests::{lab::PATIENCE, wait::wait_for};

use super::site::Site;
use crate::store_etcd::Etcd;

#[test]
fn events_of_all_coordinators_are_one_story_and_a_context_can_be_forgotten() {
    let mut site = Site::new("twice");
    let etcd = Etcd::start(site.home());
    let store = format!("etcd={}", etcd.url);
    let places = [(); 2].map(|()| {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        free.local_addr().expect("address").to_string()
    });
    let flags = |n: usize| {
        let name = if n == 0 { "c1" } else { "c2" };
        ["--store", &store, "--listen", &places[n], "--name", name]
    };
    site.coordinator("c2", &flags(1));
    site.coordinator("c1", &flags(0));
    let line = wait_for("both coordinators are known", PATIENCE, || {
        let line = site.admin_of("c1").ok(&["user", "token", "ada", "--role", "operator"]);
        let token = line.trim().rsplit(' ').next().expect("a token");
        let token: faultbed_common::trust::Token = token.parse().expect("a token");
        if token.urls.len() == 2 { Ok(line) } else { Err(format!("{:?}", token.urls)) }
    });
    site.user("ada").ok(&line.split_whitespace().skip(1).collect::<Vec<_>>());

    // What one coordinator saw alone, while the other was not there.
    site.kill("c1");
    let token = site.user("ada").ok(&["host", "token", "--name", "h1"]);
    site.join("h1", token.trim().rsplit(' ').next().expect("a token"), "127.77.242.1");
    site.coordinator("c1", &flags(0));
    let ada = site.user("ada");
    let alone = format!("h1 is up  (told by {} alone)", places[1]);
    wait_for("the other one tells it", PATIENCE, || {
        let told = ada.ok(&["events"]);
        told.contains(&alone).then_some(()).ok_or(told)
    });
    assert!(!site.admin_of("c1").ok(&["events"]).contains("h1 is up"), "it did not see that");

    // What both saw is told once.
    ada.ok(&["host", "label", "h1", "rack=north"]);
    let told = wait_for("both tell it", PATIENCE, || {
        let told = ada.ok(&["events"]);
        let lines: Vec<&str> = told.lines().filter(|line| line.contains("by ada")).collect();
        let is_once = lines.len() == 1 && !lines[0].contains("told by");
        if is_once { Ok(told) } else { Err(told) }
    });
    // So is what becomes of the CA, whichever of them was asked, by each of them alone too.
    site.admin_of("c1").ok(&["ca", "rotate"]);
    for place in ["c1", "c2"] {
        wait_for("it is told who let another CA take over", PATIENCE, || {
            let told = site.admin_of(place).ok(&["events"]);
            let count = told.matches("lets another CA take over").count();
            if count == 1 { Ok(()) } else { Err(format!("{place}: {told}")) }
        });
    }
    let at = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    let times: Vec<String> = told.lines().map(at).collect();
    assert!(times.is_sorted(), "{told}");
    site.kill("c2");
    let ada = site.user("ada");
    let ran = ada.run(&["events"]);
    assert!(ran.stderr.contains(&format!("{} does not answer", places[1])), "{}", ran.stderr);

    let said = ada.run(&["context", "remove", "twice"]).stderr;
    assert!(said.contains("faultbed user remove ada"), "{said}");
    assert!(ada.ok(&["context", "list"]).contains("no labs yet"));
    assert_eq!(ada.run(&["status"]).code, 4);
    assert_eq!(ada.run(&["context", "remove", "twice"]).code, 2);
}
