//! When a coordinator is told what.

use std::sync::Arc;

use faultbed_common::report::{FaultReport, HostReport, LinkEvidence, NodeReport, NodeState};

use super::*;

fn reporter(first: HostReport) -> (Reporter, watch::Sender<Shared>) {
    let (tell, reports) = watch::channel(Arc::new(first));
    let mut reporter = Reporter::new(reports);
    reporter.next().unwrap();
    (reporter, tell)
}

fn node(state: NodeState) -> HostReport {
    let node = NodeReport { observed: state, ..NodeReport::default() };
    HostReport { nodes: [("kv-1".parse().unwrap(), node)].into(), ..HostReport::default() }
}

fn evidence(bytes: u64, remaining_ms: u64) -> HostReport {
    let links = LinkEvidence { held_bytes: bytes, ..LinkEvidence::default() };
    let fault = FaultReport {
        active: true,
        remaining_ms: Some(remaining_ms),
        links: [("kv-1>kv-2".parse().unwrap(), links)].into(),
        ..FaultReport::default()
    };
    HostReport { faults: [("cut-1".parse().unwrap(), fault)].into(), ..HostReport::default() }
}

/// How long it takes until a report is due.
async fn due(reporter: &mut Reporter) -> Duration {
    let began = Instant::now();
    reporter.is_due().await;
    reporter.next().unwrap();
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn transitions_are_told_at_once_and_counters_once_a_second() {
    let (mut reporter, tell) = reporter(node(NodeState::Starting));
    tell.send_replace(Arc::new(node(NodeState::Ready)));
    assert_eq!(due(&mut reporter).await, Duration::ZERO);
    tell.send_replace(Arc::new(evidence(0, 9000)));
    assert_eq!(due(&mut reporter).await, Duration::ZERO);
    tell.send_replace(Arc::new(evidence(1, 8999)));
    assert_eq!(due(&mut reporter).await.as_millis(), REPORT_EVERY.as_millis());
}

#[tokio::test(start_paused = true)]
async fn what_is_in_progress_waits_for_what_comes_of_it_but_not_for_long() {
    let pending = |generation| HostReport {
        generation: faultbed_common::generation::Generation(generation),
        pending: vec!["proxy: applying the rules".to_owned()],
        ..node(NodeState::Ready)
    };
    let (mut reporter, tell) = reporter(node(NodeState::Ready));
    tell.send_replace(Arc::new(pending(2)));
    let came = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(2)).await;
        tell.send_replace(Arc::new(evidence(0, 9000)));
        tell
    });
    assert_eq!(due(&mut reporter).await, Duration::from_millis(2), "only the outcome is told");
    let tell = came.await.unwrap();
    tell.send_replace(Arc::new(pending(3)));
    assert_eq!(due(&mut reporter).await, IN_PROGRESS);
}

#[tokio::test(start_paused = true)]
async fn ages_are_no_news_and_silence_is_broken_now_and_then() {
    let (mut reporter, tell) = reporter(evidence(1, 9000));
    tell.send_replace(Arc::new(HostReport { now_ms: 77, ..evidence(1, 8000) }));
    assert_eq!(due(&mut reporter).await.as_millis(), KEEPALIVE.as_millis());
    assert_eq!(due(&mut reporter).await.as_millis(), KEEPALIVE.as_millis());
}

#[test]
fn coordinators_are_named_by_a_socket_or_an_address() {
    assert_eq!("unix:/run/api.sock".parse(), Ok(Coordinator::Unix("/run/api.sock".into())));
    assert!(matches!("http://10.0.0.1:7".parse(), Ok(Coordinator::Http(_))));
    assert!(matches!("https://c1:7400".parse(), Ok(Coordinator::Https(_))));
    let error = "10.0.0.1".parse::<Coordinator>().unwrap_err();
    assert!(error.contains("unix:PATH"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn where_nothing_is_new_a_word_stands_for_the_report() {
    let (mut reporter, tell) = reporter(node(NodeState::Ready));
    reporter.is_due().await;
    let said = reporter.next().unwrap().kind;
    assert!(matches!(said, Some(from_agent::Kind::Report(_))), "not every coordinator takes it");
    reporter.says_still = true;
    reporter.is_due().await;
    assert!(matches!(reporter.next().unwrap().kind, Some(from_agent::Kind::Still(_))));
    tell.send_replace(Arc::new(node(NodeState::Unready)));
    reporter.is_due().await;
    assert!(matches!(reporter.next().unwrap().kind, Some(from_agent::Kind::Report(_))));
}
