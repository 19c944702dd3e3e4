//! What a host cannot do with a certificate of its own: speak for another one, read what is another's, or
//! say what nobody can read.

use faultbed_common::{report::HostReport, status::HostState};
use faultbed_proto::v1::{
    Document, ExecPart, FromAgent, agent_client::AgentClient, exec_client::ExecClient, exec_part,
    from_agent,
};
use faultbed_tests::{lab::PATIENCE, wait::wait_for};
use faultbed_trust::dial::Dialer;
use tonic::{Code, Status, transport::Channel};

use super::site::Site;

/// Longer than any message that a coordinator takes.
const TOO_LONG: usize = 5 << 20;

const HELLO: &str =
    r#"{"lab":"owns","host":"h1","address":"127.77.241.1","dir":"/tmp/x","version":"1"}"#;

fn denied(result: Result<(), Status>, words: &str) {
    let status = result.expect_err("it is refused");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains(words), "{status:?}");
}

/// Says hello as h1 and then something else; returns when the coordinator has ended the session.
async fn say(channel: Channel, hello: &str, more: Option<String>) -> Result<(), Status> {
    let (send, said) = tokio::sync::mpsc::channel(2);
    let kinds = [from_agent::Kind::Hello(hello.to_owned())].into_iter();
    for kind in kinds.chain(more.map(from_agent::Kind::Report)) {
        send.send(FromAgent { kind: Some(kind) }).await.expect("there is room");
    }
    let said = tokio_stream::wrappers::ReceiverStream::new(said);
    let mut orders = AgentClient::new(channel).session(said).await?.into_inner();
    let ended = async { while let Ok(Some(_)) = orders.message().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the session is ended");
    drop(send);
    Ok(())
}

fn forged(host: &str) -> String {
    let host = Some(host.parse().expect("a name"));
    let report = HostReport { host, version: "forged".to_owned(), ..HostReport::default() };
    serde_json::to_string(&report).expect("JSON")
}

#[tokio::test]
async fn a_host_neither_speaks_for_nor_reads_another_one() {
    let site = Site::start("owns", &[]);
    let admin = site.admin();
    for (host, address) in [("h1", "127.77.241.1"), ("h2", "127.77.241.2")] {
        let line = admin.ok(&["host", "token", "--name", host]);
        site.join(host, line.trim().rsplit(' ').next().expect("a token"), address);
    }
    let dialer = Dialer::new(&site.credentials("h1")).expect("a dialer");
    let channel = dialer.connect(&site.url(), |endpoint| endpoint).await.expect("connect");

    let fetch = async |host: &str| {
        let sha256 = "a".repeat(64);
        let json = format!(r#"{{"host":"{host}","sha256":"{sha256}","offset":0}}"#);
        AgentClient::new(channel.clone()).fetch_content(Document { json }).await.map(drop)
    };
    denied(fetch("h2").await, "may not speak for host h2");
    denied(fetch("h1").await, "no node of host h1 runs content");
    let head = exec_part::Kind::Head(r#"{"host":"h2"}"#.to_owned());
    let parts = tokio_stream::once(ExecPart { kind: Some(head) });
    let attended = ExecClient::new(channel.clone()).attend(parts).await.map(drop);
    denied(attended, "may not speak for host h2");

    // Its own agent would take the session back.
    site.stop_agent("h1");
    say(channel.clone(), HELLO, Some(forged("h2"))).await.expect("it may say hello");
    say(channel.clone(), HELLO, Some("{".to_owned())).await.expect("it may say hello");
    let long = format!("{}{}", forged("h1"), " ".repeat(TOO_LONG));
    say(channel.clone(), HELLO, Some(long)).await.expect("it may say hello");
    let nonsense = say(channel.clone(), "{", None).await.expect_err("it is refused");
    assert_eq!(nonsense.code(), Code::InvalidArgument, "{nonsense:?}");
    wait_for("nothing of it counts", PATIENCE, || {
        let status = admin.status();
        let is_forged = status.hosts.iter().any(|host| host.version == "forged");
        assert!(!is_forged, "{:?}", status.hosts);
        let other = status.hosts.iter().find(|host| host.name.as_str() == "h2");
        let is_fresh =
            other.is_some_and(|h| h.state == HostState::Up && h.seen_age_ms < Some(9000));
        is_fresh.then_some(()).ok_or_else(|| format!("{:?}", status.hosts))
    });
}
