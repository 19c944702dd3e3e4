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
    reading::{Like, Reading, Row, Value, millis, row},
    run::{Case, alone},
    scene::{Joined, Path, Scene, pass},
};

/// Segments over which a rate of loss is measured.
const SEGMENTS: usize = 100_000;
/// A stream that loses more than it carries ends here.
const STREAM_MAX: Duration = Duration::from_secs(25);
/// What is sent under loss: 1 % is over soon and a matter of the machine, so several times; 5 % is a
/// matter of some dozen time-outs, so several at once.
const LOADS: [Load; 2] =
    [Load { percent: 1, rounds: 5, streams: 1 }, Load { percent: 5, rounds: 1, streams: 4 }];
const ROUND_TRIPS: usize = 100;
/// How long a rate is measured, after the first bytes have arrived.
const MEASURED: Duration = Duration::from_secs(2);
const CHUNK: usize = 64 * 1024;
/// Of the rate asked for: where even tbf does not reach it, there is nothing to compare with.
const TBF_LEAST: f64 = 0.85;

/// How much is sent under a loss: in each round so many streams of [`SEGMENTS`].
#[derive(Debug, Clone, Copy)]
struct Load {
    percent: u32,
    rounds: usize,
    streams: usize,
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for load in LOADS {
        let Load { percent, streams, .. } = load;
        let name =
            format!("Loss of {percent} % of the client's segments, streams of reno: {streams}");
        cases.push(alone(name, move |scene| loss(scene, load)));
    }
    for ms in [10_u64, 50] {
        cases.push(alone(format!("Delay of {ms} ms each way"), move |scene| delay(scene, ms)));
    }
    for megabits in [5_u64, 50] {
        let name = format!("Bandwidth of {megabits} Mbit/s, next to tbf");
        cases.push(alone(name, move |scene| bandwidth(scene, megabits)));
    }
    cases
}

fn loss(scene: &mut Scene, load: Load) -> Reading {
    let percent = load.percent;
    // What this machine carries at all: beyond that a loss shows nothing.
    let mut without: Vec<f64> = (0..load.rounds).map(|_| stream(&scene.join())).collect();
    without.sort_by(f64::total_cmp);
    // Whatever is dropped later is counted first: every segment that the client's kernel sent.
    let drops = match scene.path() {
        Path::Kernel => format!(
            "counter\nadd rule inet link arrive iifname \"{DEVICE}\" meta l4proto tcp \
             numgen random mod 1000 < {} counter drop",
            percent * 10
        ),
        Path::Proxy => "counter".to_owned(),
    };
    scene.filter(Place::Server, &drops);
    if let Some(proxy) = scene.proxy() {
        let ratio = Ratio::from_ppm(percent * 10_000);
        let effect = LinkEffect { loss: vec![Loss::Bernoulli(ratio)], ..LinkEffect::default() };
        assert!(proxy.set(&[(OUT, effect)]), "loss of segments takes CAP_NET_ADMIN: {:?}", proxy);
    }
    // Sockets stay until their drops have been counted.
    let mut sockets = Vec::new();
    let mut rates: Vec<f64> = (0..load.rounds)
        .map(|_| {
            let joined: Vec<_> = (0..load.streams).map(|_| scene.join()).collect();
            let rates = thread::scope(|scope| {
                let start = |joined| scope.spawn(move || stream(joined));
                let running: Vec<_> = joined.iter().map(start).collect();
                running.into_iter().map(|one| one.join().expect("the stream ends")).sum()
            });
            sockets.extend(joined);
            rates
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    let counters = counters(scene);
    let dropped = if scene.path() == Path::Kernel { counters[1] } else { socket_drops(scene) };
    if let Some(proxy) = scene.proxy() {
        let evidence = &proxy.ask("report")["faults"]["f0"]["links"][OUT]["dropped_segments"];
        assert_eq!(evidence.as_u64(), Some(dropped), "the proxy reports what the kernel counted");
    }
    assert!(counters[0] >= SEGMENTS as u64, "segments are counted one by one: {counters:?}");
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let share = dropped as f64 / counters[0] as f64 * 100.0;
    let asked = f64::from(percent);
    vec![
        row("segments dropped", Value::Percent(share), Like::Near { share: 0.1, slack: 0.0 }),
        row(
            "segments dropped, off what was asked for",
            Value::Percent((share - asked).abs()),
            Like::AtMost(asked / 10.0),
        ),
        row("one stream without loss", Value::Megabits(without[without.len() / 2]), Like::Apart),
        throughput(load, rates[rates.len() / 2]),
    ]
}

/// The row of a throughput under loss.
fn throughput(load: Load, rate: f64) -> Row {
    let rate = row("throughput", Value::Megabits(rate), Like::Factor(1.5));
    // Wanted within a factor of 1.5 as well, and so it is in the median of runs on a quiet machine; but
    // the real link's own throughput doubles from run to run, with where the scheduler puts the two ends.
    if load.percent == 1 {
        return rate.apart("wanted within × 1.5, in the median of runs: see above");
    }
    rate
}

/// Sends [`SEGMENTS`] segments' worth; the megabits per second at which they arrived.
fn stream(joined: &Joined) -> f64 {
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut near, chunk) = (&joined.near, [b's'; CHUNK]);
            let mut left = SEGMENTS * SEGMENT_BYTES;
            while left > 0 && begun.elapsed() < STREAM_MAX {
                let count = chunk.len().min(left);
                near.write_all(&chunk[..count]).expect("write");
                left -= count;
            }
            near.shutdown(std::net::Shutdown::Write).expect("end the stream");
        });
        let (mut far, mut bytes, mut read) = (&joined.far, vec![0; 4 * CHUNK], 0);
        loop {
            match far.read(&mut bytes).expect("read on") {
                0 => break,
                some => read += some,
            }
        }
        megabits(read, begun.elapsed())
    })
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn megabits(bytes: usize, time: Duration) -> f64 {
    bytes as f64 * 8.0 / time.as_secs_f64() / 1e6
}

/// Packets counted by the rules of [`Scene::filter`] in the server's namespace, in their order.
fn counters(scene: &Scene) -> Vec<u64> {
    let rules = scene.ground().ask(Place::Server, "nft", &["list", "ruleset"]);
    let after = rules.split("counter packets ").skip(1);
    after.map(number).collect()
}

/// Packets that our proxy's sockets towards the client dropped, as `ss` tells it: the kernel's own
/// count, not the proxy's.
fn socket_drops(scene: &Scene) -> u64 {
    let sockets = scene.ground().ask(Place::Server, "ss", &["-Htnm", "sport = :7000"]);
    let memory = sockets.split("skmem:(").skip(1).filter_map(|rest| rest.split(')').next());
    memory.filter_map(|memory| memory.rsplit(",d").next()).map(number).sum()
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
    let both_ways = Duration::from_millis(2 * ms);
    let added = if scene.path() == Path::Kernel { both_ways } else { Duration::ZERO };
    let [least, median] = [times[0], times[ROUND_TRIPS / 2]].map(|time| time + added);
    assert!(least >= both_ways, "no byte is early");
    // How late a byte is on a quiet machine is a benchmark's business; here others may run.
    vec![
        row("64 bytes and back, quickest", millis(least), Like::Near { share: 0.0, slack: 5.0 })
            .remark(WHY),
        row("64 bytes and back, median", millis(median), Like::Near { share: 0.0, slack: 50.0 }),
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
                return vec![row("throughput over 2 s", lacks, Like::Apart)];
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
    let row =
        row("throughput over 2 s", Value::Megabits(rate), Like::Near { share: 0.1, slack: 0.0 })
            .remark(WHY);
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let least = megabits as f64 * TBF_LEAST;
    if scene.path() == Path::Kernel && rate < least {
        return vec![row.apart("the machine was too busy for tbf itself")];
    }
    vec![row]
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
        let rate = megabits(read, begun.elapsed());
        near.shutdown(std::net::Shutdown::Both).expect("end the stream");
        writer.join().expect("write until the end");
        rate
    })
}
