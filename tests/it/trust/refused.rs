//! What a coordinator refuses from the network: strangers, other labs, other hosts, nonsense.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use faultbed_common::trust::Token;
use faultbed_proto::v1::{
    Document, FromAgent, agent_client::AgentClient, from_agent, operator_client::OperatorClient,
    trust_client::TrustClient,
};
use faultbed_trust::dial::Dialer;
use tonic::{Code, Status, transport::Channel};

use super::site::Site;

/// How long a coordinator may take to turn nonsense away: a handshake has 5 s.
const TURNED_AWAY_WITHIN: Duration = Duration::from_secs(20);

fn token_of(site: &Site, host: &str) -> Token {
    let line = site.admin().ok(&["host", "token", "--name", host]);
    line.trim().rsplit(' ').next().expect("a token").parse().expect("a token")
}

async fn channel(dialer: &Dialer, url: &str) -> Channel {
    dialer.connect(url, |endpoint| endpoint).await.expect("connect")
}

fn json(text: impl Into<String>) -> Document {
    Document { json: text.into() }
}

async fn status(channel: Channel) -> Result<(), Status> {
    OperatorClient::new(channel).status(Document::default()).await.map(drop)
}

/// Says hello as a host, and what comes of it.
async fn hello(channel: Channel, lab: &str, host: &str) -> Result<(), Status> {
    let hello = format!(
        r#"{{"lab":"{lab}","host":"{host}","address":"127.77.247.9","dir":"/tmp/x","version":"1"}}"#
    );
    let first = FromAgent { kind: Some(from_agent::Kind::Hello(hello)) };
    AgentClient::new(channel).session(tokio_stream::once(first)).await.map(drop)
}

fn refused(result: Result<(), Status>, code: Code, words: &str) {
    let status = result.expect_err("it is refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(words), "{status:?}");
}

#[tokio::test]
async fn strangers_other_labs_and_other_hosts_get_nothing() {
    let site = Site::start("shut", &[]);
    let token = token_of(&site, "h1");
    let url = token.urls[0].clone();
    site.join("h1", &token.to_string(), "127.77.247.1");

    let stranger = Dialer::pinned(&token.ca).expect("a dialer");
    let no_certificate = "show a certificate of this lab";
    let without = channel(&stranger, &url).await;
    refused(status(without.clone()).await, Code::PermissionDenied, no_certificate);
    refused(hello(without, "shut", "h1").await, Code::PermissionDenied, no_certificate);

    let own = Dialer::new(&site.credentials("h1")).expect("a dialer");
    let own = channel(&own, &url).await;
    refused(hello(own.clone(), "shut", "h2").await, Code::PermissionDenied, "may not speak for");
    refused(hello(own.clone(), "other", "h1").await, Code::FailedPrecondition, "this is lab shut");
    refused(status(own.clone()).await, Code::PermissionDenied, "no user of this lab");
    let invite = r#"{"kind":"host","lasts":"1h"}"#;
    let invited = TrustClient::new(own).invite(json(invite)).await.map(drop);
    refused(invited, Code::PermissionDenied, "no user of this lab");

    // A certificate of another lab's CA, shown to this one.
    let other = Site::start("other", &[]);
    let foreign = token_of(&other, "h1");
    other.join("h1", &foreign.to_string(), "127.77.246.1");
    let mut credentials = other.credentials("h1");
    credentials.ca = site.credentials("h1").ca;
    let dialer = Dialer::new(&credentials).expect("a dialer");
    // TLS 1.3 tells a client only after the handshake that its certificate was refused.
    let came_in = match dialer.connect(&url, |endpoint| endpoint).await {
        Ok(channel) => status(channel).await.is_ok(),
        Err(_) => false,
    };
    assert!(!came_in, "a foreign CA lets nobody in");
    // And this lab's hosts do not take another lab's coordinator for theirs.
    let own = Dialer::new(&site.credentials("h1")).expect("a dialer");
    let error = own.connect(&foreign.urls[0], |endpoint| endpoint).await.expect_err("refused");
    assert!(error.to_string().contains("certificate of this lab's CA"), "{error}");
}

#[tokio::test]
async fn nonsense_is_turned_away_and_costs_nobody_else_anything() {
    let site = Site::start("noise", &[]);
    let token = token_of(&site, "h1");
    let url = token.urls[0].clone();
    let stranger = Dialer::pinned(&token.ca).expect("a dialer");
    let mut client = TrustClient::new(channel(&stranger, &url).await);
    let malformed = client.join(json("{")).await.map(drop);
    refused(malformed, Code::InvalidArgument, "read join request");
    let request = r#"{"lab":"noise","id":"00","secret":"x","request":"-----BEGIN"}"#;
    let no_request = client.join(json(request)).await.map(drop);
    refused(no_request, Code::InvalidArgument, "certificate request");
    let oversized = client.join(json("x".repeat(1 << 20))).await.map(drop);
    assert!(oversized.is_err(), "a token is smaller");

    let address = url.strip_prefix("https://").expect("a url").to_owned();
    let noise = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(&address).expect("connect");
        stream.set_read_timeout(Some(TURNED_AWAY_WITHIN)).expect("set timeout");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        (ended, answer)
    });
    let (_ended, answer) = noise.await.expect("read");
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(!text.contains("HTTP/1.1 200"), "nothing is served without TLS: {text}");

    // All that did not cost the token, nor the door.
    site.join("h1", &token.to_string(), "127.77.245.1");
}
