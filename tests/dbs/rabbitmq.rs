//! RabbitMQ with a quorum queue, written and read with Debian's client for Python.

use std::net::TcpListener;

use faultbed_tests::{lab::Lab, wait::wait_for};

use crate::life::{self, Database, PATIENCE};

// One host more than brokers, for the one that comes later: no two can share one.
const FILE: &str = "[lab]\nhosts = 4\n\n[cluster.mq]\nblueprint = \"rabbitmq\"\n";

/// Opens a channel at one broker with the queue that all keys go into, three copies of it.
const OPEN: &str = r#"
import sys, pika
host, port, key = sys.argv[1:]
connection = pika.BlockingConnection(pika.ConnectionParameters(
    host=host, port=int(port), socket_timeout=3, stack_timeout=4, blocked_connection_timeout=4))
channel = connection.channel()
channel.queue_declare("kv", durable=True, arguments={"x-queue-type": "quorum"})
"#;

/// A quorum queue confirms what a majority of its copies has.
const PUT: &str = r#"
channel.confirm_delivery()
channel.basic_publish("", "kv", key.encode(), mandatory=True)
"#;

/// What is not acknowledged goes back into the queue when the connection ends.
const HAS: &str = r#"
while True:
    method, _, body = channel.basic_get("kv")
    if method is None: sys.exit(1)
    if body == key.encode(): break
"#;

struct RabbitMq;

fn run(script: &str, at: &str, key: &str) -> bool {
    let (host, port) = life::host_port(at);
    // Debian's own: a python3 elsewhere in PATH does not have its packages.
    life::said("/usr/bin/python3", &["-c", &format!("{OPEN}{script}"), host, port, key]).is_some()
}

impl Database for RabbitMq {
    fn role(&self) -> &'static str {
        "mq"
    }

    fn port(&self) -> &'static str {
        "amqp"
    }

    fn question(&self) -> &'static [u8] {
        b"AMQP\x00\x00\x09\x01"
    }

    fn put(&self, at: &str, key: &str) -> bool {
        run(PUT, at, key)
    }

    fn has(&self, at: &str, key: &str) -> bool {
        run(HAS, at, key)
    }
}

pub(crate) fn quorum_queues_live_through_the_list() {
    let lab = Lab::up("rabbitmq", FILE);
    // Nobody leads before there is a queue.
    wait_for("a queue", PATIENCE, || {
        let status = lab.status();
        let at = status.nodes[0].endpoints["amqp"].replace("amqp://", "");
        if RabbitMq.put(&at, "first") { Ok(()) } else { Err("not acknowledged".to_owned()) }
    });
    life::live(&lab, &RabbitMq);
    // Brokers share machines with whatever else speaks Erlang.
    let own = TcpListener::bind("127.129.255.254:4369");
    assert!(own.is_ok(), "an epmd listens at every address of the machine: {own:?}");
}
