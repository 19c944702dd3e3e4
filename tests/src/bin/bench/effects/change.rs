//! How soon a change of rules acts, and what a fault costs links that it does not name.

use std::{
    io::Write as _,
    net::{Ipv4Addr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use faultbed_common::{
    link::Link,
    proxy_spec::{Cut, Delay, LinkEffect},
};

use super::{Rig, rig::link};
use crate::bench::{
    cost::Processes,
    load::{
        Mode,
        client::{self, Route},
        monotonic_ns,
        server::DOORS,
        socket::Congestion,
    },
    table::{Bound, Row},
};

/// Cuts that are timed.
const CUTS: usize = 50;
/// After a cut was in force: long enough for what leaked to arrive.
const LISTEN: Duration = Duration::from_millis(20);
/// Before a cut bytes must flow.
const FLOW_MAX: Duration = Duration::from_secs(10);
/// Pairs with and without a fault elsewhere.
const PAIRS: usize = 15;
const PAIR_WINDOW: Duration = Duration::from_millis(300);
/// Many links are those of so many diallers to so many nodes.
const MANY: u16 = 32;
const MANY_CUTS: usize = 10;

fn cut() -> LinkEffect {
    LinkEffect { cut: Some(Cut::Packets), ..LinkEffect::default() }
}

/// A fault on another link, and one on another link of the same node.
pub(crate) fn elsewhere() -> anyhow::Result<Vec<Row>> {
    let mut rig = Rig::start(2, 3, DOORS)?;
    let route = rig.route(1, 1);
    let delay = LinkEffect {
        delay: Some(Delay { base_us: 50_000, ..Delay::default() }),
        ..LinkEffect::default()
    };
    let mut rows = Vec::new();
    for (name, links) in [("another node", [link(2, 2)?]), ("same node", [link(2, 1)?])] {
        // Without, with: of bulk and of requests.
        let mut bulk = [Vec::new(), Vec::new()];
        let mut rtt = [Vec::new(), Vec::new()];
        for pair in 0..PAIRS {
            for turn in 0..2 {
                let with = (pair + turn) % 2;
                rig.set((with == 1).then_some(&delay), &links)?;
                let how = (1, Congestion::Plain, PAIR_WINDOW);
                let reached = client::bulk(&route, &Processes::of(None), &rig.seen, how)?;
                bulk[with].push(reached.gigabytes_per_s);
                rtt[with].push(client::one_by_one(&route, PAIR_WINDOW)?.p50_us);
            }
        }
        let [without, with] = bulk;
        let bounds = [Bound::AtLeast(0.97)];
        rows.push(
            Row::new(format!("bulk, fault at {name}"), "faultbed", "GB/s", with.clone())
                .bounded_ratio("no fault", &with, &without, &bounds),
        );
        let [without, with] = rtt;
        let bounds = [Bound::AtMost(1.03)];
        rows.push(
            Row::new(format!("64 B p50, fault at {name}"), "faultbed", "us", with.clone())
                .bounded_ratio("no fault", &with, &without, &bounds),
        );
    }
    rows.push(held_connections(&mut rig)?);
    Ok(rows)
}

/// Connections of unnamed diallers to a node with a rule: each waits until it is known who dialled.
fn held_connections(rig: &mut Rig) -> anyhow::Result<Row> {
    rig.set(Some(&cut()), &[link(2, 1)?])?;
    let sources = (1..=16).map(|last| Ipv4Addr::new(127, 67, 0, last)).collect();
    let route = Route { sources, ..rig.route(1, 1) };
    let per_s = client::short(&route, PAIR_WINDOW)? / 1e3;
    rig.set(None, &[])?;
    Ok(Row::new("connections, looked up first", "faultbed", "k/s", vec![per_s]))
}

/// From asking for a cut to the last byte that passed, on one link where bytes never cease.
pub(crate) fn to_first_byte() -> anyhow::Result<Vec<Row>> {
    let mut rig = Rig::start(1, 1, 1)?;
    let stream = rig.route(1, 1).stream(Mode::Stamps, Congestion::Plain)?;
    let (passed, asked) = time_cuts(&mut rig, vec![stream], &[link(1, 1)?], CUTS)?;
    Ok(vec![
        Row::new("cut to last byte", "faultbed", "ms", passed).bound(Bound::AtMost(1.0)),
        Row::new("cut to reply", "faultbed", "ms", asked),
    ])
}

/// As [`to_first_byte`], on a thousand links at once, each with a connection.
pub(crate) fn many_links() -> anyhow::Result<Vec<Row>> {
    let mut rig = Rig::start(MANY, MANY, 1)?;
    let (mut streams, mut links) = (Vec::new(), Vec::new());
    for node in 1..=MANY {
        for dialler in 1..=MANY {
            streams.push(rig.route(dialler, node).stream(Mode::Stamps, Congestion::Plain)?);
            links.push(link(dialler, node)?);
        }
    }
    let count = links.len();
    let (passed, asked) = time_cuts(&mut rig, streams, &links, MANY_CUTS)?;
    Ok(vec![
        Row::new(format!("{count} links cut to last byte"), "faultbed", "ms", passed)
            .bound(Bound::AtMost(20.0)),
        Row::new(format!("{count} links cut to reply"), "faultbed", "ms", asked)
            .bound(Bound::AtMost(20.0)),
    ])
}

/// Milliseconds from asking for a cut of these links to the last byte that passed, and to the reply.
/// One thread writes to all the streams in turn.
fn time_cuts(
    rig: &mut Rig,
    mut streams: Vec<TcpStream>,
    links: &[Link],
    cuts: usize,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    for stream in &streams {
        stream.set_nonblocking(true)?;
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for stream in &mut streams {
                    // A stream that is cut takes nothing: whole stamps or none.
                    let _full = stream.write(&monotonic_ns().to_ne_bytes());
                }
                if streams.len() == 1 {
                    thread::sleep(Duration::from_micros(20));
                }
            }
        });
        let timed = (0..cuts).map(|_| time_cut(rig, links)).collect::<anyhow::Result<_>>();
        stop.store(true, Ordering::Relaxed);
        let _panicked = writer.join();
        timed.map(|timed: Vec<(f64, f64)>| timed.into_iter().unzip())
    })
}

fn time_cut(rig: &mut Rig, links: &[Link]) -> anyhow::Result<(f64, f64)> {
    let (since, end) = (monotonic_ns(), Instant::now() + FLOW_MAX);
    while rig.seen.last_ns.load(Ordering::SeqCst) <= since {
        anyhow::ensure!(Instant::now() < end, "no byte passes before the cut");
        thread::sleep(Duration::from_millis(1));
    }
    drop(rig.seen.take_took());
    rig.orders.set(Some(&cut()), links)?;
    let start = monotonic_ns();
    rig.orders.apply()?;
    let replied = monotonic_ns();
    thread::sleep(LISTEN);
    let last = rig.seen.last_ns.load(Ordering::SeqCst).max(start);
    rig.set(None, &[])?;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
    let ms = |at: u64| (at - start) as f64 / 1e6;
    Ok((ms(last), ms(replied)))
}
