//! Streams that end: FIN and RST of either side, during a cut and without one.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use rustix::{event::PollFlags, net::sockopt};

use crate::kernel::{
    outages::counted,
    reading::{Like, Reading, Row, Value, millis, row},
    run::{Case, quiet},
    scene::{PATIENCE, Scene, Way, arrival, until},
    sys,
};

/// How long a cut lasts here: two time-outs have passed, the third is far.
const CUT: Duration = Duration::from_secs(1);
/// How long it takes to say that nothing comes.
const SILENCE: Duration = Duration::from_secs(4);
const PROMPT: Like = Like::Near { share: 0.1, slack: 300.0 };
const AT_ONCE: Like = Like::AtMost(500.0);

pub(super) fn cases() -> Vec<Case> {
    vec![
        quiet("Ends without a fault", without_a_fault),
        quiet("FIN of the client during a cut of 1 s", client_finishes),
        quiet("FIN of the server during a cut of 1 s", server_finishes),
        quiet("RST of the client during a cut, the server writes after the heal", client_resets),
        quiet("RST of the server during a cut, the client writes after the heal", server_resets),
        quiet("RST during a cut, nobody writes after the heal", nobody_writes),
        quiet("A server process that dies during a cut with bytes unread", server_dies),
    ]
}

/// Ends a connection with a RST.
fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("set linger");
    drop(stream);
}

/// How a stream ends for its reader, within a time: the error or `end of stream`, and when.
pub(super) fn ending(mut stream: &TcpStream, within: Duration) -> (String, Instant) {
    stream.set_read_timeout(Some(within)).expect("set time-out");
    let mut bytes = [0; 4096];
    loop {
        let result = stream.read(&mut bytes);
        let at = Instant::now();
        match result {
            Ok(0) => return ("end of stream".to_owned(), at),
            Ok(_) => {}
            Err(error) if sys::name(&error) == "EAGAIN" => return ("nothing".to_owned(), at),
            Err(error) => return (sys::name(&error), at),
        }
    }
}

pub(super) fn seen(who: &str, ending: (String, Instant), since: Instant, like: Like) -> [Row; 2] {
    let (word, at) = ending;
    [
        row(format!("{who} sees"), Value::Word(word), Like::Same),
        row(format!("{who} sees it after"), millis(at - since), like),
    ]
}

fn without_a_fault(scene: &mut Scene) -> Reading {
    let half = scene.join();
    let begun = Instant::now();
    half.near.shutdown(std::net::Shutdown::Write).expect("end the stream");
    let mut reading = Vec::from(seen("FIN: server", ending(&half.far, PATIENCE), begun, AT_ONCE));
    (&half.far).write_all(b"answer").expect("answer");
    arrival(&half.near, b"answer");
    reading.push(row(
        "half-closed: answer of the server",
        Value::Word("arrives".to_owned()),
        Like::Same,
    ));
    let joined = scene.join();
    let begun = Instant::now();
    reset(joined.far);
    reading.extend(seen(
        "RST of the server: client",
        ending(&joined.near, PATIENCE),
        begun,
        AT_ONCE,
    ));
    let joined = scene.join();
    let begun = Instant::now();
    reset(joined.near);
    reading.extend(seen(
        "RST of the client: server",
        ending(&joined.far, PATIENCE),
        begun,
        AT_ONCE,
    ));
    reading
}

fn client_finishes(scene: &mut Scene) -> Reading {
    let joined = scene.join();
    let cut_at = scene.cut(Way::Both);
    joined.near.shutdown(std::net::Shutdown::Write).expect("end the stream");
    until(cut_at, CUT);
    let mut reading = counted("FIN", &joined);
    let healed_at = scene.heal();
    reading.extend(seen("server", ending(&joined.far, PATIENCE), healed_at, PROMPT));
    (&joined.far).write_all(b"answer").expect("answer");
    let answered = Instant::now();
    let at = arrival(&joined.near, b"answer");
    reading.push(row("the server's answer arrives after", millis(at - answered), AT_ONCE));
    drop(joined.far);
    reading.extend(seen("client", ending(&joined.near, PATIENCE), Instant::now(), AT_ONCE));
    reading
}

fn server_finishes(scene: &mut Scene) -> Reading {
    let joined = scene.join();
    let cut_at = scene.cut(Way::Both);
    joined.far.shutdown(std::net::Shutdown::Write).expect("end the stream");
    until(cut_at, CUT);
    let unread = sys::wait(&joined.near, PollFlags::IN, Instant::now());
    let heard = if unread.is_none() { "nothing" } else { "something" };
    let mut reading =
        vec![row("client hears during the cut", Value::Word(heard.to_owned()), Like::Same)];
    let healed_at = scene.heal();
    reading.extend(seen("client", ending(&joined.near, PATIENCE), healed_at, PROMPT));
    reading
}

fn client_resets(scene: &mut Scene) -> Reading {
    let joined = scene.join();
    scene.cut(Way::Both);
    reset(joined.near);
    let healed_at = scene.heal();
    (&joined.far).write_all(b"anybody there?").expect("the kernel takes a word");
    seen("server", ending(&joined.far, PATIENCE), healed_at, AT_ONCE).into()
}

fn server_resets(scene: &mut Scene) -> Reading {
    let joined = scene.join();
    scene.cut(Way::Both);
    reset(joined.far);
    let healed_at = scene.heal();
    (&joined.near).write_all(b"anybody there?").expect("the kernel takes a word");
    seen("client", ending(&joined.near, PATIENCE), healed_at, AT_ONCE).into()
}

fn nobody_writes(scene: &mut Scene) -> Reading {
    const WHY: &str = "after a heal the proxy asks peers that were silent for a second for a sign \
                       of life, and passes on what it learns; a real link tells only who writes";
    let [by_client, by_server] = [(); 2].map(|()| scene.join());
    scene.cut(Way::Both);
    reset(by_client.near);
    reset(by_server.far);
    let end = scene.heal() + SILENCE;
    let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let (client, _) = ending(&by_server.near, left());
    let (server, _) = ending(&by_client.far, left());
    vec![
        row("RST of the server: idle client sees in 4 s", Value::Word(client), Like::Same)
            .apart(WHY),
        row("RST of the client: idle server sees in 4 s", Value::Word(server), Like::Same)
            .apart(WHY),
    ]
}

fn server_dies(scene: &mut Scene) -> Reading {
    let joined = scene.join();
    (&joined.near).write_all(b"never read").expect("write");
    let arrived = sys::wait(&joined.far, PollFlags::IN, Instant::now() + PATIENCE);
    assert_eq!(arrived, Some(PollFlags::IN), "bytes reach the server");
    let cut_at = scene.cut(Way::Both);
    // Its kernel ends a stream with unread bytes by a RST, which the cut swallows.
    drop(joined.far);
    (&joined.near).write_all(b"pending").expect("write");
    until(cut_at, CUT);
    let healed_at = scene.heal();
    let [word, time] = seen("client", ending(&joined.near, PATIENCE), healed_at, PROMPT);
    let why = "the proxy asks the server for a sign of life at once; the client's kernel learns it by \
               its own next time-out";
    vec![word, time.apart(why)]
}
