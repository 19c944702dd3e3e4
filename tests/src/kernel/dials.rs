//! Attempts to connect across a cut, and connections that die of one.

use std::{
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustix::{event::PollFlags, net::sockopt};

use crate::kernel::{
    reading::{Like, Reading, Value, millis, row},
    run::{Case, quiet, v6},
    scene::{Joined, PATIENCE, Scene, Way, until},
    sys,
};

/// Timers of the kernel are exact; the machine that is asked when they fired is not.
const PROMPT: Like = Like::Near { share: 0.05, slack: 250.0 };

pub(super) fn cases() -> Vec<Case> {
    vec![
        quiet("Dials across a cut", dials_fail),
        v6(quiet("Dials across a cut", dials_fail)),
        quiet("A server that does not listen", nobody_listens),
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
    let failed = |name: &str, dial: TcpStream| {
        let (error, at) = sys::wait_error(&dial, begun + PATIENCE).expect("the dial fails");
        [
            row(format!("{name}: fails after"), millis(at - begun), PROMPT),
            row(format!("{name}: error"), Value::Word(error), Like::Same),
        ]
    };
    let mut reading = Vec::from(failed("TCP_SYNCNT 1", one));
    until(begun, Duration::from_millis(3_500));
    let again = sys::info(&patient).retransmits;
    reading.push(row("default: SYNs again in 3.5 s", Value::Count(again.into()), Like::Same));
    reading.extend(failed("TCP_SYNCNT 2", two));
    let said = patient.take_error().expect("ask for the error");
    let said = said.map_or("still unanswered".to_owned(), |error| sys::name(&error));
    reading.push(row("default: after 7 s", Value::Word(said), Like::Same));
    reading
}

fn nobody_listens(scene: &mut Scene) -> Reading {
    scene.stop_listening();
    let begun = Instant::now();
    let dial = scene.begin(|_| {});
    let (error, at) = sys::wait_error(&dial, begun + PATIENCE).expect("the dial fails");
    vec![
        row("error", Value::Word(error), Like::Same)
            .apart("the proxy has accepted before it learns that its node does not"),
        row("after", millis(at - begun), Like::AtMost(500.0)),
    ]
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
    let Joined { near, far } = scene.join();
    for end in [&near, &far] {
        sockopt::set_socket_keepalive(end, true).expect("set keepalive");
        sockopt::set_tcp_keepidle(end, second).expect("set idle time");
        sockopt::set_tcp_keepintvl(end, second).expect("set interval");
        sockopt::set_tcp_keepcnt(end, 2).expect("set count");
    }
    // They live as long as the peer answers.
    let alive = sys::wait_error(&near, Instant::now() + 2 * second + second / 2);
    let alive = alive.map_or("alive".to_owned(), |(error, _)| error);
    let mut reading = vec![row("idle without a fault", Value::Word(alive), Like::Same)];
    let cut_at = scene.cut(Way::Both);
    // The probe before the cut may have been anything up to a second ago.
    let like = Like::Near { share: 0.0, slack: 1_250.0 };
    let (client, server) = thread::scope(|scope| {
        let server = scope.spawn(|| sys::wait_error(&far, cut_at + PATIENCE));
        (sys::wait_error(&near, cut_at + PATIENCE), server.join().expect("wait for the server"))
    });
    for (who, failed) in [("client", client), ("server", server)] {
        let (error, at) = failed.expect("it gives up");
        reading.push(row(format!("{who}: fails after"), millis(at - cut_at), like));
        reading.push(row(format!("{who}: error"), Value::Word(error), Like::Same));
    }
    reading
}
