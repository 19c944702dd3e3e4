//! Attempts to connect across a cut, and connections that die of one.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use rustix::{event::PollFlags, net::sockopt};

use crate::kernel::{
    reading::{Like, Reading, Value, millis, row},
    run::{Case, quiet},
    scene::{PATIENCE, Scene, Way, until},
    sys,
};

/// Timers of the kernel are exact; the machine that is asked when they fired is not.
const PROMPT: Like = Like::Near { share: 0.05, slack: 250.0 };

pub(super) fn cases() -> Vec<Case> {
    vec![
        quiet("Dials across a cut", dials_fail),
        quiet("A dial that outlives the cut", dial_heals),
        quiet("TCP_USER_TIMEOUT of 1.5 s, one write pending", user_timeout),
        quiet("Keepalive after 1 s, every 1 s, twice", keepalive),
    ]
}

fn dials_fail(scene: &mut Scene) -> Reading {
    scene.cut(Way::Both);
    let begun = Instant::now();
    let [one, two] = [1, 2].map(|retries| scene.begin(|fd| sys::set_syn_retries(fd, retries)));
    let patient = scene.begin(|_| {});
    let mut reading = Vec::new();
    for (name, dial) in [("one SYN again", one), ("two SYNs again", two)] {
        let (error, at) = sys::wait_error(&dial, begun + PATIENCE).expect("the dial fails");
        reading.push(row(format!("{name}: fails after"), millis(at - begun), PROMPT));
        reading.push(row(format!("{name}: error"), Value::Word(error), Like::Same));
    }
    until(begun, Duration::from_millis(3_500));
    let again = sys::info(&patient).retransmits;
    reading.push(row("default: SYNs again in 3.5 s", Value::Count(again.into()), Like::Same));
    let said = patient.take_error().expect("ask for the error");
    let said = said.map_or("still unanswered".to_owned(), |error| sys::name(&error));
    reading.push(row("default: after 3.5 s", Value::Word(said), Like::Same));
    reading
}

fn dial_heals(scene: &mut Scene) -> Reading {
    let cut_at = scene.cut(Way::Both);
    let dial = scene.begin(|_| {});
    until(cut_at, Duration::from_millis(1_500));
    let again = sys::info(&dial).retransmits;
    let healed_at = scene.heal();
    let said = sys::wait(&dial, PollFlags::OUT, healed_at + PATIENCE);
    let connected_at = Instant::now();
    assert_eq!(said, Some(PollFlags::OUT), "the dial succeeds after the heal");
    drop(scene.accept());
    vec![
        row("connected after a heal at 1.5 s", millis(connected_at - healed_at), PROMPT),
        row("SYNs sent again during the cut", Value::Count(again.into()), Like::Same),
    ]
}

fn user_timeout(scene: &mut Scene) -> Reading {
    let joined = scene.join_with(|fd| sockopt::set_tcp_user_timeout(fd, 1_500).expect("set"));
    scene.cut(Way::Both);
    let written = Instant::now();
    (&joined.near).write_all(b"word").expect("the kernel takes a word");
    let (error, at) = sys::wait_error(&joined.near, written + PATIENCE).expect("it gives up");
    vec![
        row("the write fails after", millis(at - written), PROMPT),
        row("error", Value::Word(error), Like::Same),
    ]
}

fn keepalive(scene: &mut Scene) -> Reading {
    let second = Duration::from_secs(1);
    let joined = scene.join_with(|fd| {
        sockopt::set_socket_keepalive(fd, true).expect("set keepalive");
        sockopt::set_tcp_keepidle(fd, second).expect("set idle time");
        sockopt::set_tcp_keepintvl(fd, second).expect("set interval");
        sockopt::set_tcp_keepcnt(fd, 2).expect("set count");
    });
    // It lives as long as the peer answers.
    let alive = sys::wait_error(&joined.near, Instant::now() + 2 * second + second / 2);
    let alive = alive.map_or("alive".to_owned(), |(error, _)| error);
    let cut_at = scene.cut(Way::Both);
    let (error, at) = sys::wait_error(&joined.near, cut_at + PATIENCE).expect("it gives up");
    vec![
        row("idle without a fault", Value::Word(alive), Like::Same),
        // The probe before the cut may have been anything up to a second ago.
        row(
            "the connection fails after",
            millis(at - cut_at),
            Like::Near { share: 0.0, slack: 1_250.0 },
        ),
        row("error", Value::Word(error), Like::Same),
    ]
}
