//! Senders whose bytes go nowhere: what is taken before a write blocks, and where it waits.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustix::event::PollFlags;

use crate::{
    kernel::{
        outages::counted,
        reading::{Like, Reading, Value, millis, row},
        run::{Case, quiet},
        scene::{Joined, PATIENCE, Scene, Way, arrival, until},
        sys,
    },
    wait::wait_for,
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
        quiet("A reader that stops reading in the middle of a stream", lazy_reader),
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
    let wide = "the proxy's socket offers a wider window from the start";
    let mut reading =
        vec![row("taken before a write blocks", bytes(taken), Like::Same).apart(wide)];
    until(cut_at, CUT);
    reading.extend(counted("blocked", &joined).into_iter().map(|row| row.apart(wide)));
    let healed_at = scene.heal();
    let at = arrival(&joined.far, &vec![b'b'; taken]);
    let like = Like::Near { share: 0.1, slack: 500.0 };
    reading.push(row("all arrives after the heal", millis(at - healed_at), like));
    reading
}

fn busy(scene: &mut Scene) -> Reading {
    let Joined { near, far } = scene.join();
    let (sent, read, queued, acknowledged) = thread::scope(|scope| {
        let reader = scope.spawn(|| drain(&far, PATIENCE));
        let begun = Instant::now();
        let writer = scope.spawn(|| fill(&near, ENDLESS));
        until(begun, RUN);
        scene.cut(Way::Both);
        let sent = writer.join().expect("write until blocked");
        let queued = sys::send_queue(&near);
        let healed_at = scene.heal();
        let acknowledged = wait_for("bytes are acknowledged", PATIENCE, || {
            let left = sys::send_queue(&near);
            if left < queued { Ok(Instant::now()) } else { Err(format!("{left} bytes are not")) }
        });
        near.shutdown(std::net::Shutdown::Write).expect("end the stream");
        let read = reader.join().expect("read until the end");
        (sent, read, queued, acknowledged - healed_at)
    });
    assert_eq!(sent, read, "every byte arrives");
    // One time-out more or less of 0.2, 0.4, 0.8 s.
    let like = Like::Near { share: 0.0, slack: 1_000.0 };
    vec![
        row("blocked: SIOCOUTQ", Value::Bytes(queued), Like::Factor(2.0)),
        row("bytes are acknowledged again after the heal", millis(acknowledged), like),
        row("all bytes", Value::Word("arrive".to_owned()), Like::Same),
    ]
}

/// Reads to the end of the stream, at most for a time; how many bytes.
fn drain(mut far: &TcpStream, time: Duration) -> usize {
    let (mut bytes, mut count, end) = (vec![0; 256 * 1024], 0, Instant::now() + time);
    while Instant::now() < end {
        match far.read(&mut bytes).expect("read on") {
            0 => break,
            some => count += some,
        }
    }
    count
}

fn no_reader(scene: &mut Scene) -> Reading {
    let joined = scene.join();
    let sent = fill(&joined.near, ENDLESS);
    unread(&joined, sent, 0, Like::Apart)
}

fn lazy_reader(scene: &mut Scene) -> Reading {
    let joined = scene.join();
    let (sent, read) = thread::scope(|scope| {
        let reader = scope.spawn(|| drain(&joined.far, RUN));
        (fill(&joined.near, ENDLESS), reader.join().expect("read for a time"))
    });
    // How far a buffer has grown when its reader stops is a matter of the machine.
    unread(&joined, sent, read, Like::Apart)
}

/// Where the bytes are that were sent and not read, when the sender is blocked.
fn unread(joined: &Joined, sent: usize, read: usize, like: Like) -> Reading {
    let queued = sys::send_queue(&joined.near);
    let left = sent - read;
    let beyond = u64::try_from(left).unwrap_or(u64::MAX).saturating_sub(queued);
    arrival(&joined.far, &vec![b'b'; left]);
    vec![
        row("SIOCOUTQ", Value::Bytes(queued), Like::Apart)
            .apart("how much it grew depends on how fast bytes were taken"),
        row("left the client's kernel, and not read", Value::Bytes(beyond), like)
            .remark("two more sockets and a pipe lie between: two buffers grow instead of one"),
        row("all bytes", Value::Word("arrive".to_owned()), Like::Same),
    ]
}
