//! Senders whose bytes go nowhere: what is taken before a write blocks, and where it waits.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustix::event::PollFlags;

use crate::kernel::{
    outages::counted,
    reading::{Like, Reading, Value, millis, row},
    run::{Case, quiet},
    scene::{Scene, Way, arrival, until},
    sys,
};

/// A sender that could not write for this long is blocked.
const BLOCKED: Duration = Duration::from_millis(500);
const CUT: Duration = Duration::from_millis(2_500);
/// More than any buffer.
const ENDLESS: usize = usize::MAX;
/// How long a stream runs before it is cut.
const RUN: Duration = Duration::from_millis(500);

pub(super) fn cases() -> Vec<Case> {
    vec![
        quiet("A sender blocked by a cut, on a young connection", young),
        quiet("A sender blocked by a cut, in the middle of a stream", busy),
        quiet("A reader that does not read, without a fault", no_reader),
    ]
}

/// Writes until nothing more is taken, at most so many bytes; how many were.
pub(super) fn fill(mut stream: &TcpStream, most: usize) -> usize {
    let chunk = [b'b'; 16 * 1024];
    stream.set_nonblocking(true).expect("set mode");
    let mut taken = 0;
    while taken < most {
        match stream.write(&chunk[..chunk.len().min(most - taken)]) {
            Ok(count) => taken += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if sys::wait(&stream, PollFlags::OUT, Instant::now() + BLOCKED).is_none() {
                    break;
                }
            }
            Err(error) => unreachable!("write during a fault: {error}"),
        }
    }
    stream.set_nonblocking(false).expect("set mode");
    taken
}

fn bytes(count: usize) -> Value {
    Value::Bytes(count as u64)
}

fn young(scene: &mut Scene) -> Reading {
    let joined = scene.join();
    let cut_at = scene.cut(Way::Both);
    let taken = fill(&joined.near, ENDLESS);
    let mut reading = vec![row("taken before a write blocks", bytes(taken), Like::Same)];
    until(cut_at, CUT);
    reading.extend(counted("blocked", &joined));
    let healed_at = scene.heal();
    let at = arrival(&joined.far, &vec![b'b'; taken]);
    let like = Like::Near { share: 0.1, slack: 500.0 };
    reading.push(row("all arrives after the heal", millis(at - healed_at), like));
    reading
}

fn busy(scene: &mut Scene) -> Reading {
    let joined = scene.join();
    let (near, far) = (joined.near, joined.far);
    let (sent, read, queued, resumed) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut far, mut count, mut moment) = (&far, 0_usize, None);
            let mut bytes = vec![0; 256 * 1024];
            loop {
                let before = Instant::now();
                match far.read(&mut bytes).expect("read on") {
                    0 => return (count, moment),
                    some => count += some,
                }
                // The longest silence is the cut.
                if before.elapsed() > BLOCKED {
                    moment = Some(Instant::now());
                }
            }
        });
        let begun = Instant::now();
        let writer = scope.spawn(|| fill(&near, ENDLESS));
        until(begun, RUN);
        scene.cut(Way::Both);
        let sent = writer.join().expect("write until blocked");
        let queued = sys::send_queue(&near);
        let healed_at = scene.heal();
        near.shutdown(std::net::Shutdown::Write).expect("end the stream");
        let (read, moment) = reader.join().expect("read until the end");
        (sent, read, queued, moment.map(|moment| moment.saturating_duration_since(healed_at)))
    });
    assert_eq!(sent, read, "every byte arrives");
    let mut reading = vec![row("blocked: SIOCOUTQ", Value::Bytes(queued), Like::Factor(2.0))];
    if let Some(time) = resumed {
        let like = Like::Near { share: 0.1, slack: 500.0 };
        reading.push(row("bytes move again after the heal", millis(time), like));
    }
    reading
}

fn no_reader(scene: &mut Scene) -> Reading {
    let joined = scene.join();
    let taken = fill(&joined.near, ENDLESS);
    let queued = sys::send_queue(&joined.near);
    let info = sys::info(&joined.near);
    let asked = if info.probes > 0 { "probes of the window" } else { "nothing" };
    arrival(&joined.far, &vec![b'b'; taken]);
    let beyond = u64::try_from(taken).unwrap_or(u64::MAX) - queued;
    vec![
        row("SIOCOUTQ", Value::Bytes(queued), Like::Apart)
            .apart("its buffer grew while the proxy took bytes"),
        row("left the client's kernel", Value::Bytes(beyond), Like::Apart)
            .apart("two more sockets and a pipe lie between and take their share"),
        row("the client's kernel sends", Value::Word(asked.to_owned()), Like::Same),
    ]
}
