//! A server of this test gives programs, lies, breaks off and leads elsewhere.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use faultbed_common::program::{Pushed, Sha256, Web};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::super::fetch::{FetchError, Fetcher, is_here};
use crate::session::Known;

const PROGRAM: &[u8] = b"#!/bin/sh\nexit 0\n";

/// What a server answers: the first lines, and the body.
type Answers = BTreeMap<&'static str, (String, Vec<u8>)>;

/// A server with a certificate of its own CA, and a host beside it.
struct Ground {
    dir: tempfile::TempDir,
    port: u16,
    /// The heads of all requests.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Ground {
    async fn new(answers: impl FnOnce(u16) -> Answers) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = names.signed_by(&key, &ca).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let serve = serve(listener, config, Arc::new(answers(port)), Arc::clone(&asked));
        tokio::spawn(serve);
        Self { dir, port, asked }
    }

    fn host(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    fn fetcher(&self) -> Fetcher {
        let known = Known { coordinators: Vec::new(), identity: None };
        let fetcher = Fetcher::new(self.host(), "h1".parse().unwrap(), known);
        fetcher.trusting(Some(self.dir.path().join("ca.pem")))
    }

    fn at(&self, path: &str, data: &[u8]) -> Pushed {
        let url = format!("https://localhost:{}{path}#sha256={}", self.port, Sha256::of(data));
        Pushed::from_web(&url.parse::<Web>().unwrap())
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

async fn serve(
    listener: TcpListener,
    config: rustls::ServerConfig,
    answers: Arc<Answers>,
    asked: Arc<Mutex<Vec<String>>>,
) {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    while let Ok((stream, _)) = listener.accept().await {
        // Who does not trust us goes away here.
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read_exact(&mut byte).await.is_err() {
                break;
            }
            head.extend(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let missing = ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n".to_owned(), Vec::new());
        // One that goes on has an answer of its own.
        let resumed = format!("{path}+range");
        let is_resumed = head.to_ascii_lowercase().contains("\r\nrange:");
        let answer = answers.get(resumed.as_str()).filter(|_| is_resumed);
        let (first, body) = answer.or_else(|| answers.get(path.as_str())).unwrap_or(&missing);
        asked.lock().unwrap().push(head);
        let text = format!("{first}Connection: close\r\n\r\n");
        let _gone = stream.write_all(text.as_bytes()).await;
        let _gone = stream.write_all(body).await;
        let _gone = stream.shutdown().await;
    }
}

fn whole(data: &[u8]) -> (String, Vec<u8>) {
    (format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", data.len()), data.to_vec())
}

fn leads(to: &str) -> (String, Vec<u8>) {
    let head = format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n");
    (head, Vec::new())
}

#[tokio::test]
async fn a_program_comes_from_a_server_with_a_ca_of_the_hosts_setting_once() {
    let ground = Ground::new(|_| Answers::from([("/v1/kv", whole(PROGRAM))])).await;
    let pushed = ground.at("/v1/kv", PROGRAM);
    let fetcher = ground.fetcher();
    fetcher.fetch(&pushed).await.unwrap();
    let file = pushed.file(&ground.host());
    assert_eq!(file.file_name().unwrap(), "kv");
    assert!(std::process::Command::new(&file).status().unwrap().success());
    fetcher.fetch(&pushed).await.unwrap();
    assert!(is_here(&ground.host(), &pushed) && ground.asked() == 1);
    // By the certificates of this machine alone nobody knows that server.
    std::fs::remove_dir_all(ground.host()).unwrap();
    let refused = ground.fetcher().trusting(None).fetch(&pushed).await.unwrap_err().to_string();
    let is_said = refused.contains("fetch_ca in agent.toml");
    assert!(is_said && !is_here(&ground.host(), &pushed), "{refused}");
}

#[tokio::test]
async fn another_content_is_refused_and_not_asked_for_again_at_once() {
    let ground = Ground::new(|_| Answers::from([("/kv", whole(b"#!/bin/sh\nexit 1\n"))])).await;
    let pushed = ground.at("/kv", PROGRAM);
    let fetcher = ground.fetcher();
    for _ in 0..2 {
        let wrong = fetcher.fetch(&pushed).await.unwrap_err();
        assert!(matches!(wrong, FetchError::Wrong { .. }), "{wrong}");
        let text = wrong.to_string();
        assert!(text.contains("write the hash of the file that you mean"), "{text}");
        assert!(text.contains(pushed.content.sha256.as_str()), "{text}");
    }
    assert_eq!(ground.asked(), 1);
    assert!(!is_here(&ground.host(), &pushed));
}

#[tokio::test]
async fn a_server_may_lead_elsewhere_by_https_alone_and_not_for_ever() {
    let ground = Ground::new(|port| {
        Answers::from([
            ("/latest", leads("/v1/kv")),
            ("/far", leads(&format!("https://localhost:{port}/latest"))),
            ("/v1/kv", whole(PROGRAM)),
            ("/open", leads("http://localhost/kv")),
            ("/file", leads("file:///etc/shadow")),
            ("/round", leads("/round")),
        ])
    })
    .await;
    ground.fetcher().fetch(&ground.at("/far", PROGRAM)).await.unwrap();
    assert_eq!(ground.asked(), 3);
    for (path, why) in [
        ("/open", "nothing is fetched but by https"),
        ("/file", "nothing is fetched but by https"),
        ("/round", "steps that are followed"),
        ("/nowhere", "answers 404"),
    ] {
        let refused = ground.fetcher().fetch(&ground.at(path, b"other")).await.unwrap_err();
        assert!(refused.to_string().contains(why), "{path}: {refused}");
    }
}

#[tokio::test]
async fn what_broke_off_goes_on_where_it_ended() {
    let ground = Ground::new(|_| {
        let rest = &PROGRAM[8..];
        let part = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes 8-{}/{}\r\n",
            rest.len(),
            PROGRAM.len() - 1,
            PROGRAM.len()
        );
        Answers::from([
            ("/kv", (whole(PROGRAM).0, PROGRAM[..8].to_vec())),
            ("/kv+range", (part, rest.to_vec())),
        ])
    })
    .await;
    let pushed = ground.at("/kv", PROGRAM);
    let broken = ground.fetcher().fetch(&pushed).await.unwrap_err();
    assert!(matches!(broken, FetchError::Broken { bytes: 8, .. }), "{broken}");
    ground.fetcher().fetch(&pushed).await.unwrap();
    assert!(ground.asked.lock().unwrap()[1].contains("bytes=8-"));
    assert_eq!(std::fs::read(pushed.file(&ground.host())).unwrap(), PROGRAM);
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_comes() {
    let head = |bytes: u64| (format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n"), Vec::new());
    let ground = Ground::new(|_| Answers::from([("/huge", head(5 << 30))])).await;
    let refused = ground.fetcher().fetch(&ground.at("/huge", PROGRAM)).await.unwrap_err();
    assert!(refused.to_string().contains("a program has at most"), "{refused}");
}
