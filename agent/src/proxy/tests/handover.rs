//! A data plane that hands over to another one: streams, new connections, faults, and successors that fail.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use faultbed_common::{duration::Span, fault::HealPolicy, proxy_spec::Cut};

use super::harness::{
    Lab, PATIENCE, begin, cut, eventually, fault, finish, is_silent, late, noise, pass,
};
use crate::clock;
use crate::proxy::{
    Proxy,
    handover::{Line, Word, ask, fetch},
};

const BOTH: [&str; 2] = ["x>y", "y>x"];

/// Echoes whatever comes, until it ends.
fn echo(mut stream: TcpStream) {
    let mut bytes = vec![0; 1 << 15];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

/// Sends parts of many sizes and sees each come back as it was, until told to stop.
fn talk(mut stream: &TcpStream, seed: u64, stop: &AtomicBool) -> usize {
    let bytes = noise(seed, 1 << 16);
    let mut total = 0;
    for round in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let length = 64 + (round * 7919 + usize::try_from(seed).unwrap() * 131) % 20_000;
        let start = (round * 4099) % (bytes.len() - length);
        let part = &bytes[start..start + length];
        let mut back = vec![0; length];
        let came = stream.write_all(part).and_then(|()| stream.read_exact(&mut back));
        came.unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error}"));
        assert!(back == part, "seed {seed}, round {round}: other bytes came back");
        total += length;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "seed {seed}: more came back than was sent");
    total
}

/// What is done while a lab with many streams hands over again and again.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    talked: AtomicUsize,
    dialled: AtomicUsize,
    /// How long the slowest answer to a single byte took of late, in microseconds, and how many came.
    slowest_us: AtomicU64,
    answers: AtomicUsize,
    /// Nobody dials any more.
    done: AtomicBool,
}

impl Load {
    /// Hands over, and says how long that took and what answers waited for.
    fn hand_over(&self, lab: &mut Lab, round: u32) {
        let usual = self.slowest();
        let began = Instant::now();
        lab.hand_over();
        let (took, slowest) = (began.elapsed(), self.slowest());
        println!(
            "hand-over {round} took {took:?}: answers came after {slowest:?} at most, {usual:?} before"
        );
    }

    /// Echoes what new connections send.
    fn accept(&self, server: &TcpListener) {
        while let Ok((stream, _)) = server.accept() {
            if self.done.load(Ordering::Relaxed) {
                return;
            }
            thread::spawn(move || echo(stream));
        }
    }

    /// Asks for one byte after the other: what shows how long all stands still.
    fn ping(&self, mut stream: &TcpStream) {
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            stream.write_all(b"p").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            let took = u64::try_from(began.elapsed().as_micros()).unwrap();
            self.slowest_us.fetch_max(took, Ordering::Relaxed);
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How long the slowest answer took until now, and begins anew.
    fn slowest(&self) -> Duration {
        let before = self.answers.load(Ordering::Relaxed);
        eventually("answers come", || self.answers.load(Ordering::Relaxed) > before);
        Duration::from_micros(self.slowest_us.swap(0, Ordering::Relaxed))
    }

    /// Opens one connection after the other.
    fn dial(&self, from: IpAddr, listen: SocketAddr, upstream: SocketAddr) {
        let _whatever_happens = Done(&self.done, upstream);
        while !self.stop.load(Ordering::Relaxed) {
            let stream = begin(Some(from), listen).and_then(|stream| finish(stream, PATIENCE));
            let mut stream = stream.expect("nothing is refused");
            stream.write_all(b"new").unwrap();
            stream.read_exact(&mut [0; 3]).expect("new connections are carried");
            self.dialled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Ends the load when the test fails too.
pub(super) struct Stop<'a>(pub(super) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets the one go that accepts.
struct Done<'a>(&'a AtomicBool, SocketAddr);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.1));
    }
}

#[test]
fn streams_of_every_kind_survive_hand_overs_in_a_row_whole() {
    const ECHOES: usize = 250;
    const BULKS: usize = 8;
    let mut lab = Lab::start(&["x", "y", "z", "w", "v"]);
    // Late both ways; and cut: those wait until the end.
    lab.inject("slow", late(Duration::from_millis(8), Duration::from_millis(8)), &["z>y", "y>z"]);
    lab.apply();
    let load = Load::default();
    let join = |from: &str| {
        let (near, far) = lab.join(from, "y");
        thread::spawn(move || echo(far));
        near
    };
    let echoes: Vec<TcpStream> = (0..ECHOES)
        .map(|at| {
            join(match at % 8 {
                0 => "z",
                1 => "w",
                _ => "x",
            })
        })
        .collect();
    // Nobody reads these before the end: their pipes and buffers are full.
    let bulks: Vec<(TcpStream, TcpStream)> = (0..BULKS).map(|_| lab.join("x", "v")).collect();
    let pinged = join("x");
    let listen = lab.listen("y");
    let server = lab.server("y").try_clone().unwrap();
    let upstream = server.local_addr().unwrap();
    let dialler = echoes[2].local_addr().unwrap().ip();
    let started = Instant::now();
    thread::scope(|scope| {
        let load = &load;
        for (seed, stream) in echoes.iter().enumerate() {
            scope.spawn(move || {
                let total = talk(stream, seed as u64, &load.stop);
                load.talked.fetch_add(total, Ordering::Relaxed);
            });
        }
        for (seed, (near, _)) in bulks.iter().enumerate() {
            scope.spawn(move || {
                (&mut &*near).write_all(&noise(seed as u64, 12 << 20)).unwrap();
                near.shutdown(Shutdown::Write).unwrap();
            });
        }
        scope.spawn(|| load.ping(&pinged));
        scope.spawn(move || load.accept(&server));
        scope.spawn(move || load.dial(dialler, listen, upstream));
        let _whatever_happens = Stop(&load.stop);
        for round in 0..6 {
            let before = load.dialled.load(Ordering::Relaxed);
            eventually("new ones come", || load.dialled.load(Ordering::Relaxed) > before + 5);
            match round {
                1 => drop(lab.inject("split", cut(Cut::Packets), &["w>y", "y>w"])),
                4 => drop(lab.file.spec.faults.remove(&fault("split"))),
                _ => {}
            }
            // In force when it returns, or put in force by the successor.
            if round % 2 == 0 {
                drop(lab.apply())
            } else {
                lab.write()
            }
            load.hand_over(&mut lab, round);
        }
        load.stop.store(true, Ordering::Relaxed);
        for (seed, (_, far)) in bulks.iter().enumerate() {
            let mut got = Vec::new();
            (&mut &*far).read_to_end(&mut got).unwrap();
            assert!(got == noise(seed as u64, 12 << 20), "bulk stream {seed} is not whole");
        }
    });
    let Load { talked, dialled, .. } = load;
    println!(
        "{} bytes echoed on {ECHOES} streams, {} new connections, in {:?}",
        talked.into_inner(),
        dialled.into_inner(),
        started.elapsed()
    );
    let state = lab.report();
    for link in ["w>y", "y>w"] {
        assert_eq!(lab.evidence("split", link).leaked_bytes, 0);
    }
    assert!(state.faults[&fault("slow")].links[&"z>y".parse().unwrap()].delayed_chunks > 0);
}

#[test]
fn a_cut_stays_a_cut_and_its_evidence_is_kept() {
    let mut lab = Lab::start(&["x", "y", "z"]);
    let (near, far) = lab.join("x", "y");
    pass(&near, &far, "before");
    lab.inject("split", cut(Cut::Packets), &BOTH).lasts = Some("10m".parse::<Span>().unwrap());
    lab.apply();
    assert!(lab.is_unanswered("x", "y", "z"));
    (&mut &near).write_all(b"held").unwrap();
    for _ in 0..3 {
        let before = lab.report();
        let counted = lab.evidence("split", "x>y");
        assert!(counted.attempts_refused > 0 && counted.connections == 1, "{counted:?}");
        lab.hand_over();
        assert!(lab.is_unanswered("x", "y", "z"), "a SYN of a cut dialler was accepted");
        assert!(is_silent(&far), "bytes crossed a cut");
        let after = lab.report();
        let again = lab.evidence("split", "x>y");
        assert!(again.attempts_refused > counted.attempts_refused, "{again:?}");
        assert_eq!((again.connections, again.leaked_bytes), (1, 0));
        // Its time goes on, it does not begin anew.
        let left = |state: &crate::proxy::ProxyState| state.faults[&fault("split")].remaining_ms;
        assert!(left(&after) <= left(&before) && left(&after).is_some());
        assert_eq!(after.report.connections, before.report.connections);
    }
    lab.heal("split");
    pass_held(&far, b"held");
    pass(&far, &near, "healed");
    assert!(!lab.report().faults[&fault("split")].active);
    assert!(lab.evidence("split", "x>y").attempts_refused > 0, "kept after the heal");
    lab.hand_over();
    assert!(lab.evidence("split", "x>y").attempts_refused > 0, "and after a hand-over");
    let (near, far) = lab.join("x", "y");
    pass(&near, &far, "new");
}

fn pass_held(mut stream: &TcpStream, wanted: &[u8]) {
    let mut bytes = vec![0; wanted.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, wanted);
}

#[test]
fn a_heal_in_the_file_that_the_successor_reads_resets_what_the_policy_says() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, _far) = lab.join("x", "y");
    lab.inject("split", cut(Cut::Packets), &BOTH).heal = HealPolicy::Reset;
    lab.apply();
    lab.file.spec.faults.clear();
    lab.write();
    lab.hand_over();
    let error = (&mut &near).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn delayed_bytes_arrive_in_order_and_at_their_time() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("slow", late(Duration::from_millis(700), Duration::ZERO), &["x>y"]);
    lab.apply();
    let sent = Instant::now();
    (&mut &near).write_all(b"late").unwrap();
    eventually("they are taken in", || lab.evidence("slow", "x>y").delayed_chunks == 1);
    lab.hand_over();
    (&mut &near).write_all(b"r").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    lab.hand_over();
    let mut got = String::new();
    (&mut &far).read_to_string(&mut got).unwrap();
    assert_eq!(got, "later");
    assert!(sent.elapsed() >= Duration::from_millis(700));
    assert_eq!(lab.evidence("slow", "x>y").delayed_chunks, 2);
}

#[test]
fn a_deadline_that_falls_into_a_hand_over_is_kept() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("split", cut(Cut::Packets), &BOTH);
    lab.end_in("split", Duration::from_millis(300));
    lab.apply();
    let end_ns = clock::boottime_ns() + 300_000_000;
    (&mut &near).write_all(b"held").unwrap();
    // A successor that has taken everything in, and takes its time.
    let fetched = fetch(&lab.socket()).unwrap();
    eventually("the deadline is over", || clock::boottime_ns() > end_ns);
    assert!(is_silent(&far), "nobody moves a byte meanwhile");
    drop(fetched);
    pass_held(&far, b"held");
    eventually("it has ended", || !lab.report().faults[&fault("split")].active);

    lab.file.spec.faults.clear();
    lab.file.deadlines.clear();
    lab.apply();
    lab.inject("again", cut(Cut::Packets), &BOTH);
    lab.end_in("again", Duration::from_millis(300));
    lab.apply();
    (&mut &near).write_all(b"more").unwrap();
    lab.hand_over();
    pass_held(&far, b"more");
    assert!(!lab.report().faults[&fault("again")].active);
}

/// Hears a number of words, then goes; says which was the last.
fn hear_some(line: Line, words: usize) -> Option<Word> {
    let mut last = None;
    for _ in 0..words {
        let (word, _) = line.hear().ok()?;
        last = Some(word);
    }
    last
}

#[test]
fn a_successor_that_ends_early_changes_nothing() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("slow", late(Duration::from_millis(1), Duration::ZERO), &BOTH);
    lab.apply();
    let mut ended = false;
    for words in 0..60 {
        let (line, _control) = ask(&lab.socket()).unwrap();
        let last = hear_some(line, words);
        pass(&near, &far, "goes on");
        drop(lab.join("x", "y"));
        // Each that is still there would be one word more.
        eventually("it is gone", || lab.report().report.connections == 1);
        if matches!(last, Some(Word::End { .. })) {
            ended = true;
            break;
        }
    }
    assert!(ended, "it was tried after every word");
    // Ready, and gone before it has heard that it may.
    let (line, _control) = ask(&lab.socket()).unwrap();
    while !matches!(line.hear().unwrap().0, Word::End { .. }) {}
    line.say(&Word::Ready).unwrap();
    drop(line);
    pass(&near, &far, "goes on");
    pass(&far, &near, "goes on");
    // And after all that it can still be done.
    lab.hand_over();
    pass(&near, &far, "goes on");
}

#[test]
fn a_successor_that_ends_with_everything_costs_the_connections_and_nothing_else() {
    let mut lab = Lab::start(&["x", "y", "z"]);
    let (near, _far) = lab.join("z", "y");
    lab.inject("split", cut(Cut::Packets), &BOTH);
    lab.apply();
    let (line, _control) = ask(&lab.socket()).unwrap();
    while !matches!(line.hear().unwrap().0, Word::End { .. }) {}
    line.say(&Word::Ready).unwrap();
    assert_eq!(line.hear().unwrap().0, Word::Yours);
    drop(line);
    let error = (&mut &near).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let _accepted = lab.server("y");
    let (near, far) = lab.join("z", "y");
    pass(&near, &far, "new");
    assert!(lab.is_unanswered("x", "y", "z"), "the cut is still in force");
}

#[test]
fn what_is_malformed_is_refused_and_harms_nobody() {
    let lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    for (words, why) in [
        ("{\"v\":1,\"op\":\"handover\"}\n", "in version 1"),
        ("{\"v\":1,\"op\":\"handover\",\"formats\":[7,9]}\n", "takes 7 to 9"),
        ("{\"v\":1,\"op\":\"handover\",\"formats\":[1,1]}\n", "no line"),
        ("{\"v\":1,\"op\":\"handover\",\"formats\":\"all\"}\n", "parse request"),
    ] {
        let mut control = UnixStream::connect(lab.socket()).unwrap();
        control.write_all(words.as_bytes()).unwrap();
        control.shutdown(Shutdown::Write).unwrap();
        let mut reply = String::new();
        control.read_to_string(&mut reply).unwrap();
        assert!(reply.contains("\"ok\":false") && reply.contains(why), "{reply}");
    }
    for word in [Word::Yours, Word::Taken, Word::End { connections: 7 }, Word::More] {
        let (line, mut control) = ask(&lab.socket()).unwrap();
        line.say(&word).unwrap();
        while line.hear().is_ok() {}
        let mut reply = vec![0; 1000];
        let count = control.read(&mut reply).unwrap();
        let reply = String::from_utf8_lossy(&reply[..count]).into_owned();
        assert!(reply.contains("the successor says"), "{reply}");
        pass(&near, &far, "goes on");
    }
}

#[test]
fn a_successor_that_cannot_read_the_file_leaves_everything_as_it_is() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    std::fs::write(lab.home().join("proxy.json"), "{").unwrap();
    let error = Proxy::take_over(&lab.home(), &lab.socket()).unwrap_err();
    assert!(error.to_string().contains("parse proxy.json"), "{error}");
    pass(&near, &far, "goes on");
    lab.write();
    lab.hand_over();
    pass(&near, &far, "goes on");
    assert!(lab.socket().exists());
}
