//! Outages of fixed length: what the kernel counts meanwhile, and how long recovery takes.

use std::{
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::{
    kernel::{
        reading::{Like, Reading, Row, Value, millis, row},
        run::{Case, quiet, v6},
        scene::{Joined, PATIENCE, Scene, Way, arrival, until},
        sys,
    },
    wait::wait_for,
};

/// So many small writes make up "many pending".
const WRITES: usize = 201;
const WORD: [u8; 64] = [b'w'; 64];

pub(super) fn cases() -> Vec<Case> {
    let name = |seconds| format!("An outage of {seconds} s, both ways, then a heal");
    let case = |seconds| quiet(name(seconds), move |scene| outage(scene, seconds));
    vec![case(1), case(5), case(20), v6(case(5))]
}

fn outage(scene: &mut Scene, seconds: u32) -> Reading {
    let [one, many, idle, answer] = [(); 4].map(|()| scene.join());
    let cut_at = scene.cut(Way::Both);
    write(&one.near);
    (0..WRITES).for_each(|_| write(&many.near));
    write(&answer.far);
    // Between two time-outs, which double: a moment more or less changes no count.
    until(cut_at, Duration::from_secs(seconds.into()));
    let mut reading = counted("one write", &one);
    reading.extend(counted(&format!("{WRITES} writes"), &many));
    let unread = sys::wait(&answer.near, rustix::event::PollFlags::IN, Instant::now());
    let heard = if unread.is_none() { "nothing" } else { "bytes" };
    reading.push(row("heard from the server", Value::Word(heard.to_owned()), Like::Same));
    let healed_at = scene.heal();
    write(&idle.near);
    let all: Vec<u8> = WORD.repeat(WRITES);
    // The first time-out is 200 ms, or later by a few milliseconds of a busy machine's round trip, or
    // a tail loss probe came before it; all of that doubles with each time-out.
    let like = Like::Near { share: 0.1, slack: f64::from(400 + 50 * seconds) };
    let came = |what: &str, at: Instant, like| {
        row(format!("{what}: arrives after the heal"), millis(at - healed_at), like)
    };
    let (one_at, many_at, idle_at, answer_at) = thread::scope(|scope| {
        let one = scope.spawn(|| arrival(&one.far, &WORD));
        let many = scope.spawn(|| arrival(&many.far, &all));
        let answer = scope.spawn(|| arrival(&answer.near, &WORD));
        let idle_at = arrival(&idle.far, &WORD);
        let joined = "bytes arrive after the heal";
        (
            one.join().expect(joined),
            many.join().expect(joined),
            idle_at,
            answer.join().expect(joined),
        )
    });
    reading.push(came("one write", one_at, like));
    reading.push(came("201 writes", many_at, like));
    reading.push(came("a write of the server", answer_at, like));
    reading.push(came("a write on an idle connection", idle_at, Like::AtMost(190.0)));
    for joined in [&one, &many] {
        wait_for("all is acknowledged", PATIENCE, || match sys::send_queue(&joined.near) {
            0 => Ok(()),
            left => Err(format!("{left} bytes are not")),
        });
    }
    reading
}

/// What the client's kernel has counted on a connection.
pub(super) fn counted(what: &str, joined: &Joined) -> Vec<Row> {
    let info = sys::info(&joined.near);
    let queued = sys::send_queue(&joined.near);
    let count = |name: &str, value: u32, like| {
        row(format!("{what}: {name}"), Value::Count(value.into()), like)
    };
    // One more or less: whether the kernel probes for a lost tail first depends on the last round trip.
    let like = Like::Near { share: 0.0, slack: 1.0 };
    vec![
        count("tcpi_retransmits", info.retransmits.into(), like),
        count("tcpi_backoff", info.backoff.into(), like),
        count("tcpi_unacked", info.unacked, like),
        count("tcpi_total_retrans", info.total_retrans, like),
        row(format!("{what}: SIOCOUTQ"), Value::Bytes(queued), Like::Same),
    ]
}

fn write(mut stream: &TcpStream) {
    stream.write_all(&WORD).expect("the kernel takes a word");
}
