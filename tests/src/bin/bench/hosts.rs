//! Three hosts in network namespaces with a three-member etcd: from the start of `partition` to the last byte that any host let through.

use std::time::{Duration, Instant};

use faultbed_tests::{
    field::{Field, Shape},
    heard::monotonic_ns,
    kernel::ground,
    wait::wait_for,
};

use super::table::{Bound, Row, Table};

/// Cuts measured.
const CUTS: usize = 50;
/// What is required of the median and of the slowest but one in a hundred, in milliseconds.
const MEDIAN_MS_MAX: f64 = 15.0;
const P99_MS_MAX: f64 = 60.0;
/// The links that are cut, by the numbers of their nodes.
const CUT: [(usize, usize); 4] = [(1, 2), (2, 1), (1, 3), (3, 1)];

pub(crate) fn run() -> anyhow::Result<Table> {
    ground::demand_own_machine();
    let shape = Shape {
        name: "bench",
        hosts: 3,
        coordinators: 2,
        clocks: false,
        ipv6: false,
        disk_kib: None,
    };
    let field = Field::new(shape);
    let heard = |(from, to): (usize, usize)| field.heard(&format!("m-{from}"), &format!("m-{to}"));
    let (mut flips, mut startups) = (Vec::new(), Vec::new());
    for _ in 0..CUTS {
        let now = monotonic_ns();
        wait_for("all links carry bytes", Duration::from_secs(30), || {
            let all = CUT.iter().all(|link| heard(*link).is_ok_and(|at| at > now));
            all.then_some(()).ok_or_else(|| "not yet".to_owned())
        });
        let start = Instant::now();
        field.ok(&["version"]);
        startups.push(start.elapsed().as_secs_f64() * 1e3);

        let start = monotonic_ns();
        field.ok(&["partition", "m-1", "m-2,m-3", "--name", "flip", "--for", "1m"]);
        let in_force = monotonic_ns();
        std::thread::sleep(Duration::from_millis(50));
        let mut last = start;
        for link in CUT {
            let at = heard(link)?;
            anyhow::ensure!(at < in_force, "{link:?} delivered after the cut was in force");
            last = last.max(at);
        }
        flips.push(Duration::from_nanos(last - start).as_secs_f64() * 1e3);
        field.ok(&["heal", "flip"]);
        field.ok(&["delete", "fault", "flip"]);
    }
    let apart: Vec<f64> = flips.iter().zip(&startups).map(|(f, s)| f - s).collect();
    let mut sorted = flips.clone();
    sorted.sort_by(f64::total_cmp);
    let p99 = sorted[(sorted.len() * 99).div_ceil(100) - 1];
    Ok(Table {
        bench: "hosts",
        notes: vec![
            "three hosts, two coordinators and a three-member etcd in namespaces".to_owned(),
        ],
        rows: vec![
            Row::new("last byte after the start", "faultbed partition", "ms", flips)
                .bound(Bound::AtMost(MEDIAN_MS_MAX)),
            Row::new("the slowest in a hundred", "faultbed partition", "ms", vec![p99])
                .bound(Bound::AtMost(P99_MS_MAX)),
            Row::new("CLI start-up", "faultbed version", "ms", startups),
            Row::new("last byte less start-up", "faultbed partition", "ms", apart),
        ],
    })
}
