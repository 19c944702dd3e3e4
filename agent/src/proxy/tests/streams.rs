//! Streams at full speed while faults come and go, and rules that must not wait for anybody.

use std::{
    io::{Read, Write},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use faultbed_common::proxy_spec::{Cut, Hold, LinkEffect};

use super::harness::{Lab, cut, eventually, late, noise, retransmissions, unread};

const BOTH: [&str; 2] = ["x>y", "y>x"];

#[test]
fn a_stream_at_full_speed_stops_at_the_cut_and_goes_on_after_it() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    let stop = AtomicBool::new(false);
    let got = AtomicUsize::new(0);
    let (seen, order) = (|| got.load(Ordering::SeqCst), Ordering::SeqCst);
    thread::scope(|scope| {
        let part = noise(9, 1 << 16);
        let writer = scope.spawn({
            let (near, stop) = (&near, &stop);
            move || {
                let mut sent = 0;
                while !stop.load(order) {
                    (&mut &*near).write_all(&part).unwrap();
                    sent += part.len();
                }
                near.shutdown(std::net::Shutdown::Write).unwrap();
                sent
            }
        });
        scope.spawn(|| {
            let mut bytes = vec![0; 1 << 16];
            loop {
                match (&mut &far).read(&mut bytes).unwrap() {
                    0 => break,
                    count => got.fetch_add(count, order),
                };
            }
        });
        for round in 1..=3 {
            let before = seen();
            eventually("the stream flows", || seen() > before + (1 << 20));
            lab.inject("split", cut(Cut::Packets), &BOTH);
            lab.apply();
            // What had arrived is read; from then on there is nothing, as often as it is sent again.
            eventually("what had arrived is read", || unread(&far) == 0);
            let (at_cut, tries) = (seen(), retransmissions(&near));
            eventually("it is sent again", || retransmissions(&near) > tries);
            assert_eq!(seen(), at_cut, "round {round}: bytes crossed a cut");
            assert_eq!(lab.evidence("split", "x>y").leaked_bytes, 0);
            lab.heal("split");
        }
        stop.store(true, order);
        let sent = writer.join().unwrap();
        eventually("all of it arrives", || seen() == sent);
    });
}

/// A worker that is interrupted between two orders must not miss the second.
#[test]
fn rules_come_into_force_at_once_on_a_busy_machine() {
    let lab = Lab::start(&["x", "y"]);
    let stop = AtomicBool::new(false);
    let slowest = thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let apply = || {
            let began = Instant::now();
            lab.client().apply().map(|_| began.elapsed())
        };
        let times = (0..200).map(|_| apply()).collect::<Result<Vec<_>, _>>();
        stop.store(true, Ordering::Relaxed);
        times.map(|times| times.into_iter().max())
    });
    assert!(slowest.unwrap() < Some(Duration::from_secs(1)));
}

/// Bytes flow both ways while faults come and go; every byte arrives, once and in order.
#[test]
fn a_stream_survives_any_sequence_of_faults_whole() {
    let seed = std::env::var("FAULTBED_SEED").map_or(20_260_726, |seed| seed.parse().unwrap());
    thread::scope(|scope| {
        for round in 0..4 {
            scope.spawn(move || survive(seed + round));
        }
    });
}

/// One of the effects that change no byte and end no stream.
fn any_effect(throw: usize) -> LinkEffect {
    let none = LinkEffect::default;
    match throw % 11 {
        0 => cut(Cut::Packets),
        1 => cut(Cut::Bytes),
        2 => late(Duration::from_millis(5), Duration::from_millis(5)),
        3 => late(Duration::from_micros(100), Duration::ZERO),
        4 => LinkEffect { hold: Some(Hold::Jam), ..none() },
        5 => LinkEffect { hold: Some(Hold::Stall), ..none() },
        6 => LinkEffect { bandwidth: Some("8Mbit".parse().unwrap()), ..none() },
        7 => LinkEffect { bandwidth: Some("900Mbit".parse().unwrap()), ..none() },
        8 => LinkEffect { loss: vec!["0.1%".parse().unwrap()], ..none() },
        9 => LinkEffect { slice: Some("200B variation=100B delay=5us".parse().unwrap()), ..none() },
        _ => LinkEffect {
            loss: vec!["p=1% r=50%".parse().unwrap(), "burst=1ms every=20ms".parse().unwrap()],
            bandwidth: Some("80Mbit".parse().unwrap()),
            slice: Some("1kB".parse().unwrap()),
            ..late(Duration::from_millis(1), Duration::from_millis(1))
        },
    }
}

fn survive(seed: u64) {
    let mut lab = Lab::start(&["x", "y"]);
    let joined = [lab.join("x", "y"), lab.join("y", "x")];
    let dice: Vec<usize> = noise(seed, 64).into_iter().map(usize::from).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for (number, (one, other)) in joined.iter().enumerate() {
            for (from, to) in [(one, other), (other, one)] {
                let bytes = noise(seed + number as u64, 1 << 20);
                let stop = &stop;
                let sent = bytes.clone();
                let writer = scope.spawn(move || {
                    let mut total = 0;
                    for part in sent.chunks(1500).cycle() {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        (&mut &*from).write_all(part).unwrap();
                        total += part.len();
                    }
                    from.shutdown(std::net::Shutdown::Write).unwrap();
                    total
                });
                scope.spawn(move || {
                    let mut got = Vec::new();
                    (&mut &*to).read_to_end(&mut got).unwrap_or_else(|error| {
                        panic!("seed {seed}: {error}");
                    });
                    let whole = got.chunks(1 << 20).all(|part| *part == bytes[..part.len()]);
                    assert!(whole, "seed {seed}: bytes are not those sent");
                    assert_eq!(got.len(), writer.join().unwrap(), "seed {seed}");
                });
            }
        }
        for (step, throw) in dice.iter().take(16).enumerate() {
            let links: &[&str] = [&BOTH[..], &BOTH[..1], &BOTH[1..]][throw % 3];
            let effect = any_effect(throw / 3);
            lab.inject(&format!("f{}", step % 3), effect, links);
            lab.apply();
            let seen = lab.report().report.generation;
            assert_eq!(seen, lab.file.spec.generation);
            if throw % 2 == 0 {
                lab.heal(&format!("f{}", throw % 3));
            }
        }
        lab.file.spec.faults.clear();
        lab.apply();
        stop.store(true, Ordering::Relaxed);
    });
    for fault in lab.report().faults.values() {
        for (link, evidence) in &fault.links {
            assert_eq!(evidence.leaked_bytes, 0, "seed {seed} on {link}: {evidence:?}");
        }
    }
}
