//! How exactly a bandwidth is kept: over seconds, in every tenth of a second, and at the start.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use faultbed_common::{effect::Rate, proxy_spec::LinkEffect};

use super::{Rig, rig::link};
use crate::bench::{
    load::{Mode, client::Flood, socket::Congestion},
    table::{Bound, Row},
};

const RATES_MBIT: [u64; 4] = [1, 10, 100, 1_000];
const OVER: Duration = Duration::from_secs(5);
const WINDOW_NS: u64 = 100_000_000;
/// What is left in buffers when a sender stops must reach the server before the next rate.
const DRAIN_MAX: Duration = Duration::from_secs(60);

pub(crate) fn exactness() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for mbit in RATES_MBIT {
        // A fresh proxy for each: what a slow one still holds would take minutes to pass.
        let mut rig = Rig::start(1, 1, 1)?;
        let effect = LinkEffect {
            bandwidth: Some(Rate { bits_per_s: mbit * 1_000_000 }),
            ..LinkEffect::default()
        };
        rig.set(Some(&effect), &[link(1, 1)?])?;
        let flood = Flood::start(&rig.route(1, 1), Mode::Record, 1, Congestion::Plain)?;
        thread::sleep(OVER + Duration::from_millis(300));
        let seen = std::sync::Arc::clone(&rig.seen);
        drop(rig);
        drop(flood);
        rows.extend(judge(mbit, &records(&seen)?));
    }
    Ok(rows)
}

/// What the server noted, once the stream has ended.
fn records(seen: &crate::bench::load::server::Seen) -> anyhow::Result<Vec<(u64, usize)>> {
    let end = Instant::now() + DRAIN_MAX;
    loop {
        let records = seen.take_records();
        if !records.is_empty() {
            seen.last_ns.store(0, Ordering::SeqCst);
            return Ok(records);
        }
        anyhow::ensure!(Instant::now() < end, "nothing came");
        thread::sleep(Duration::from_millis(5));
    }
}

fn judge(mbit: u64, records: &[(u64, usize)]) -> Vec<Row> {
    let start_ns = records[0].0;
    let over_ns = u64::try_from(OVER.as_nanos()).unwrap_or(0);
    let windows = usize::try_from(over_ns / WINDOW_NS).unwrap_or(0);
    let mut bytes = vec![0_usize; windows];
    for (at_ns, count) in records {
        let window = usize::try_from((at_ns - start_ns) / WINDOW_NS).unwrap_or(usize::MAX);
        if let Some(bytes) = bytes.get_mut(window) {
            *bytes += count;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "bytes of a few seconds")]
    let share = |bytes: usize, over_ns: u64| {
        bytes as f64 * 8.0 / (mbit as f64 * 1e6) / (over_ns as f64 / 1e9)
    };
    let shares: Vec<f64> = bytes.iter().map(|bytes| share(*bytes, WINDOW_NS)).collect();
    let error = (share(bytes.iter().sum(), over_ns) - 1.0).abs() * 100.0;
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    let most = shares.iter().copied().fold(0.0, f64::max);
    let row = |what: &str, unit, value| {
        Row::new(format!("{mbit} Mbit/s, {what}"), "faultbed", unit, vec![value])
    };
    vec![
        row("error over 5 s", "%", error).bound(Bound::AtMost(1.0)),
        row("least 100 ms", "x", least).bound(Bound::AtLeast(0.9)),
        row("most 100 ms", "x", most).bound(Bound::AtMost(1.1)),
        row("first 100 ms", "x", shares[0]).bound(Bound::AtMost(1.1)),
    ]
}
