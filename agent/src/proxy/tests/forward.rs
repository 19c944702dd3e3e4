//! Without faults: every byte arrives, ends are passed on as they are, and the dead are not waited for.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    thread,
    time::Duration,
};

use faultbed_common::proxy_spec::DialSources;
use rustix::net::sockopt;

use super::harness::{Lab, eventually, noise, pass};

const BULK_BYTES: usize = 100 * 1024 * 1024;

/// Sends a stream and ends it.
fn send(stream: &TcpStream, bytes: &[u8]) {
    (&mut &*stream).write_all(bytes).expect("write");
    stream.shutdown(Shutdown::Write).expect("end the stream");
}

/// Reads a stream to its end.
fn receive(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("read");
    bytes
}

#[test]
fn a_hundred_megabytes_arrive_whole_in_both_directions_at_once() {
    let lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    let (there, back) = (noise(1, BULK_BYTES), noise(2, BULK_BYTES));
    thread::scope(|scope| {
        scope.spawn(|| send(&near, &there));
        scope.spawn(|| send(&far, &back));
        let at_far = scope.spawn(|| receive(&far));
        assert!(receive(&near) == back, "bytes back are not those sent");
        assert!(at_far.join().expect("receive") == there, "bytes there are not those sent");
    });
    drop((near, far));
    eventually("the connection is forgotten", || lab.report().report.connections == 0);
}

#[test]
fn an_answer_arrives_after_the_question_has_ended() {
    let lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    send(&near, b"question");
    assert_eq!(receive(&far), b"question");
    send(&far, b"answer");
    assert_eq!(receive(&near), b"answer");
}

#[test]
fn who_wants_to_see_hosts_is_dialled_from_the_address_of_the_diallers_host() {
    let mut lab = Lab::start(&["x", "y"]);
    let upstream = lab.server("y").local_addr().expect("have an address");
    let host = lab.listen("x").ip();
    let from = |lab: &Lab| {
        let _near = lab.dial("x", "y").expect("dial");
        lab.server("y").accept().expect("accept").1.ip()
    };
    assert_ne!(from(&lab), host, "nobody asked for it");
    let hosts = [(lab.address("x"), host)].into();
    lab.file.spec.sources = DialSources { upstreams: [upstream].into(), hosts };
    lab.apply();
    assert_eq!(from(&lab), host);
    lab.hand_over();
    assert_eq!(from(&lab), host, "the next proxy knows it too");
    // An address that is not this machine's changes nothing.
    lab.file.spec.sources.hosts.insert(lab.address("x"), [192, 0, 2, 1].into());
    lab.apply();
    assert_ne!(from(&lab), host);
}

#[test]
fn small_messages_go_back_and_forth_after_bulk() {
    let lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    let bulk = noise(3, 8 * 1024 * 1024);
    thread::scope(|scope| {
        scope.spawn(|| (&mut &near).write_all(&bulk).expect("write"));
        let mut bytes = vec![0; bulk.len()];
        (&mut &far).read_exact(&mut bytes).expect("read");
        assert!(bytes == bulk);
    });
    for _ in 0..100 {
        pass(&near, &far, "ping");
        pass(&far, &near, "pong");
    }
}

#[test]
fn a_reset_arrives_as_a_reset() {
    let lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    pass(&near, &far, "hello");
    sockopt::set_socket_linger(near.as_fd(), Some(Duration::ZERO)).expect("set linger");
    drop(near);
    let error = (&mut &far).read(&mut [0]).expect_err("the stream was reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_node_that_is_down_resets_its_diallers() {
    let mut lab = Lab::prepare(&["x", "y"]);
    // Nobody listens at this address, and nobody will: it is the proxy's side of another node.
    lab.file.spec.listeners[1].upstream.set_port(1);
    lab.run();
    let read = |near: TcpStream| (&mut &near).read(&mut [0]);
    let error = lab.dial("x", "y").and_then(read).expect_err("the node is down");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn many_connections_are_carried_at_once() {
    let lab = Lab::start(&["x", "y"]);
    let joined: Vec<_> = (0..200).map(|_| lab.join("x", "y")).collect();
    for (number, (near, far)) in joined.iter().enumerate() {
        pass(near, far, &format!("there {number}"));
        pass(far, near, &format!("back {number}"));
    }
    assert_eq!(lab.report().report.connections, 200);
    drop(joined);
    eventually("all are forgotten", || lab.report().report.connections == 0);
}

#[test]
fn a_slow_reader_stops_its_writer_and_then_gets_everything() {
    let lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    near.set_nonblocking(true).expect("set mode");
    let bytes = noise(4, 64 * 1024 * 1024);
    let mut sent = 0;
    // The kernel's buffers and one pipe, and then no more.
    let mut refused = 0;
    while refused < 100 {
        match (&mut &near).write(&bytes[sent..]) {
            Ok(count) => sent += count,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                refused += 1;
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(sent < bytes.len(), "the writer is never stopped");
    }
    near.shutdown(Shutdown::Write).expect("end the stream");
    assert!(receive(&far) == bytes[..sent]);
}
