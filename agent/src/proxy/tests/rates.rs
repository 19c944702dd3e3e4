//! The bandwidth of a link: never more at any time, hardly less, and shared by its connections.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use faultbed_common::proxy_spec::LinkEffect;

use super::harness::{Lab, late, noise, pass};

fn at(rate: &str) -> LinkEffect {
    LinkEffect { bandwidth: Some(rate.parse().unwrap()), ..LinkEffect::default() }
}

/// What arrives of a stream for some time: after each read, the time since the beginning and the sum.
fn receive(mut from: &TcpStream, mut to: &TcpStream, time: Duration) -> Vec<(Duration, u64)> {
    let (began, stop) = (Instant::now(), AtomicBool::new(false));
    let mut all: Vec<(Duration, u64)> = Vec::new();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let part = noise(1, 1 << 16);
            from.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
            while !stop.load(Ordering::Relaxed) {
                // A time-out only brings the next look at the flag.
                let _full = from.write(&part);
            }
        });
        let (mut sum, mut bytes) = (0, vec![0; 1 << 18]);
        while all.first().is_none_or(|(first, _)| began.elapsed() < *first + time) {
            sum += to.read(&mut bytes).unwrap() as u64;
            all.push((began.elapsed(), sum));
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    all
}

/// Checks that a stream never had more than its rate and on the whole at least `least` of it.
#[track_caller]
fn check_rate(all: &[(Duration, u64)], bits_per_s: f64, least: f64) {
    let allowed = |time: Duration| time.as_secs_f64() * bits_per_s / 8.0;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let mut sums = all.iter().map(|(time, sum)| (*time, *sum as f64));
    let (first, _) = sums.clone().next().unwrap();
    for (time, sum) in sums.clone() {
        assert!(sum <= allowed(time) + 1_448.0, "{sum} bytes after {time:?}");
    }
    let (time, sum) = sums.next_back().unwrap();
    assert!(sum >= allowed(time - first) * least, "{sum} bytes in {:?}", time - first);
}

#[test]
fn a_stream_has_its_rate_from_the_start_and_never_more() {
    for (rate, bits) in [("2Mbit", 2e6), ("200Mbit", 2e8)] {
        let mut lab = Lab::start(&["x", "y"]);
        let (near, far) = lab.join("x", "y");
        lab.inject("slow", at(rate), &["x>y"]);
        lab.apply();
        let all = receive(&near, &far, Duration::from_secs(1));
        check_rate(&all, bits, 0.9);
        let paced = lab.evidence("slow", "x>y").paced_bytes;
        assert!(paced >= all.last().unwrap().1, "{paced}");
    }
}

/// Who offers bytes stops after this long, also where a test that failed does not tell it to.
const OFFER_MAX: Duration = Duration::from_secs(60);

/// Writes to a stream until it is told to stop; says when for the first time nothing more fitted.
fn offer(mut from: &TcpStream, full: &Barrier, stop: &AtomicBool) {
    let part = noise(1, 1 << 16);
    from.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut fits = || from.write(&part).is_ok();
    while fits() {}
    full.wait();
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) && began.elapsed() < OFFER_MAX {
        fits();
    }
}

#[test]
fn connections_share_the_rate_of_their_link() {
    let mut lab = Lab::start(&["x", "y"]);
    let joined = [lab.join("x", "y"), lab.join("x", "y")];
    lab.inject("slow", at("1kbit"), &["x>y"]);
    lab.apply();
    // Each has enough to send from the start, and who reads is late for both alike.
    let (full, stop) = (Barrier::new(3), AtomicBool::new(false));
    let (mut sums, mut all) = ([0; 2], Vec::new());
    thread::scope(|scope| {
        for (near, far) in &joined {
            far.set_nonblocking(true).unwrap();
            scope.spawn(|| offer(near, &full, &stop));
        }
        full.wait();
        lab.inject("slow", at("40Mbit"), &["x>y"]);
        let (began, mut bytes) = (Instant::now(), vec![0; 1 << 18]);
        lab.apply();
        while all.first().is_none_or(|(first, _)| began.elapsed() < *first + Duration::from_secs(1))
        {
            for ((_, far), sum) in joined.iter().zip(&mut sums) {
                *sum += (&mut &*far).read(&mut bytes).unwrap_or(0) as u64;
            }
            all.push((began.elapsed(), sums.iter().sum()));
            thread::sleep(Duration::from_micros(100));
        }
        stop.store(true, Ordering::Relaxed);
    });
    check_rate(&all, 4e7, 0.8);
    let total = sums.iter().sum::<u64>();
    assert!(sums.iter().all(|sum| *sum > total / 3), "neither starves: {sums:?}");
}

#[test]
fn a_rate_with_a_delay_is_a_pipe_that_is_full() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    let wan = late(Duration::from_millis(200), Duration::ZERO);
    lab.inject("wan", LinkEffect { bandwidth: at("20Mbit").bandwidth, ..wan }, &["x>y"]);
    lab.apply();
    let began = Instant::now();
    let all = receive(&near, &far, Duration::from_secs(1));
    assert!(began.elapsed() > Duration::from_millis(1_200));
    check_rate(&all, 2e7, 0.9);
}

#[test]
fn a_rate_changes_under_a_stream_and_leaves_it_whole() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    let bytes = noise(2, 3 << 20);
    lab.inject("slow", at("1kbit"), &["x>y"]);
    lab.apply();
    thread::scope(|scope| {
        scope.spawn(|| (&mut &near).write_all(&bytes).unwrap());
        let mut got = vec![0; bytes.len()];
        let (first, rest) = got.split_at_mut(1 << 20);
        for rate in ["10Mbit", "100Mbit"] {
            lab.inject("slow", at(rate), &["x>y"]);
            lab.apply();
            (&mut &far).read_exact(&mut first[..1 << 18]).unwrap();
            (&mut &far).read_exact(&mut first[1 << 18..1 << 19]).unwrap();
            first.rotate_left(1 << 19);
        }
        lab.heal("slow");
        (&mut &far).read_exact(rest).unwrap();
        assert!(got == bytes);
    });
    pass(&near, &far, "healed");
}
