//! Connections that are refused, left without an answer or reset by order, next to nftables and a server that does it.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use faultbed_common::proxy_spec::{Dials, Endings, LinkEffect};
use rustix::{event::PollFlags, net::sockopt};

use crate::kernel::{
    ends::{ending, seen},
    ground::Place,
    proxy::OUT,
    reading::{Like, Reading, Value, millis, row},
    run::{Case, quiet},
    scene::{PATIENCE, Path, Scene, pass, until},
    sys,
};

const AT_ONCE: Like = Like::AtMost(500.0);
/// How long dials get no answer.
const UNANSWERED: Duration = Duration::from_millis(1_500);

pub(super) fn cases() -> Vec<Case> {
    vec![
        quiet("New connections are refused", refuse),
        quiet("New connections get no answer for 1.5 s", no_answer),
        quiet("Existing connections are reset", reset),
    ]
}

/// Has SYNs of the client meet a verdict of nftables, or an effect of ours. Says whether that can be
/// had in full.
fn order(scene: &mut Scene, verdict: &str, dials: Dials) -> bool {
    match scene.proxy() {
        Some(proxy) => {
            proxy.set(&[(OUT, LinkEffect { dials: Some(dials), ..LinkEffect::default() })])
        }
        None => {
            // Rejecting is the business of the input hook.
            let rules = format!(
                "add table inet link\n\
                 add chain inet link enter {{ type filter hook input priority filter; }}\n\
                 add rule inet link enter tcp flags & (syn | ack) == syn {verdict}\n"
            );
            scene.ground().feed(Place::Server, "nft", &["-f", "-"], &rules);
            true
        }
    }
}

fn refuse(scene: &mut Scene) -> Reading {
    let before = scene.join();
    let in_full = order(scene, "reject with tcp reset", Dials::Refuse);
    let begun = Instant::now();
    let dial = scene.begin(|_| {});
    let (error, at) = sys::wait_error(&dial, begun + PATIENCE).expect("the dial fails");
    pass(&before.near, &before.far, b"still there");
    let mut error = row("error", Value::Word(error), Like::Same);
    if scene.path() == Path::Proxy && !in_full {
        error = error.apart(
            "this machine does not let the proxy refuse a SYN (CAP_BPF): it accepts, and resets then",
        );
    }
    scene.heal();
    drop(scene.join());
    vec![
        error,
        row("after", millis(at - begun), AT_ONCE),
        row("a connection that was there", Value::Word("carries on".to_owned()), Like::Same),
        row("a dial after the heal", Value::Word("succeeds".to_owned()), Like::Same),
    ]
}

fn no_answer(scene: &mut Scene) -> Reading {
    let before = scene.join();
    assert!(order(scene, "drop", Dials::TimeOut), "no answer can be had everywhere");
    let begun = Instant::now();
    let dial = scene.begin(|_| {});
    until(begun, UNANSWERED);
    pass(&before.near, &before.far, b"still there");
    let again = sys::info(&dial).retransmits;
    let healed_at = scene.heal();
    let said = sys::wait(&dial, PollFlags::OUT, healed_at + PATIENCE);
    let connected_at = Instant::now();
    assert_eq!(said, Some(PollFlags::OUT), "the dial succeeds after the heal");
    vec![
        row("SYNs again", Value::Count(again.into()), Like::Same),
        row("a connection that was there", Value::Word("carries on".to_owned()), Like::Same),
        row(
            "connected after the heal",
            millis(connected_at - healed_at),
            Like::Near { share: 0.1, slack: 250.0 },
        ),
    ]
}

fn reset(scene: &mut Scene) -> Reading {
    let joined = scene.join();
    // Bytes that the client has not read: they die with the connection.
    (&joined.far).write_all(b"unread").expect("write");
    let arrived = sys::wait(&joined.near, PollFlags::IN, Instant::now() + PATIENCE);
    assert_eq!(arrived, Some(PollFlags::IN), "bytes reach the client");
    let begun = Instant::now();
    let far = match scene.proxy() {
        Some(proxy) => {
            let endings = Endings { reset: true, ..Endings::default() };
            proxy.set(&[(OUT, LinkEffect { endings, ..LinkEffect::default() })]);
            Some(joined.far)
        }
        None => {
            sockopt::set_socket_linger(&joined.far, Some(Duration::ZERO)).expect("set linger");
            drop(joined.far);
            None
        }
    };
    let failed = sys::wait_error(&joined.near, begun + PATIENCE).expect("it is reset");
    let mut reading = Vec::from(seen("client", failed, begun, AT_ONCE));
    let word = far.map_or("ECONNRESET".to_owned(), |far| ending(&far, PATIENCE).0);
    reading.push(row("the server's process sees", Value::Word(word), Like::Same));
    let next = scene.join();
    pass(&next.near, &next.far, b"hello");
    reading.push(row("a new connection", Value::Word("lives".to_owned()), Like::Same));
    reading
}
