//! A lab across machines: who comes in, who does not, and certificates that end while nobody notices.

mod events;
mod refused;
mod rotation;
mod sessions;
mod site;
mod ssh;
mod withdrawn;

use faultbed_common::{report::NodeState, trust::Token};
use faultbed_tests::{lab::PATIENCE, wait::wait_for};

use site::Site;

#[test]
fn a_host_joins_with_one_line_runs_a_node_and_the_line_works_once() {
    let site = Site::start("far", &[]);
    let admin = site.admin();
    let line = admin.ok(&["host", "token", "--name", "h1", "--label", "rack=a"]);
    let token = line.trim().strip_prefix("faultbed-agent join ").expect("one line").to_owned();
    assert_eq!(line.trim().lines().count(), 1, "{line}");

    // Whoever brings another pin does not get to know the secret, and the token is still good.
    let mut pinned: Token = token.parse().expect("a token");
    pinned.ca = "0".repeat(64);
    let said = site.join_refused("h0", &pinned.to_string());
    assert!(said.contains("cannot show a certificate of this lab's CA"), "{said}");
    let mut other: Token = token.parse().expect("a token");
    other.lab = "elsewhere".parse().expect("a name");
    let said = site.join_refused("h0", &other.to_string());
    assert!(said.contains("this is lab far"), "{said}");

    site.join("h1", &token, "127.77.249.1");
    let status = admin.status();
    assert_eq!(status.hosts.len(), 1);
    assert_eq!(status.hosts[0].labels["rack"], "a");
    let said = site.join_refused("h2", &token);
    assert!(said.contains("was used before"), "{said}");
    let short = admin.ok(&["host", "token", "--for", "1ms"]);
    let said = site.join_refused("h2", short.trim().rsplit(' ').next().expect("a token"));
    assert!(said.contains("expired"), "{said}");

    admin.ok(&["start", "cluster", "--etcd.count", "1"]);
    wait_for("its node is ready", PATIENCE, || {
        let status = admin.status();
        let ready = status.nodes.iter().any(|node| node.observed == NodeState::Ready);
        ready.then_some(()).ok_or_else(|| faultbed_tests::lab::summary(&status))
    });
}

#[test]
fn users_do_what_their_role_says_from_another_machine() {
    let site = Site::start("roles", &[]);
    let admin = site.admin();
    let [viewer, operator] = ["viewer", "operator"].map(|role| {
        let line = admin.ok(&["user", "token", role, "--role", role]);
        let user = site.user(role);
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        user.ok(&words);
        user
    });
    assert_eq!(viewer.status().lab.as_str(), "roles");
    let refused = viewer.run(&["start", "cluster", "--etcd.count", "1"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("viewer is a viewer"), "{}", refused.stderr);
    assert_eq!(viewer.run(&["host", "token"]).code, 2);
    // A viewer may ask what a change would do; without hosts this one is refused by the lab itself.
    let planned = viewer.run(&["host", "drain", "h9", "--plan"]);
    assert!(planned.stderr.contains("there is no host h9"), "{}", planned.stderr);

    operator.ok(&["host", "token"]);
    let refused = operator.run(&["user", "token", "eve", "--role", "admin"]);
    assert!(refused.stderr.contains("the role admin"), "{}", refused.stderr);
    assert_eq!(operator.run(&["down"]).code, 2, "others run it");

    admin.ok(&["user", "remove", "viewer"]);
    wait_for("the certificate is refused", PATIENCE, || {
        let ran = viewer.run(&["status"]);
        let is_refused = ran.code != 0 && ran.stderr.contains("no member of this lab");
        is_refused.then_some(()).ok_or(ran.stderr)
    });
}

#[test]
fn certificates_are_renewed_and_the_stream_lives_on() {
    let site = Site::start("renew", &["--certificate-lifetime", "6s"]);
    let admin = site.admin();
    let line = admin.ok(&["host", "token", "--name", "h1"]);
    site.join("h1", line.trim().rsplit(' ').next().expect("a token"), "127.77.248.1");
    let first = site.certificate("h1");
    wait_for("the first certificate has ended, and others came", PATIENCE, || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let has_ended = now.expect("a clock").as_secs() > first.until_unix_s + 1;
        let held = site.certificate("h1");
        let is_renewed = held.until_unix_s > first.until_unix_s + 3;
        (has_ended && is_renewed).then_some(()).ok_or(format!("{first:?} {held:?}"))
    });
    let log = site.agent_log("h1");
    assert_eq!(log.matches("session begun").count(), 1, "{log}");
    assert_eq!(admin.status().hosts[0].state, faultbed_common::status::HostState::Up, "{log}");
    // The coordinator's own certificate of the start has ended too: whoever comes now sees a new one.
    let line = admin.ok(&["user", "token", "late", "--role", "viewer"]);
    let user = site.user("late");
    user.ok(&line.split_whitespace().skip(1).collect::<Vec<_>>());
    assert_eq!(user.status().lab.as_str(), "renew");
}
