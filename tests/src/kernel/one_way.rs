//! Cuts of one direction's packets: what still passes the other way, and what each side counts.

use std::{
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustix::event::PollFlags;

use crate::kernel::{
    bytes::fill,
    outages::counted,
    reading::{Like, Reading, Value, millis, row},
    run::{Case, quiet},
    scene::{PATIENCE, Scene, Way, arrival, until},
    sys,
};

const CUT: Duration = Duration::from_secs(2);
/// More than any window of a young connection.
const BULK: usize = 300_000;
const PROMPT: Like = Like::Near { share: 0.1, slack: 500.0 };
/// A sender asks again after twice the time each time, so at the latest when the cut has been over for
/// as long as it was; where more or less of a window was acknowledged, that is another moment.
const BULKY: Like = Like::AtMost(CUT.as_secs_f64() * 1e3 + 1_500.0);

pub(super) fn cases() -> Vec<Case> {
    vec![
        quiet("One way: packets of the client are dropped for 2 s", out),
        quiet("One way: packets of the server are dropped for 2 s", back),
    ]
}

/// Bytes that have arrived at a socket and were not read.
fn unread(stream: &TcpStream) -> Value {
    Value::Bytes(rustix::io::ioctl_fionread(stream).expect("ask for unread bytes"))
}

fn out(scene: &mut Scene) -> Reading {
    let [small, bulk] = [(); 2].map(|()| scene.join());
    let cut_at = scene.cut(Way::Out);
    let dial = scene.begin(|_| {});
    (&small.near).write_all(b"request").expect("write");
    (&small.far).write_all(b"notice").expect("write");
    let noticed = arrival(&small.near, b"notice");
    let mut reading = vec![row(
        "a small write of the server arrives after",
        millis(noticed - cut_at),
        Like::AtMost(500.0),
    )];
    let taken = fill(&bulk.far, BULK);
    until(cut_at, CUT);
    reading.extend(counted("request of the client", &small));
    reading.push(
        row(
            "of 300 kB of the server, arrived at the client",
            unread(&bulk.near),
            Like::Factor(1.5),
        )
        .remark("what the server's window allows without an acknowledgement"),
    );
    let asked = sys::wait(&small.far, PollFlags::IN, Instant::now());
    let asked = if asked.is_none() { "nothing" } else { "bytes" };
    reading.push(row("server hears", Value::Word(asked.to_owned()), Like::Same));
    let retries = sys::info(&dial).retransmits;
    reading.push(row("dial: SYNs again", Value::Count(retries.into()), Like::Same));
    let healed_at = scene.heal();
    let (request_at, bulk_at) = thread::scope(|scope| {
        let request = scope.spawn(|| arrival(&small.far, b"request"));
        let bulk_at = arrival(&bulk.near, &vec![b'b'; taken]);
        (request.join().expect("the request arrives"), bulk_at)
    });
    reading.push(row("the request arrives after the heal", millis(request_at - healed_at), PROMPT));
    reading.push(row(
        "all of the server's arrives after the heal",
        millis(bulk_at - healed_at),
        BULKY,
    ));
    reading
}

fn back(scene: &mut Scene) -> Reading {
    const ACKNOWLEDGED: &str = "the proxy's kernel acknowledges what arrives before the ten segments \
                                that a real link would deliver are passed on; then nothing more";
    let [small, bulk] = [(); 2].map(|()| scene.join());
    let cut_at = scene.cut(Way::Back);
    let dial = scene.begin(|_| {});
    (&small.near).write_all(b"request").expect("write");
    let arrived = sys::wait(&small.far, PollFlags::IN, Instant::now() + PATIENCE);
    assert_eq!(arrived, Some(PollFlags::IN), "the request reaches the server");
    let asked = Instant::now();
    (&small.far).write_all(b"answer").expect("write");
    let taken = fill(&bulk.near, BULK);
    let mut reading = vec![row(
        "a small write of the client arrives after",
        millis(asked - cut_at),
        Like::AtMost(500.0),
    )];
    until(cut_at, CUT);
    let request = counted("request of the client", &small);
    reading.extend(request.into_iter().map(|row| row.apart(ACKNOWLEDGED)));
    reading.push(row(
        "of 300 kB of the client, arrived at the server",
        unread(&bulk.far),
        Like::Factor(1.5),
    ));
    reading.push(
        row("taken from the client before a write blocks", Value::Bytes(taken as u64), Like::Same)
            .apart(ACKNOWLEDGED),
    );
    let heard = sys::wait(&small.near, PollFlags::IN, Instant::now());
    let heard = if heard.is_none() { "nothing" } else { "bytes" };
    reading.push(row("client hears", Value::Word(heard.to_owned()), Like::Same));
    let retries = sys::info(&dial).retransmits;
    reading.push(row("dial: SYNs again", Value::Count(retries.into()), Like::Same));
    let healed_at = scene.heal();
    let (answer_at, bulk_at) = thread::scope(|scope| {
        let answer = scope.spawn(|| arrival(&small.near, b"answer"));
        let bulk_at = arrival(&bulk.far, &vec![b'b'; taken]);
        (answer.join().expect("the answer arrives"), bulk_at)
    });
    reading.push(row("the answer arrives after the heal", millis(answer_at - healed_at), PROMPT));
    reading.push(row(
        "all of the client's arrives after the heal",
        millis(bulk_at - healed_at),
        BULKY,
    ));
    reading
}
