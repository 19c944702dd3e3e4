//! Delays: every byte is late by what was asked, and no slower than that.

use std::{
    io::{Read, Write},
    thread,
    time::{Duration, Instant},
};

use faultbed_common::fault::Grade;

use super::harness::{Lab, eventually, fault, late, noise, pass};

const HALF: Duration = Duration::from_millis(25);

#[test]
fn a_round_trip_takes_as_long_as_asked() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("wan", late(HALF, Duration::ZERO), &["x>y", "y>x"]);
    assert_eq!(lab.apply().faults[&fault("wan")].grade, Some(Grade::Stream));
    let mut trips: Vec<Duration> = (0..9)
        .map(|_| {
            let began = Instant::now();
            pass(&near, &far, "ping");
            pass(&far, &near, "pong");
            began.elapsed()
        })
        .collect();
    trips.sort();
    assert!(trips[0] >= 2 * HALF, "{trips:?}");
    assert!(trips[4] < 2 * HALF + Duration::from_millis(5), "{trips:?}");
    let evidence = lab.evidence("wan", "x>y");
    assert_eq!(evidence.delayed_chunks, 9);
    assert_eq!(evidence.delay_histogram, [0, 0, 9, 0, 0]);

    lab.heal("wan");
    let began = Instant::now();
    pass(&near, &far, "ping");
    assert!(began.elapsed() < HALF, "healed");
}

#[test]
fn a_delay_does_not_throttle() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("wan", late(HALF, Duration::ZERO), &["x>y"]);
    lab.apply();
    // One chunk for each delay would take 25 ms for 64 KiB, and so 12 s for all of it.
    let bytes = noise(5, 32 * 1024 * 1024);
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| (&mut &near).write_all(&bytes).unwrap());
        let mut got = vec![0; bytes.len()];
        (&mut &far).read_exact(&mut got).unwrap();
        assert!(got == bytes);
    });
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn jitter_is_redrawn_for_each_chunk_and_keeps_the_order() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    let spread = Duration::from_millis(8);
    lab.inject("wan", late(spread, spread), &["x>y"]);
    lab.apply();
    let mut times = Vec::new();
    for number in 0..20 {
        let began = Instant::now();
        pass(&near, &far, &format!("{number:04}"));
        times.push(began.elapsed());
    }
    let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    assert!(*most - *least > spread / 2, "all alike: {times:?}");
    let sent: Vec<u8> = (0..200_u32).flat_map(u32::to_be_bytes).collect();
    for word in sent.chunks(4) {
        (&mut &near).write_all(word).unwrap();
    }
    let mut got = vec![0; sent.len()];
    (&mut &far).read_exact(&mut got).unwrap();
    assert_eq!(got, sent);
}

#[test]
fn the_end_of_a_stream_is_late_too_and_a_heal_brings_it_at_once() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("wan", late(Duration::from_secs(60), Duration::ZERO), &["x>y"]);
    lab.apply();
    (&mut &near).write_all(b"last words").unwrap();
    drop(near);
    eventually("it is counted", || lab.evidence("wan", "x>y").delayed_chunks == 1);
    lab.heal("wan");
    let mut bytes = Vec::new();
    (&mut &far).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"last words");
}
