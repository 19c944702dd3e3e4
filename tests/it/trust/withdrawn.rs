//! Certificates that count no more: taken over by a newer one of the same name, withdrawn, or ended.

use std::time::{SystemTime, UNIX_EPOCH};

use faultbed_common::status::HostState;
use faultbed_proto::v1::{Document, operator_client::OperatorClient, trust_client::TrustClient};
use faultbed_tests::{lab::PATIENCE, wait::wait_for};
use faultbed_trust::{credentials::Credentials, dial::Dialer};
use tonic::{Code, Streaming};

use super::site::{Site, User};

/// Lets a user in, with a new key.
fn let_in<'a>(site: &'a Site, admin: &User<'_>, name: &str, home: &str) -> User<'a> {
    let line = admin.ok(&["user", "token", name, "--role", "operator"]);
    let user = site.user(home);
    user.ok(&line.split_whitespace().skip(1).collect::<Vec<_>>());
    user
}

/// A stream of statuses that lasts for as long as it is let, with its first status read.
async fn watch(credentials: &Credentials, url: &str) -> Streaming<Document> {
    let dialer = Dialer::new(credentials).expect("a dialer");
    let channel = dialer.connect(url, |endpoint| endpoint).await.expect("connect");
    let watch = OperatorClient::new(channel).watch(Document::default()).await;
    let mut watch = watch.expect("watch").into_inner();
    watch.message().await.expect("a status").expect("a status");
    watch
}

/// Reads a stream until it ends.
async fn end_of(mut stream: Streaming<Document>) {
    let ended = async { while let Ok(Some(_)) = stream.message().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the stream ends");
}

#[tokio::test]
async fn who_comes_in_anew_takes_the_place_of_the_older_certificate() {
    let site = Site::start("anew", &[]);
    let admin = site.admin();
    let token = || admin.ok(&["host", "token", "--name", "h1"]).trim().to_owned();
    let word = |line: String| line.trim().rsplit(' ').next().expect("a token").to_owned();
    site.join("h1", &word(token()), "127.77.244.1");
    let url = site.url();
    let old = site.credentials("h1");
    let dialer = Dialer::new(&old).expect("a dialer");
    let mut present =
        TrustClient::new(dialer.connect(&url, |endpoint| endpoint).await.expect("connect"));
    present.present(Document::default()).await.expect("the certificate counts");

    // A token that is refused costs a host nothing, whoever it was for.
    site.stop_agent("h1");
    let users = word(admin.ok(&["user", "token", "eve", "--role", "viewer"]));
    let said = site.join_refused("h1", &users);
    assert!(said.contains("for a user, who runs `faultbed context add`"), "{said}");
    assert_eq!(site.credentials("h1"), old);
    let ran = site.user("eve").run(&["context", "add", &word(token())]);
    assert!(ran.stderr.contains("on which one runs `faultbed-agent join`"), "{}", ran.stderr);
    site.user("eve").ok(&["context", "add", &users]);

    site.join("h1", &word(token()), "127.77.244.1");
    // Refused, or cut off already.
    present.present(Document::default()).await.expect_err("it counts no more");
    let channel = dialer.connect(&url, |endpoint| endpoint).await.expect("connect");
    let status = TrustClient::new(channel).present(Document::default()).await;
    let status = status.expect_err("nor on a new connection");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("host token --name h1"), "{status:?}");
    wait_for("the host is up", PATIENCE, || {
        let host = &admin.status().hosts[0];
        (host.state == HostState::Up).then_some(()).ok_or(format!("{host:?}"))
    });

    // The same for a user, and for streams that were open before.
    let first = let_in(&site, &admin, "ada", "ada-1");
    let stream = watch(&first.credentials(), &url).await;
    let second = let_in(&site, &admin, "ada", "ada-2");
    end_of(stream).await;
    let ran = first.run(&["status"]);
    assert!(ran.code != 0 && ran.stderr.contains("faultbed user token ada"), "{}", ran.stderr);
    assert_eq!(second.status().lab.as_str(), "anew");
    let stream = watch(&second.credentials(), &url).await;
    admin.ok(&["user", "remove", "ada"]);
    end_of(stream).await;
}

#[tokio::test]
async fn a_stream_ends_with_its_certificate_unless_that_is_renewed() {
    let site = Site::start("ends", &["--certificate-lifetime", "5s"]);
    let admin = site.admin();
    let user = let_in(&site, &admin, "ada", "ada");
    let held = user.credentials();
    let until = held.facts().expect("a certificate").until_unix_s;
    end_of(watch(&held, &site.url()).await).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    assert!(now >= until, "it ended at {now}, before its certificate at {until}");
}
