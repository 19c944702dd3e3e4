//! Probes against small servers.

use std::{fs, time::Duration};

use faultbed_common::duration::Span;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

fn ask(ask: Ask, expect: Option<&str>) -> Probe {
    let timeout = Span(Duration::from_secs(2));
    Probe { ask, expect: expect.map(str::to_owned), timeout }
}

fn asker(dir: &std::path::Path) -> Asker {
    Asker::at(dir.to_owned(), BTreeMap::new(), Incarnation(1))
}

/// A server that gives these answers in turn, over as few connections as it is asked on; then says
/// how many these were.
async fn http(answers: Vec<&'static str>) -> (String, tokio::task::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let mut left = answers.into_iter();
        let mut connections = 0;
        loop {
            let Some(first) = left.next() else { return connections };
            let (mut stream, _) = listener.accept().await.unwrap();
            connections += 1;
            let mut answer = Some(first);
            while let Some(text) = answer {
                let mut request = vec![0; 4096];
                if stream.read(&mut request).await.unwrap_or(0) == 0 {
                    break;
                }
                stream.write_all(text.as_bytes()).await.unwrap();
                if text.contains("close") {
                    break;
                }
                answer = left.next();
            }
        }
    });
    (address, server)
}

fn get(address: &str, path: &str) -> Ask {
    Ask::Http { method: "GET".to_owned(), url: format!("{address}{path}"), body: String::new() }
}

#[tokio::test]
async fn http_answers_are_judged_over_one_connection() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"health\":\"true\"}";
    let sick = "HTTP/1.1 503 Sick\r\ncontent-length: 9\r\n\r\nno leader";
    let (address, server) = http(vec![ok, ok, sick, sick, ok]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut asker = asker(dir.path());
    let plain = ask(get(&address, "/health"), None);
    let strict = ask(get(&address, "/health"), Some("status == 200 and json.health == 'true'"));
    let unlike = ask(get(&address, "/health"), Some("json.health == 'false'"));
    assert_eq!(asker.check(&plain).await, Ok(()));
    assert_eq!(asker.check(&strict).await, Ok(()));
    let why = asker.check(&plain).await.unwrap_err();
    assert_eq!(why, "GET /health answered 503: no leader");
    let why = asker.check(&strict).await.unwrap_err();
    assert_eq!(why, "GET /health answered 503: no leader");
    let why = asker.check(&unlike).await.unwrap_err();
    assert_eq!(why, "GET /health answered 200: expected health \"false\", got \"true\"");
    drop(asker);
    assert_eq!(server.await.unwrap(), 1);
}

#[tokio::test]
async fn a_connection_that_was_closed_between_two_questions_is_no_failure() {
    let last = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let (address, server) = http(vec![last, last]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut asker = asker(dir.path());
    let probe = ask(get(&address, ""), None);
    assert_eq!(asker.check(&probe).await, Ok(()));
    assert_eq!(asker.check(&probe).await, Ok(()));
    drop(asker);
    assert_eq!(server.await.unwrap(), 2);
}

#[tokio::test]
async fn silence_ends_with_the_time_that_was_given() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let timeout = Span(Duration::from_millis(50));
    let probe = Probe { timeout, ..ask(get(&address, "/"), None) };
    let why = asker(dir.path()).check(&probe).await.unwrap_err();
    assert!(why.contains("no answer in 50ms"), "{why}");
}

#[tokio::test]
async fn a_port_is_open_or_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let probe = ask(Ask::Tcp { address: address.clone() }, None);
    assert_eq!(asker(dir.path()).check(&probe).await, Ok(()));
    drop(listener);
    let why = asker(dir.path()).check(&probe).await.unwrap_err();
    assert!(why.starts_with("a connection on port ") && why.contains("refused"), "{why}");
}

#[tokio::test]
async fn commands_are_judged_by_their_exit_and_killed_when_they_take_long() {
    let dir = tempfile::tempdir().unwrap();
    let mut asker = asker(dir.path());
    let command = |script: &str, expect| {
        ask(Ask::Command { argv: ["sh", "-c", script].map(str::to_owned).to_vec() }, expect)
    };
    assert_eq!(asker.check(&command("echo up", Some("text == 'up\n'"))).await, Ok(()));
    assert_eq!(asker.check(&command("exit 3", Some("status == 3"))).await, Ok(()));
    let why = asker.check(&command("echo no; exit 3", None)).await.unwrap_err();
    assert_eq!(why, "`sh -c echo no; exit 3` exited with 3: no");
    let why = asker.check(&command("echo no", Some("'yes' in text"))).await.unwrap_err();
    assert_eq!(why, "`sh -c echo no`: expected \"yes\", got \"no\"");
    let slow = command("echo $$ > pid; sleep 1000 & wait", None);
    let slow = Probe { timeout: Span(Duration::from_millis(200)), ..slow };
    assert!(asker.check(&slow).await.is_err());
    let pid: i32 = fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
    let group = rustix::process::Pid::from_raw(pid).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while rustix::process::test_kill_process_group(group).is_ok() {
        assert!(Instant::now() < deadline, "its process group lives");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_line_that_was_printed_once_stays_true_over_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let run = crate::node::run_dir(dir.path(), Incarnation(1));
    fs::create_dir_all(&run).unwrap();
    let log = run.join("output.log");
    let probe = ask(Ask::Log { pattern: "^ready to (serve|rumble)".to_owned() }, None);
    let mut asker = asker(dir.path());
    assert!(asker.check(&probe).await.is_err());
    fs::write(&log, "starting\nready to se").unwrap();
    assert!(asker.check(&probe).await.is_err(), "half a line is none");
    fs::write(&log, "starting\nready to serve\n").unwrap();
    assert_eq!(asker.check(&probe).await, Ok(()));
    fs::rename(&log, run.join("output.log.1")).unwrap();
    fs::write(&log, "later\n").unwrap();
    assert_eq!(asker.check(&probe).await, Ok(()));
}

#[tokio::test]
async fn grpc_health_is_asked() {
    let (reporter, service) = tonic_health::server::health_reporter();
    let status = tonic_health::ServingStatus::Serving;
    reporter.set_service_status("kv", status).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
    );
    let dir = tempfile::tempdir().unwrap();
    let mut asker = asker(dir.path());
    let grpc = |service: &str| {
        ask(Ask::Grpc { address: address.clone(), service: service.to_owned() }, None)
    };
    assert_eq!(asker.check(&grpc("kv")).await, Ok(()));
    assert!(asker.check(&grpc("other")).await.is_err());
    reporter.set_service_status("kv", tonic_health::ServingStatus::NotServing).await;
    assert!(asker.check(&grpc("kv")).await.unwrap_err().contains("NOT_SERVING"));
}

#[tokio::test]
async fn a_role_that_is_not_told_in_time_does_not_delay_ready() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n\"L1\"";
    let (ready, _ready) = http(vec![ok; 20]).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let role = silent.local_addr().unwrap().to_string();
    let (tell, mut told) = mpsc::channel(16);
    let task = tokio::spawn(prober(&ready, &role).run(tell));
    let found = tokio::time::timeout(Duration::from_secs(10), told.recv()).await;
    assert_eq!(found.unwrap().unwrap().found, Found::Ready(None));
    task.abort();
}

fn prober(ready: &str, role: &str) -> Prober {
    let probe = Probe { timeout: Span(Duration::from_secs(60)), ..ask(get(role, "/"), None) };
    Prober {
        node: "kv-1".parse().unwrap(),
        incarnation: Incarnation(1),
        ready: Some(ask(get(ready, "/"), None)),
        role: Some(RoleProbe {
            probe,
            leader: Some("json == 'L1'".to_owned()),
            state: None,
            term: None,
            leads: None,
        }),
        dir: std::env::temp_dir(),
        env: BTreeMap::new(),
        search: Vec::new(),
        was_ready: false,
    }
}

#[tokio::test]
async fn a_role_that_is_not_told_says_why() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n\"L1\"";
    let sick = "HTTP/1.1 503 Sick\r\ncontent-length: 9\r\n\r\nno quorum";
    let (ready, _ready) = http(vec![ok; 20]).await;
    let (role, _role) = http(vec![sick, ok]).await;
    let (tell, mut told) = mpsc::channel(16);
    let mut asked = prober(&ready, &role);
    asked.role.as_mut().unwrap().leader = Some("json.leads".to_owned());
    asked.role.as_mut().unwrap().probe.expect = Some("status == 200".to_owned());
    let task = tokio::spawn(asked.run(tell));
    let Found::Ready(Some(found)) = told.recv().await.unwrap().found else { panic!("its role") };
    assert_eq!((found.leader, found.state), (None, None));
    let why = found.why.unwrap();
    assert!(why.starts_with("its role is not known: GET / answered 503"), "{why}");
    task.abort();
}

#[tokio::test]
async fn one_failure_is_an_accident_and_two_make_a_node_unready() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n\"L1\"";
    let sick = "HTTP/1.1 500 Sick\r\ncontent-length: 0\r\n\r\n";
    // Ready and role, each over a connection of its own.
    let (ready, _ready) = http(vec![sick, ok, sick, ok, sick, sick, ok]).await;
    let (role, _role) = http(vec![ok; 20]).await;
    let (tell, mut told) = mpsc::channel(16);
    let task = tokio::spawn(prober(&ready, &role).run(tell));
    let mut next = async || told.recv().await.unwrap().found;
    assert!(matches!(next().await, Found::NotReady { was_ready: false, .. }));
    let leads = Role { state: Some("leader".into()), leader: Some(true), ..Role::default() };
    // Whoever sees that it is ready sees in the same moment that it leads.
    assert_eq!(next().await, Found::Ready(Some(leads.clone())));
    // The single failure is not told; the second of two is.
    assert!(matches!(next().await, Found::NotReady { was_ready: true, .. }));
    assert_eq!(next().await, Found::Ready(Some(leads)));
    task.abort();
}
