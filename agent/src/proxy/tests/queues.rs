//! Long queues: a change of rules waits for none of them, and they come out whole.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use faultbed_common::{effect::Slice, proxy_spec::LinkEffect};

use super::harness::{Lab, eventually, late, noise};

/// Connections whose queues are full.
const QUEUES: usize = 12;
/// Bytes of each, in pieces of [`PIECE`]: a queue takes a hundred thousand of these.
const BYTES: usize = 5_000_000;
const PIECE: u64 = 64;
/// A worker that went through all queues at once would need seconds.
const CHANGE_MAX: Duration = Duration::from_secs(1);

fn late_pieces(base: Duration) -> LinkEffect {
    let slice = Slice { bytes: PIECE, variation_bytes: 0, delay_us: 0 };
    LinkEffect { slice: Some(slice), ..late(base, base / 10) }
}

#[test]
fn rules_that_flip_wait_for_no_queue_and_every_byte_comes() {
    let mut lab = Lab::start(&["x", "y"]);
    let pairs: Vec<(TcpStream, TcpStream)> = (0..QUEUES).map(|_| lab.join("x", "y")).collect();
    lab.inject("slow", late_pieces(Duration::from_secs(600)), &["x>y"]);
    lab.apply();
    let bytes = noise(3, BYTES);
    for (near, _) in &pairs {
        (&mut &*near).write_all(&bytes).unwrap();
    }
    let pieces = QUEUES * BYTES / usize::try_from(PIECE).unwrap();
    eventually("all of it waits", || lab.evidence("slow", "x>y").delayed_chunks >= pieces as u64);
    let mut slowest = Duration::ZERO;
    for seconds in [400, 500, 300, 350, 200, 100, 60, 50, 40, 30, 20, 10] {
        lab.inject("slow", late_pieces(Duration::from_secs(seconds)), &["x>y"]);
        let began = Instant::now();
        lab.apply();
        slowest = slowest.max(began.elapsed());
    }
    let began = Instant::now();
    lab.heal("slow");
    slowest = slowest.max(began.elapsed());
    println!("{pieces} pieces in {QUEUES} queues: the slowest change took {slowest:.1?}");
    assert!(slowest < CHANGE_MAX, "{slowest:?}");
    thread::scope(|scope| {
        for (_, far) in &pairs {
            scope.spawn(|| {
                let mut got = vec![0; BYTES];
                (&mut &*far).read_exact(&mut got).unwrap();
                assert!(got == bytes, "whole and in order");
            });
        }
    });
}
