//! NATS with JetStream, written and read in its own protocol.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use faultbed_tests::lab::Lab;

use crate::life::{self, Database, no_bypass};

const FILE: &str = "[lab]\nhosts = 3\n\n[cluster.n]\nblueprint = \"nats\"\n";

/// How long an answer is waited for.
const ANSWER: Duration = Duration::from_secs(3);

struct Nats;

/// Asks something at one server, and gives the answer.
fn request(at: &str, subject: &str, text: &str) -> Option<String> {
    let address: SocketAddr = at.parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&address, ANSWER).ok()?;
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    let count = text.len();
    let asked = format!(
        "CONNECT {{\"verbose\":false}}\r\nSUB reply 1\r\nPUB {subject} reply {count}\r\n{text}\r\n"
    );
    stream.write_all(asked.as_bytes()).ok()?;
    let mut lines = BufReader::new(stream).lines();
    loop {
        let line = lines.next()?.ok()?;
        if line.starts_with("MSG reply ") {
            return lines.next()?.ok();
        }
    }
}

impl Database for Nats {
    fn role(&self) -> &'static str {
        "n"
    }

    fn port(&self) -> &'static str {
        "client"
    }

    fn question(&self) -> &'static [u8] {
        b"PING\r\n"
    }

    fn greets(&self) -> bool {
        true
    }

    /// A stream of three copies acknowledges what a majority of them has.
    fn put(&self, at: &str, key: &str) -> bool {
        let stream = r#"{"name":"KV","subjects":["kv.*"],"num_replicas":3,"retention":"limits","storage":"file","discard":"old","max_consumers":-1,"max_msgs":-1,"max_bytes":-1,"max_age":0}"#;
        request(at, "$JS.API.STREAM.CREATE.KV", stream).is_some()
            && request(at, &format!("kv.{key}"), "1").is_some_and(|ack| ack.contains("\"seq\""))
    }

    fn has(&self, at: &str, key: &str) -> bool {
        let wanted = format!("{{\"last_by_subj\":\"kv.{key}\"}}");
        request(at, "$JS.API.STREAM.MSG.GET.KV", &wanted).is_some_and(|a| a.contains("\"data\""))
    }
}

pub(crate) fn jetstream_lives_through_the_list() {
    life::live(&Lab::up("nats", FILE), &Nats);
}

/// Servers find each other over TLS, and each verifies the other.
pub(crate) fn routes_over_tls() {
    let lab = Lab::up("nats-tls", &format!("{FILE}tls = true\n"));
    lab.wait_ready();
    no_bypass(&lab);
    let host = lab.node("n-1").host;
    let conf = lab.dir().join(format!("hosts/{host}/nodes/n-1/nats.conf"));
    let conf = std::fs::read_to_string(conf).expect("read what it was told");
    assert!(conf.contains("verify: true"), "with this a route without TLS is none: {conf}");
}
