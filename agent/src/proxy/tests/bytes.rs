//! What effects do to the bytes of a stream: flipped bits, pieces, losses, holds, and how it ends.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use faultbed_common::proxy_spec::{Endings, Hold, LinkEffect};

use super::harness::{Lab, eventually, is_silent, late, noise, pass, unacknowledged};

fn hold(hold: Hold) -> LinkEffect {
    LinkEffect { hold: Some(hold), ..LinkEffect::default() }
}

fn lossy(text: &str) -> LinkEffect {
    LinkEffect { loss: vec![text.parse().unwrap()], ..LinkEffect::default() }
}

fn sliced(text: &str) -> LinkEffect {
    LinkEffect { slice: Some(text.parse().unwrap()), ..LinkEffect::default() }
}

fn corrupt(text: &str) -> LinkEffect {
    LinkEffect { corrupt: Some(text.parse().unwrap()), ..LinkEffect::default() }
}

fn ending(endings: Endings) -> LinkEffect {
    LinkEffect { endings, ..LinkEffect::default() }
}

/// Sends bytes while they are received.
fn carry(mut from: &TcpStream, mut to: &TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut got = vec![0; bytes.len()];
    thread::scope(|scope| {
        scope.spawn(move || from.write_all(bytes).unwrap());
        to.read_exact(&mut got).unwrap();
    });
    got
}

#[test]
fn corruption_flips_single_bits_and_nothing_else() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("rot", corrupt("20%"), &["x>y"]);
    lab.apply();
    let sent = noise(3, 1448 * 2_000);
    let got = carry(&near, &far, &sent);
    let flips: Vec<u8> = sent.iter().zip(&got).map(|(a, b)| a ^ b).filter(|d| *d > 0).collect();
    assert!(flips.iter().all(|flip| flip.count_ones() == 1));
    // Reads need not end where segments do, so there may be some more of them.
    assert!((330..800).contains(&flips.len()), "{}", flips.len());
    assert_eq!(lab.evidence("rot", "x>y").corrupted_bytes, flips.len() as u64);
    let back = noise(4, 1448 * 100);
    assert!(carry(&far, &near, &back) == back, "the other way is another link");
    lab.heal("rot");
    assert!(carry(&near, &far, &sent) == sent);
}

#[test]
fn slices_arrive_one_by_one() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, mut far) = lab.join("x", "y");
    let pause = Duration::from_millis(20);
    lab.inject("cut", sliced("10B delay=20ms"), &["x>y"]);
    lab.apply();
    let began = Instant::now();
    (&mut &near).write_all(&noise(1, 55)).unwrap();
    let mut got = Vec::new();
    let mut sizes = Vec::new();
    while got.len() < 55 {
        let mut part = [0; 64];
        let count = far.read(&mut part).unwrap();
        got.extend_from_slice(&part[..count]);
        sizes.push(count);
    }
    assert_eq!(got, noise(1, 55));
    assert!(began.elapsed() >= 5 * pause, "{:?}", began.elapsed());
    assert!(sizes.len() > 2 && sizes[0] == 10, "{sizes:?}");
    assert_eq!(lab.evidence("cut", "x>y").slices, 6);
    let bulk = noise(2, 1 << 20);
    lab.heal("cut");
    lab.inject("cut", sliced("700B variation=500B"), &["x>y"]);
    lab.apply();
    assert!(carry(&near, &far, &bulk) == bulk);
    assert!(lab.evidence("cut", "x>y").slices > (1 << 20) / 1_200);
}

#[test]
fn what_is_lost_is_sent_again_and_all_else_waits_for_it() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("loss", lossy("30%"), &["x>y"]);
    lab.apply();
    let began = Instant::now();
    for number in 0..20_u32 {
        (&mut &near).write_all(&number.to_be_bytes()).unwrap();
        thread::yield_now();
    }
    let mut got = [0; 80];
    (&mut &far).read_exact(&mut got).unwrap();
    let numbers: Vec<u8> = (0..20_u32).flat_map(u32::to_be_bytes).collect();
    assert_eq!(got[..], numbers);
    let mut lost = lab.evidence("loss", "x>y").lost_chunks;
    // How many segments there are is up to the kernel: at least one.
    while lost == 0 {
        pass(&near, &far, "once more");
        lost = lab.evidence("loss", "x>y").lost_chunks;
    }
    assert!(began.elapsed() > Duration::from_millis(200), "{:?}", began.elapsed());
    lab.heal("loss");
    lab.inject("few", lossy("1%"), &["x>y"]);
    lab.inject("states", lossy("p=1% r=30%"), &["x>y"]);
    lab.inject("burst", lossy("burst=1ms every=50ms"), &["x>y"]);
    lab.apply();
    let bulk = noise(8, 8 << 20);
    assert!(carry(&near, &far, &bulk) == bulk);
    let lost = lab.evidence("few", "x>y").lost_chunks;
    // Between the three of them some 5 % of 5793 segments.
    assert!((100..2_000).contains(&lost), "{lost}");
}

#[test]
fn a_jam_takes_everything_in_and_delivers_it_late() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("jam", hold(Hold::Jam), &["x>y"]);
    lab.apply();
    let bytes = noise(5, 4 << 20);
    (&mut &near).write_all(&bytes).unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    eventually("all is acknowledged", || unacknowledged(&near) == 0);
    eventually("all is held", || lab.evidence("jam", "x>y").held_bytes == 4 << 20);
    assert!(is_silent(&far), "nothing is delivered");
    pass(&far, &near, "the other way is another link");
    lab.heal("jam");
    let mut got = Vec::new();
    (&mut &far).read_to_end(&mut got).unwrap();
    assert!(got == bytes);
}

#[test]
fn a_stall_stops_the_sender_and_delivers_late() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("stall", hold(Hold::Stall), &["x>y"]);
    lab.apply();
    near.set_nonblocking(true).unwrap();
    let part = noise(6, 1 << 16);
    let mut sent = Vec::new();
    let is_full = || match (&mut &near).write(&part[sent.len() % part.len()..]) {
        Ok(count) => {
            let at = sent.len() % part.len();
            sent.extend_from_slice(&part[at..at + count]);
            false
        }
        Err(error) => error.kind() == io::ErrorKind::WouldBlock && unacknowledged(&near) > 0,
    };
    eventually("the sender is stopped", is_full);
    assert!(is_silent(&far), "nothing is delivered");
    eventually("it is counted", || lab.evidence("stall", "x>y").held_bytes > 0);
    near.set_nonblocking(false).unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    lab.heal("stall");
    let mut got = Vec::new();
    (&mut &far).read_to_end(&mut got).unwrap();
    assert!(got == sent);
}

#[test]
fn a_hold_that_begins_in_the_middle_of_a_delay_keeps_the_order() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("wan", late(Duration::from_millis(100), Duration::ZERO), &["x>y"]);
    lab.apply();
    (&mut &near).write_all(b"one ").unwrap();
    eventually("it is on its way", || lab.evidence("wan", "x>y").delayed_chunks == 1);
    lab.inject("jam", hold(Hold::Jam), &["x>y"]);
    lab.apply();
    (&mut &near).write_all(b"two ").unwrap();
    eventually("both are held", || lab.evidence("jam", "x>y").held_bytes == 8);
    lab.file.spec.faults.remove(&"wan".parse().unwrap());
    lab.apply();
    assert!(is_silent(&far));
    lab.heal("jam");
    (&mut &near).write_all(b"three").unwrap();
    let mut got = [0; 13];
    (&mut &far).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"one two three");
}

#[test]
fn a_limit_lets_exactly_so_many_bytes_pass_and_closes_both_ways() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    pass(&near, &far, "before the fault");
    let endings = Endings { limit_bytes: Some(10_000), ..Endings::default() };
    lab.inject("limit", ending(endings), &["x>y"]);
    lab.apply();
    pass(&far, &near, "the other way is not counted");
    let bytes = noise(7, 30_000);
    (&mut &near).write_all(&bytes).unwrap();
    let mut got = Vec::new();
    (&mut &far).read_to_end(&mut got).unwrap();
    assert!(got == bytes[..10_000], "{} bytes passed", got.len());
    assert_eq!((&mut &near).read(&mut [0; 1]).unwrap(), 0, "closed in order");
    eventually("it is counted", || lab.evidence("limit", "x>y").closes == 1);
    let (near, far) = lab.join("x", "y");
    pass(&near, &far, "each connection has a limit of its own");
}

#[test]
fn a_slow_close_keeps_the_end_back_but_no_byte() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    let endings = Endings { slow_close_us: 150_000, ..Endings::default() };
    lab.inject("slow", ending(endings), &["x>y"]);
    lab.apply();
    pass(&near, &far, "a byte is not late");
    let began = Instant::now();
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&mut &far).read(&mut [0; 1]).unwrap(), 0);
    assert!(began.elapsed() >= Duration::from_millis(150), "{:?}", began.elapsed());
    assert_eq!(lab.evidence("slow", "x>y").closes, 1);
    pass(&far, &near, "half of it lives");

    let (near, far) = lab.join("x", "y");
    let endings = Endings { slow_close_us: 3_600_000_000, ..Endings::default() };
    lab.inject("slow", ending(endings), &["x>y"]);
    lab.apply();
    drop(near);
    assert!(is_silent(&far));
    lab.heal("slow");
    assert_eq!((&mut &far).read(&mut [0; 1]).unwrap(), 0, "a heal brings it at once");
}

#[test]
fn half_closed_streams_live_under_every_effect() {
    let endings =
        Endings { slow_close_us: 1_000, limit_bytes: Some(1 << 30), ..Endings::default() };
    let effects = [
        late(Duration::from_millis(2), Duration::from_millis(1)),
        lossy("1%"),
        sliced("100B delay=10us"),
        LinkEffect { bandwidth: Some("1Gbit".parse().unwrap()), ..LinkEffect::default() },
        ending(endings),
    ];
    for effect in effects {
        let mut lab = Lab::start(&["x", "y"]);
        let (near, far) = lab.join("x", "y");
        let told = format!("{effect:?}");
        lab.inject("f", effect, &["x>y", "y>x"]);
        lab.apply();
        for (mut from, mut to) in [(&near, &far), (&far, &near)] {
            let bytes = noise(9, 100_000);
            from.write_all(&bytes).unwrap();
            from.shutdown(Shutdown::Write).unwrap();
            let mut got = Vec::new();
            to.read_to_end(&mut got).unwrap();
            assert!(got == bytes, "{told}");
        }
    }
}

#[test]
fn what_a_dead_sender_had_sent_is_delivered_after_a_stall_and_then_its_end() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("stall", hold(Hold::Stall), &["x>y"]);
    lab.apply();
    (&mut &near).write_all(b"last words").unwrap();
    eventually("they are held", || lab.evidence("stall", "x>y").held_bytes == 10);
    rustix::net::sockopt::set_socket_linger(&near, Some(Duration::ZERO)).unwrap();
    drop(near);
    // The other way finds out that nobody is there, and keeps it to itself.
    (&mut &far).write_all(b"hello?").unwrap();
    eventually("it has got nowhere", || unacknowledged(&far) == 0);
    (&mut &far).write_all(b"hello?").unwrap();
    eventually("it has got nowhere", || unacknowledged(&far) == 0);
    assert!(is_silent(&far), "a reset does not cross a stall");
    lab.heal("stall");
    let mut got = [0; 10];
    (&mut &far).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"last words");
    let end = (&mut &far).read(&mut got).unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
}
