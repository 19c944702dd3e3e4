//! Another CA takes over while everybody stays connected, and the one before it ends.

use faultbed_common::{status::HostState, trust::AuthorityReply};
use faultbed_tests::{lab::PATIENCE, wait::wait_for};
use faultbed_trust::{certificate, credentials::Credentials, dial::Dialer};

use super::site::{Site, User};

fn ca(user: &User<'_>) -> AuthorityReply {
    serde_json::from_str(&user.ok(&["ca", "show", "-o", "json"])).expect("JSON")
}

fn holders(user: &User<'_>) -> Vec<String> {
    ca(user).ending.expect("one is ending").holders
}

fn word(line: &str) -> String {
    line.trim().rsplit(' ').next().expect("a token").to_owned()
}

#[tokio::test]
async fn another_ca_takes_over_from_the_first_and_no_stream_breaks() {
    let site = Site::start("rota", &[]);
    let admin = site.admin();
    let token = |host: &str| word(&admin.ok(&["host", "token", "--name", host]));
    site.join("h1", &token("h1"), "127.77.243.1");
    site.join("h2", &token("h2"), "127.77.243.2");
    let line = admin.ok(&["user", "token", "ada", "--role", "operator"]);
    let ada = site.user("ada");
    ada.ok(&line.split_whitespace().skip(1).collect::<Vec<_>>());
    let (early, late) = (token("h3"), token("h4"));
    let old = site.credentials("h1");
    let first = ca(&ada).signs;
    let refused = ada.run(&["ca", "rotate"]);
    assert!(refused.stderr.contains("the role admin"), "{}", refused.stderr);

    admin.ok(&["ca", "rotate", "--overlap", "2h"]);
    let now = ca(&admin);
    assert_ne!(now.signs, first);
    assert_eq!(now.ending.map(|ending| ending.ca), Some(first));
    wait_for("both hosts have certificates of the new one", PATIENCE, || {
        let left = holders(&admin);
        (left == ["user ada"]).then_some(()).ok_or(format!("{left:?}"))
    });
    let refused = admin.run(&["ca", "end"]);
    assert!(refused.stderr.contains("user ada would have to join again"), "{}", refused.stderr);
    let refused = admin.run(&["ca", "rotate"]);
    assert!(refused.stderr.contains("`faultbed ca end` ends it now"), "{}", refused.stderr);
    // Who believes only the first one still takes the coordinator for what it is, and moves on.
    assert!(ada.run(&["status"]).stderr.contains("renewed the certificate"));
    assert_eq!(holders(&admin), Vec::<String>::new());
    // So does a token that names the first one.
    site.join("h3", &early, "127.77.243.3");

    admin.ok(&["ca", "end"]);
    assert_eq!(ca(&ada).ending, None);
    wait_for("the hosts believe the new one only", PATIENCE, || {
        let held = ["h1", "h2", "h3"].map(|host| site.credentials(host).ca);
        let all = held.iter().all(|ca| certificate::all(ca).expect("a CA").len() == 1);
        all.then_some(()).ok_or(format!("{held:?}"))
    });
    // The key is the same, and its old certificate is worth nothing.
    let shown = Credentials { ca: site.credentials("h1").ca, ..old };
    let dialer = Dialer::new(&shown).expect("a dialer");
    let came_in = match dialer.connect(&site.url(), |endpoint| endpoint).await {
        Ok(channel) => site.is_answered(channel).await,
        Err(_) => false,
    };
    assert!(!came_in, "a certificate of the CA that ended lets nobody in");
    let said = site.join_refused("h4", &late);
    assert!(said.contains("cannot show a certificate of this lab's CA"), "{said}");
    let status = ada.status();
    assert!(status.hosts.iter().all(|host| host.state == HostState::Up), "{:?}", status.hosts);
    for host in ["h1", "h2"] {
        let log = site.agent_log(host);
        assert_eq!(log.matches("session begun").count(), 1, "{log}");
    }

    admin.ok(&["ca", "rotate", "--overlap", "2s"]);
    wait_for("its time ends the one before", PATIENCE, || {
        let ending = ca(&admin).ending;
        ending.is_none().then_some(()).ok_or(format!("{ending:?}"))
    });
}
