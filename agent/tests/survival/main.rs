//! What a proxy process must survive: ten thousand connections in every state, storms, want of descriptors.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, which end by panics")]

mod lab;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use faultbed_common::proxy_spec::{Cut, Delay, Hold, LinkEffect};
use lab::{Lab, at_most, eventually, raise_descriptor_limit};

/// The number that the design names.
const CONNECTIONS: usize = 10_000;
/// Each has two descriptors in the proxy, and two here.
const DESCRIPTORS: u64 = 2 * CONNECTIONS as u64 + DESCRIPTORS_SPARE;
/// Descriptors of a process that are not of connections: listeners, threads, files, and a reserve.
const DESCRIPTORS_SPARE: u64 = 300;
/// Connections that have their dialler's descriptor only, since they stand still before their node.
const WAITING: usize = 900;
/// Memory of a proxy process with so many idle connections.
const IDLE_BYTES_MAX: u64 = 60_000_000;
/// A rule change takes no longer with so many connections in whatever state, on a busy machine.
const APPLY_MAX: Duration = Duration::from_secs(1);
/// Nor does a report.
const REPORT_MAX: Duration = Duration::from_secs(2);

/// These tests are about the limits of a machine: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn say(text: &str) {
    io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}

fn cut(cut: Cut) -> LinkEffect {
    LinkEffect { cut: Some(cut), ..LinkEffect::default() }
}

fn late(base: Duration) -> LinkEffect {
    let base_us = u64::try_from(base.as_micros()).unwrap();
    LinkEffect { delay: Some(Delay { base_us, ..Delay::default() }), ..LinkEffect::default() }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn ten_thousand_idle_connections_fit_into_60_mb() {
    let _alone = alone();
    let allowed = raise_descriptor_limit(DESCRIPTORS) - DESCRIPTORS_SPARE;
    let count = CONNECTIONS.min(usize::try_from(allowed / 2).unwrap());
    let lab = Lab::start(&["x", "y"]);
    let (empty, descriptors) = (lab.pss_bytes(), lab.descriptors());
    let (near, far) = lab.join("x", "y", count);
    eventually("all are carried", || lab.report().report.connections == count as u64);
    let each = lab.pss_bytes().saturating_sub(empty) / count as u64;
    let full = empty + each * CONNECTIONS as u64;
    say(&format!(
        "{CONNECTIONS} idle connections: {} KB, {} KB without; {each} bytes for each of {count}",
        full / 1000,
        empty / 1000
    ));
    assert!(full < IDLE_BYTES_MAX, "{full} bytes");
    drop((near, far));
    at_most("descriptors", descriptors, || lab.descriptors());
}

/// Connections that are kept in some state, as their ends.
type Ends = (Vec<TcpStream>, Vec<TcpStream>);

/// Writes until nothing more is taken, since nobody reads.
fn fill(streams: &[TcpStream]) {
    let bytes = [7; 16 * 1024];
    for mut stream in streams {
        while stream.write(&bytes).is_ok() {}
    }
}

/// Connections in every state that there is.
fn every_state(lab: &mut Lab) -> Vec<(&'static str, Ends)> {
    let mut all = Vec::new();
    all.push(("idle", lab.join("x", "y", CONNECTIONS - 4_100 - WAITING)));

    let half_open = lab.join("x", "y", 1_000);
    half_open.0.iter().for_each(|stream| stream.shutdown(Shutdown::Write).unwrap());
    all.push(("half-open", half_open));

    let blocked = lab.join("x", "y", 500);
    fill(&blocked.0);
    fill(&blocked.1);
    all.push(("never read", blocked));

    lab.inject("late", late(Duration::from_secs(600)), &["late>y"]);
    lab.apply();
    let delayed = lab.join("late", "y", 1_000);
    delayed.0.iter().for_each(|mut stream| stream.write_all(&[1; 512]).unwrap());
    all.push(("delayed", delayed));

    let jammed = lab.join("jam", "y", 500);
    let hold = LinkEffect { hold: Some(Hold::Jam), ..LinkEffect::default() };
    lab.inject("jam", hold, &["jam>y"]);
    lab.apply();
    jammed.0.iter().for_each(|mut stream| stream.write_all(&[1; 4096]).unwrap());
    all.push(("jammed", jammed));

    let (split, mut dying) = (lab.join("cut", "y", 500), lab.join("cut", "y", 500));
    lab.inject("cut", cut(Cut::Packets), &["cut>y", "y>cut"]);
    lab.apply();
    fill(&split.0);
    fill(&split.1);
    all.push(("cut in flight", split));
    // Their nodes are gone, and the diallers must not hear of it.
    dying.1.clear();
    all.push(("dying", dying));

    let accept_delay_us = 600_000_000;
    lab.inject("wait", LinkEffect { accept_delay_us, ..LinkEffect::default() }, &["wait>y"]);
    lab.apply();
    let waiting = (0..WAITING).map(|_| lab.begin_dial("wait", "y").unwrap()).collect();
    all.push(("waiting", (waiting, Vec::new())));

    // Nobody accepts there, so that its kernel answers no more dials than its backlog holds.
    let dialling = (0..100).map(|_| lab.begin_dial("x", "full").unwrap()).collect();
    all.push(("dialling", (dialling, Vec::new())));
    all
}

#[test]
fn rule_changes_wait_for_none_of_ten_thousand_connections() {
    let _alone = alone();
    raise_descriptor_limit(DESCRIPTORS);
    let mut lab = Lab::start(&["x", "y", "late", "jam", "cut", "wait", "full"]);
    lab.fill_backlog("full");
    let states = every_state(&mut lab);
    // A worker that is still busy with them is left out of a report.
    let mut carried = 0;
    eventually("nine in ten are carried", || {
        carried = lab.report().report.connections;
        carried >= 9 * CONNECTIONS as u64 / 10
    });
    let names: Vec<_> =
        states.iter().map(|(name, ends)| format!("{} {name}", ends.0.len())).collect();
    say(&format!("{carried} connections: {}", names.join(", ")));

    for (what, link, effect) in [
        ("a link without connections", "jam>late", cut(Cut::Packets)),
        ("6,000 idle and blocked ones", "x>y", late(Duration::from_millis(1))),
        ("6,000 cut and let go", "y>x", cut(Cut::Packets)),
        ("1,000 delayed otherwise", "late>y", late(Duration::from_secs(900))),
    ] {
        let (mut changes, mut reports) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            lab.inject("more", effect.clone(), &[link]);
            changes.push(lab.apply().1);
            lab.remove("more");
            changes.push(lab.apply().1);
            let began = Instant::now();
            lab.report();
            reports.push(began.elapsed());
        }
        let (change, report) = (median(&mut changes), median(&mut reports));
        let (slowest, slowest_report) = (changes[changes.len() - 1], reports[reports.len() - 1]);
        say(&format!(
            "{what}: a change takes {change:.1?} (at most {slowest:.1?}), a report {report:.1?} \
             (at most {slowest_report:.1?})"
        ));
        assert!(slowest < APPLY_MAX && slowest_report < REPORT_MAX, "{what}");
    }
    // They are what they were: the idle carry, the late are late.
    let (near, far) = &states[0].1;
    (&near[0]).write_all(b"?").unwrap();
    eventually("an idle connection carries", || {
        far.iter().any(|mut stream| stream.read(&mut [0]).is_ok_and(|count| count == 1))
    });
    let (_, late) = &states.iter().find(|(name, _)| *name == "delayed").unwrap().1;
    assert!(late.iter().all(|mut stream| stream.read(&mut [0]).is_err()), "nothing is due");
}

/// Dials all at once; the acceptor sends one byte to each. Says how many got it and how many a reset.
fn storm(lab: &Lab, count: usize) -> (Vec<TcpStream>, Vec<TcpStream>, usize) {
    let mut dialled: Vec<_> = (0..count).map(|_| lab.begin_dial("x", "y").unwrap()).collect();
    let (mut carried, mut served, mut refused) = (Vec::new(), Vec::new(), 0);
    eventually("every dial is carried or reset", || {
        while let Ok((mut stream, _)) = lab.server("y").accept() {
            stream.write_all(b"!").unwrap();
            served.push(stream);
        }
        for mut stream in std::mem::take(&mut dialled) {
            match stream.read(&mut [0]) {
                Ok(1) => carried.push(stream),
                Ok(_) => panic!("a stream that ends in order was carried by nobody"),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => refused += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => dialled.push(stream),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => dialled.push(stream),
                Err(error) => panic!("neither carried nor reset: {error}"),
            }
        }
        dialled.is_empty()
    });
    (carried, served, refused)
}

#[test]
fn a_storm_of_dials_is_carried_whole() {
    let _alone = alone();
    raise_descriptor_limit(DESCRIPTORS);
    let lab = Lab::start(&["x", "y"]);
    let began = Instant::now();
    let (carried, served, refused) = storm(&lab, 4_000);
    say(&format!("a storm of {} dials is over in {:.1?}", carried.len(), began.elapsed()));
    assert_eq!((carried.len(), refused), (4_000, 0));
    drop((carried, served));
}

#[test]
fn without_descriptors_dials_are_reset_and_later_ones_carried_and_it_is_said() {
    let _alone = alone();
    raise_descriptor_limit(DESCRIPTORS);
    let lab = Lab::start(&["x", "y"]);
    let before = lab.descriptors();
    lab.limit_descriptors(600);
    let (carried, served, refused) = storm(&lab, 1_000);
    assert!(carried.len() > 100 && refused > 0, "{} {refused}", carried.len());
    eventually("all are accounted for", || lab.report().report.refused == refused as u64);
    let log = lab.log();
    assert!(log.contains("descriptor"), "it is said: {log}");
    assert!(log.lines().count() < 20, "and not for each: {log}");
    // Those that are carried are carried on, and when they end there is room again, by itself.
    let (mut near, far) = (&carried[0], &served);
    far.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    near.write_all(b"?").unwrap();
    eventually("it carries", || {
        far.iter().any(|mut stream| stream.read(&mut [0]).is_ok_and(|count| count == 1))
    });
    drop((carried, served));
    eventually("descriptors are closed", || {
        // What came through after its dialler was reset is the server's to end.
        while lab.server("y").accept().is_ok() {}
        lab.descriptors() <= before
    });
    let (again, _served, refused) = storm(&lab, 50);
    assert_eq!((again.len(), refused), (50, 0));
}

#[test]
fn a_client_that_redials_through_a_cut_costs_no_descriptors() {
    let _alone = alone();
    let mut lab = Lab::start(&["x", "y"]);
    for kind in [Cut::Packets, Cut::Bytes] {
        let (near, far) = lab.join("x", "y", 10);
        lab.inject("cut", cut(kind), &["x>y", "y>x"]);
        lab.apply();
        let before = lab.descriptors();
        let mut most = before;
        for _ in 0..100 {
            let mut dial = lab.begin_dial("x", "y").unwrap();
            std::thread::sleep(Duration::from_millis(10));
            let _unanswered = dial.write(b"anybody?");
            drop(dial);
            most = most.max(lab.descriptors());
        }
        say(&format!(
            "a hundred dials through a cut of {kind:?}: {before} descriptors, then {most}"
        ));
        // A cut of bytes lets dials through: each is there until its end was passed on, after the heal.
        let allowed = if kind == Cut::Packets { 2 } else { 2 * 100 };
        assert!(most <= before + allowed, "{before} then {most}");
        drop((near, far));
        lab.remove("cut");
        lab.apply();
        eventually("nothing is left", || {
            while lab.server("y").accept().is_ok() {}
            lab.report().report.connections == 0
        });
    }
}
