//! How much passes and how late: loss next to nftables, bandwidth next to tbf, delay next to the number asked for.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use faultbed_common::{
    effect::{Loss, Rate, Ratio},
    proxy_spec::{Delay, LinkEffect, SEGMENT_BYTES},
};

use crate::kernel::{
    ground::{DEVICE, Place},
    proxy::{BACK, OUT},
    reading::{Like, Reading, Value, millis, row},
    run::{Case, alone},
    scene::{Path, Scene, pass},
};

/// Segments over which a rate of loss is measured.
const SEGMENTS: usize = 100_000;
/// A stream that loses more than it carries ends here.
const STREAM_MAX: Duration = Duration::from_secs(25);
const ROUND_TRIPS: usize = 100;
/// How long a rate is measured, after the first bytes have arrived.
const MEASURED: Duration = Duration::from_secs(3);
const CHUNK: usize = 64 * 1024;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for percent in [1_u32, 5] {
        let name = format!("Loss of {percent} % of the client's segments, offloads off, reno");
        cases.push(alone(name, move |scene| loss(scene, percent)));
    }
    for ms in [2_u64, 20] {
        cases.push(alone(format!("Delay of {ms} ms each way"), move |scene| delay(scene, ms)));
    }
    for megabits in [5_u64, 50] {
        let name = format!("Bandwidth of {megabits} Mbit/s, next to tbf");
        cases.push(alone(name, move |scene| bandwidth(scene, megabits)));
    }
    cases
}

fn loss(scene: &mut Scene, percent: u32) -> Reading {
    let joined = scene.join();
    let ratio = Ratio::from_ppm(percent * 10_000);
    // Whatever is dropped later is counted first: every segment that the client's kernel sent.
    let drops = match scene.path() {
        Path::Kernel => format!(
            "counter\nadd rule inet link arrive iifname \"{DEVICE}\" \
             numgen random mod 1000 < {} counter drop",
            percent * 10
        ),
        Path::Proxy => "counter".to_owned(),
    };
    scene.filter(Place::Server, &drops);
    if let Some(proxy) = scene.proxy() {
        let effect = LinkEffect { loss: vec![Loss::Bernoulli(ratio)], ..LinkEffect::default() };
        proxy.set(&[(OUT, effect)]);
    }
    let (read, took) = stream(&joined.near, &joined.far);
    let counters = counters(scene);
    let dropped = match scene.path() {
        Path::Kernel => counters[1],
        Path::Proxy => socket_drops(scene),
    };
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let (share, rate) =
        (dropped as f64 / counters[0] as f64 * 100.0, read as f64 * 8.0 / took.as_secs_f64() / 1e6);
    let asked = f64::from(percent);
    vec![
        row("segments dropped", Value::Percent(share), Like::Near { share: 0.1, slack: 0.0 }),
        row(
            "segments dropped, off what was asked for",
            Value::Percent((share - asked).abs()),
            Like::AtMost(asked / 10.0),
        ),
        row("throughput", Value::Megabits(rate), Like::Factor(1.5)),
    ]
}

/// Sends [`SEGMENTS`] segments' worth; the bytes that arrived and how long that took.
fn stream(near: &TcpStream, far: &TcpStream) -> (usize, Duration) {
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut near, chunk, mut left) = (near, [b's'; CHUNK], SEGMENTS * SEGMENT_BYTES);
            while left > 0 && begun.elapsed() < STREAM_MAX {
                let count = chunk.len().min(left);
                near.write_all(&chunk[..count]).expect("write");
                left -= count;
            }
            near.shutdown(std::net::Shutdown::Write).expect("end the stream");
        });
        let (mut far, mut bytes, mut read) = (far, vec![0; 4 * CHUNK], 0);
        loop {
            match far.read(&mut bytes).expect("read on") {
                0 => return (read, begun.elapsed()),
                some => read += some,
            }
        }
    })
}

/// Packets counted by the rules of [`Scene::filter`] in the server's namespace, in their order.
fn counters(scene: &Scene) -> Vec<u64> {
    let rules = scene.ground().ask(Place::Server, "nft", &["list", "ruleset"]);
    let after = rules.split("counter packets ").skip(1);
    after.map(|rest| number(rest)).collect()
}

/// Packets that our proxy's socket towards the client dropped, as `ss` tells it: the kernel's own
/// count, not the proxy's.
fn socket_drops(scene: &Scene) -> u64 {
    let sockets = scene.ground().ask(Place::Server, "ss", &["-Htnm", "sport = :7000"]);
    let towards = sockets.split("10.77.0.1:").nth(1).unwrap_or_default();
    let memory = towards.split("skmem:(").nth(1).and_then(|rest| rest.split(')').next());
    let drops = memory.and_then(|memory| memory.rsplit(",d").next());
    number(drops.unwrap_or_default())
}

fn number(text: &str) -> u64 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

fn delay(scene: &mut Scene, ms: u64) -> Reading {
    const WHY: &str = "this kernel has no netem: its column is the round trip without a fault and \
                       the delay asked for";
    let joined = scene.join();
    if let Some(proxy) = scene.proxy() {
        let delay = Delay { base_us: ms * 1000, ..Delay::default() };
        let effect = LinkEffect { delay: Some(delay), ..LinkEffect::default() };
        proxy.set(&[(OUT, effect.clone()), (BACK, effect)]);
    }
    let mut times: Vec<Duration> = (0..ROUND_TRIPS)
        .map(|_| {
            let begun = Instant::now();
            pass(&joined.near, &joined.far, &[b'p'; 64]);
            pass(&joined.far, &joined.near, &[b'p'; 64]);
            begun.elapsed()
        })
        .collect();
    times.sort();
    let both_ways = match scene.path() {
        Path::Kernel => Duration::from_millis(2 * ms),
        Path::Proxy => Duration::ZERO,
    };
    let [median, late] = [ROUND_TRIPS / 2, ROUND_TRIPS * 9 / 10].map(|at| times[at] + both_ways);
    vec![
        row("64 bytes and back, median", millis(median), Like::Near { share: 0.0, slack: 2.0 })
            .remark(WHY),
        row("64 bytes and back, p90", millis(late), Like::Near { share: 0.0, slack: 15.0 }),
    ]
}

fn bandwidth(scene: &mut Scene, megabits: u64) -> Reading {
    const WHY: &str =
        "tbf counts 1514 bytes of frame for 1448 bytes of stream; ours counts the stream";
    let joined = scene.join();
    match scene.path() {
        Path::Kernel => {
            let rate = format!("{megabits}mbit");
            let shape = ["qdisc", "add", "dev", DEVICE, "root", "tbf", "rate", &rate];
            let bounds = ["burst", "16k", "latency", "50ms"];
            let arguments = [&shape[..], &bounds[..]].concat();
            if scene.ground().try_feed(Place::Client, "tc", &arguments, "").is_err() {
                let lacks = Value::Word("this kernel has no tbf".to_owned());
                return vec![row("throughput over 3 s", lacks, Like::Apart)];
            }
        }
        Path::Proxy => {
            let rate = Rate { bits_per_s: megabits * 1_000_000 };
            let effect = LinkEffect { bandwidth: Some(rate), ..LinkEffect::default() };
            let proxy = scene.proxy().expect("it is the link");
            proxy.set(&[(OUT, effect)]);
        }
    }
    let rate = measure(&joined.near, &joined.far);
    vec![
        row("throughput over 3 s", Value::Megabits(rate), Like::Near { share: 0.1, slack: 0.0 })
            .remark(WHY),
    ]
}

/// Megabits per second that arrive, once bytes arrive.
fn measure(near: &TcpStream, far: &TcpStream) -> f64 {
    let (mut far, mut bytes) = (far, vec![0; 4 * CHUNK]);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut near, chunk) = (near, [b's'; CHUNK]);
            // The reader hangs up.
            while near.write_all(&chunk).is_ok() {}
        });
        far.read_exact(&mut bytes[..CHUNK]).expect("first bytes arrive");
        let (begun, mut read) = (Instant::now(), 0_usize);
        while begun.elapsed() < MEASURED {
            read += far.read(&mut bytes).expect("read on");
        }
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let rate = read as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e6;
        near.shutdown(std::net::Shutdown::Both).expect("end the stream");
        writer.join().expect("write until the end");
        rate
    })
}
