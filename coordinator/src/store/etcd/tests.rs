//! Tests of the etcd back end alone: addresses, errors for people, members that die.

use std::{net::TcpListener, path::Path, sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::time::Instant;

use super::{KEEPALIVE_EVERY, server::EtcdServer};
use crate::store::{
    EtcdAddress, Op, Store, StoreChoice, StoreError, Txn,
    contract::{SOON, put, value},
    open,
};

fn choice(text: &str) -> StoreChoice {
    text.parse().unwrap()
}

async fn opened(text: &str) -> Arc<dyn Store> {
    open(&choice(text), Path::new("/nowhere")).await.unwrap()
}

#[test]
fn addresses_are_read_and_written_alike() {
    for text in [
        "embedded",
        "etcd=http://127.0.0.1:2379",
        "etcd=http://a:1,https://b:2",
        "etcd=http://[::1]:2379/team-a",
        "etcd=http://a:1/x/y,http://b:2/x/y",
    ] {
        assert_eq!(choice(text).to_string(), text);
    }
    let address: EtcdAddress = "http://a:1/team/, http://b:2/team".parse().unwrap();
    assert_eq!(address.urls(), ["http://a:1", "http://b:2"]);
    assert_eq!(address.namespace(), "/team");
}

#[test]
fn malformed_addresses_are_refused_with_a_pattern_to_copy() {
    for (text, why) in [
        ("etcd=127.0.0.1:2379", "no scheme"),
        ("etcd=", "no scheme"),
        ("etcd=ftp://h:1", "must be http or https"),
        ("etcd=http://h", "a host and a port"),
        ("etcd=http://h:port", "a host and a port"),
        ("etcd=http://:2379", "a host and a port"),
        ("etcd=http://u@h:1", "at most a path"),
        ("etcd=http://h:1/a,http://h:2/b", "the same path"),
        ("redis", "write `embedded` or `etcd="),
    ] {
        let refused = text.parse::<StoreChoice>().unwrap_err().to_string();
        assert!(refused.contains(why) && refused.contains("write "), "{text}: {refused}");
    }
}

#[tokio::test]
async fn a_dead_port_is_named_at_once() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let began = Instant::now();
    let text = format!("etcd=http://127.0.0.1:{port}");
    let refused = open(&choice(&text), Path::new("/nowhere")).await.unwrap_err();
    let says = format!("cannot reach etcd at http://127.0.0.1:{port}: connection refused");
    assert_eq!(refused, StoreError::Unavailable(says));
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn somebody_who_is_not_etcd_is_not_waited_for_for_ever() {
    // Accepts, and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let choice = choice(&format!("etcd=http://{}", listener.local_addr().unwrap()));
    let opening = open(&choice, Path::new("/nowhere"));
    let refused = tokio::time::timeout(SOON, opening).await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("cannot reach etcd at http://127.0.0.1:"), "{refused}");
    assert!(refused.contains("no answer"), "{refused}");
}

#[tokio::test]
async fn namespaces_of_one_etcd_do_not_meet() {
    let server = EtcdServer::start().await;
    let a = opened(&format!("etcd={}/a", server.url())).await;
    let b = opened(&format!("etcd={}/b", server.url())).await;
    let whole = opened(&format!("etcd={}", server.url())).await;
    let first = put(&*a, "/k", "1").await;
    put(&*b, "/k", "2").await;
    assert_eq!(value(&*a, "/k").await.as_deref(), Some("1"));
    assert_eq!(value(&*whole, "/b/k").await.as_deref(), Some("2"));
    let mut watch = b.watch(b"/", first).await.unwrap();
    let batch = tokio::time::timeout(SOON, watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(batch.events[0].key(), b"/k");
    a.txn(Txn { then: vec![Op::DeletePrefix("/".into())], ..Txn::default() }).await.unwrap();
    assert_eq!(value(&*b, "/k").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_killed_server_and_the_client_finds_back() {
    let mut server = EtcdServer::start().await;
    let store = opened(&format!("etcd={}", server.url())).await;
    let lease = store.lease_grant(SOON * 10).await.unwrap();
    let last = put(&*store, "a", "1").await;
    let mut watch = store.watch(b"", last.next()).await.unwrap();
    server.kill();
    let ended = tokio::time::timeout(SOON, watch.next()).await.unwrap().unwrap();
    assert!(matches!(ended, Err(StoreError::Unavailable(_))), "{ended:?}");
    let refused = store.range(b"").await.unwrap_err().to_string();
    assert!(refused.ends_with("connection refused"), "{refused}");
    let write = Txn { then: vec![Op::put("a", "2")], ..Txn::default() };
    let refused = store.txn(write).await.unwrap_err().to_string();
    assert!(refused.ends_with("connection refused"), "{refused}");
    server.respawn();
    server.answers().await;
    assert_eq!(value(&*store, "a").await.as_deref(), Some("1"));
    store.lease_keep(lease).await.unwrap();
    assert_eq!(put(&*store, "a", "2").await, last.next());
}

#[tokio::test]
async fn a_stopped_server_is_given_up_in_time_and_found_again() {
    let server = EtcdServer::start().await;
    let store = opened(&format!("etcd={}", server.url())).await;
    put(&*store, "a", "1").await;
    server.pause();
    let asked = tokio::time::timeout(SOON, store.range(b"a")).await.unwrap();
    let refused = asked.unwrap_err().to_string();
    assert!(refused.contains("no answer"), "{refused}");
    server.go_on();
    server.answers().await;
    assert_eq!(value(&*store, "a").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_when_a_member_of_three_dies() {
    let mut servers = EtcdServer::start_cluster(3).await;
    let urls: Vec<_> = servers.iter().map(EtcdServer::url).collect();
    let store = opened(&format!("etcd={}", urls.join(","))).await;
    put(&*store, "n", "0").await;
    servers[0].kill();
    let deadline = Instant::now() + SOON;
    let mut done = 0;
    // Some answers are lost with the member and while another leader is elected, but none is
    // refused because the balancer chose the dead one.
    while done < 50 {
        assert!(Instant::now() < deadline, "only {done} writes went through");
        let txn = Txn { then: vec![Op::put("n", done.to_string())], ..Txn::default() };
        match store.txn(txn).await {
            Ok(_) => done += 1,
            Err(error) => assert!(!error.to_string().contains("connection refused"), "{error}"),
        }
    }
}

#[tokio::test]
async fn an_idle_watch_outlives_the_servers_patience_with_probes() {
    // etcd allows a probe every 5 s and cuts off who sends three in less; ours must go on after
    // that many.
    let server = EtcdServer::start().await;
    let store = opened(&format!("etcd={}", server.url())).await;
    let first = put(&*store, "a", "1").await;
    let mut watch = store.watch(b"", first.next()).await.unwrap();
    // Time has to pass here: it is what the test is about.
    let idle = tokio::time::timeout(KEEPALIVE_EVERY * 7 / 2, watch.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    let next = put(&*store, "a", "2").await;
    let batch = tokio::time::timeout(SOON, watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(batch.revision, next);
}
