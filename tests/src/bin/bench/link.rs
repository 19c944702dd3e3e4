//! What our proxy costs a link without a fault, next to nothing at all and to others, in interleaved rounds.

use std::{collections::BTreeMap, fs, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use faultbed_tests::bins;

use super::{
    cost::Machine,
    load::{
        client::{self, Route},
        server::{self, Seen},
        socket::Congestion,
    },
    options::Options,
    peers::{Contender, Kind, Target},
    table::{Bound, Row, Table},
};

/// Rounds, unless asked otherwise.
const ROUNDS: usize = 5;
const BULK_WINDOW: Duration = Duration::from_millis(800);
const REQUEST_WINDOW: Duration = Duration::from_millis(600);
/// Between two tests, so that what one leaves to the kernel does not meet the next.
const REST: Duration = Duration::from_millis(50);
/// Connections of the test with many requests.
const CONNECTIONS: usize = 64;
/// Idle connections; fewer for a target that has a process for each.
const IDLE: usize = 2000;
const IDLE_FORKED: usize = 200;
/// Before memory is looked at: what was allocated at first use is not the connections'.
const IDLE_FIRST: usize = 16;
const IDLE_SETTLE: Duration = Duration::from_millis(100);
/// Fresh processes for the test of memory are this many port blocks further.
const FRESH_PLACE: u16 = 30;
/// Which congestion control a new network namespace may take as its own.
const CONGESTION: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// Names of targets that ratios are formed to.
const DIRECT: &str = "direct";
const HAPROXY: &str = "haproxy";
const TOXIPROXY: &str = "toxiproxy";

/// The tests of one round; some give more than one metric.
const TESTS: [&str; 7] = ["bulk1", "bulk8", "default", "rtt", "requests", "short", "idle"];

/// A metric: its test, its name, its unit, and the required and wished ratios.
type Metric =
    (&'static str, &'static str, &'static str, &'static [(&'static str, &'static [Bound])]);

const fn least(bound: f64) -> Bound {
    Bound::AtLeast(bound)
}

const fn most(bound: f64) -> Bound {
    Bound::AtMost(bound)
}

const METRICS: [Metric; 16] = [
    (
        "bulk1",
        "bulk, 1 stream",
        "GB/s",
        &[
            (HAPROXY, &[least(1.05), least(1.25)]),
            (DIRECT, &[least(0.6), least(0.8)]),
            (TOXIPROXY, &[least(4.0)]),
        ],
    ),
    (
        "bulk1",
        "CPU, 1 stream",
        "s/GB",
        &[(HAPROXY, &[most(0.6), most(0.4)]), (TOXIPROXY, &[most(0.12)])],
    ),
    ("bulk1", "CPU of all, 1 stream", "s/GB", &[(HAPROXY, &[])]),
    ("bulk8", "bulk, 8 streams", "GB/s", &[(HAPROXY, &[least(1.7)]), (DIRECT, &[least(0.5)])]),
    (
        "bulk8",
        "CPU, 8 streams",
        "s/GB",
        &[(HAPROXY, &[most(0.6), most(0.4)]), (TOXIPROXY, &[most(0.12)])],
    ),
    ("bulk8", "CPU of all, 8 streams", "s/GB", &[(HAPROXY, &[])]),
    ("default", "bulk, default control", "GB/s", &[(HAPROXY, &[least(2.0)]), (DIRECT, &[])]),
    ("default", "CPU, default control", "s/GB", &[(HAPROXY, &[])]),
    ("default", "CPU of all, default control", "s/GB", &[(HAPROXY, &[])]),
    ("rtt", "64 B, 1 conn., p50", "us", &[(HAPROXY, &[most(1.0)]), (DIRECT, &[most(1.4)])]),
    ("rtt", "64 B, 1 conn., p99", "us", &[(HAPROXY, &[]), (DIRECT, &[])]),
    ("requests", "64 B, 64 conn., requests", "k/s", &[(HAPROXY, &[least(1.2)]), (DIRECT, &[])]),
    ("requests", "64 B, 64 conn., p50", "us", &[(HAPROXY, &[])]),
    ("requests", "64 B, 64 conn., p99", "us", &[(HAPROXY, &[])]),
    ("short", "connections", "k/s", &[(HAPROXY, &[least(0.95)]), (DIRECT, &[])]),
    ("idle", "memory of an idle connection", "KB", &[(HAPROXY, &[])]),
];

/// At most this much for each idle connection of ours, in kilobytes.
const IDLE_KILOBYTES: Bound = Bound::AtMost(3.0);

type Samples = BTreeMap<(&'static str, String), Vec<f64>>;

pub(crate) fn run(options: &Options) -> anyhow::Result<Table> {
    let seen = server::start()?;
    let host_default = fs::read_to_string(CONGESTION).unwrap_or_default().trim().to_owned();
    let (contenders, absent) = contenders(options);
    let mut running = Vec::new();
    for (place, contender) in (0..).zip(&contenders) {
        running.push((contender, contender.start(place)?, place));
    }
    let mut bench = Bench { seen, host_default, plain: String::new(), samples: Samples::new() };
    let before = Machine::now();
    for round in 0..options.number("rounds", ROUNDS) {
        for test in TESTS.iter().filter(|test| options.picks("only", test)) {
            // No target always comes first, nor always after the same one.
            running.rotate_left(1);
            for (contender, target, place) in &running {
                bench
                    .measure(test, contender, target, *place)
                    .with_context(|| format!("{test} of {} in round {round}", contender.name))?;
                std::thread::sleep(REST);
            }
        }
    }
    let mut notes = vec![format!(
        "congestion control: {} (ours chooses cubic, else reno), default: {}; {}",
        bench.plain,
        bench.host_default,
        Machine::now().noise(before)
    )];
    if !absent.is_empty() {
        notes.push(format!("not on PATH, left out: {}", absent.join(", ")));
    }
    Ok(Table { bench: "link", rows: rows(&contenders, &bench.samples), notes })
}

/// Who takes part, and who is not installed.
fn contenders(options: &Options) -> (Vec<Contender>, Vec<String>) {
    let ours = Kind::Ours(bins::path("faultbed-agent"));
    let known = [
        (DIRECT, Kind::Direct),
        ("faultbed", ours),
        (HAPROXY, Kind::HaProxy),
        ("nginx", Kind::Nginx),
        ("socat", Kind::Socat),
        (TOXIPROXY, Kind::Toxiproxy),
        ("etcd-proxy", Kind::EtcdProxy),
    ];
    let known = known.into_iter().map(|(name, kind)| Contender { name: name.to_owned(), kind });
    // Other builds of ours, to compare with.
    let also = options.all("also").into_iter().filter_map(|also| {
        let (name, path) = also.split_once('=')?;
        Some(Contender { name: name.to_owned(), kind: Kind::Ours(PathBuf::from(path)) })
    });
    let picked = known.filter(|one| options.picks("targets", &one.name)).chain(also);
    let (here, absent): (Vec<_>, Vec<_>) = picked.partition(Contender::is_here);
    (here, absent.into_iter().map(|one| one.name).collect())
}

struct Bench {
    seen: Arc<Seen>,
    host_default: String,
    /// What sockets take that do not choose, in the tests that are not about the default.
    plain: String,
    samples: Samples,
}

impl Bench {
    fn measure(
        &mut self,
        test: &'static str,
        contender: &Contender,
        target: &Target,
        place: u16,
    ) -> anyhow::Result<()> {
        self.set_congestion(test == "default");
        let name = &contender.name;
        match test {
            "bulk1" | "bulk8" | "default" => {
                let (streams, congestion) = match test {
                    "bulk1" => (1, Congestion::Plain),
                    "bulk8" => (8, Congestion::Plain),
                    _ => (1, Congestion::Default),
                };
                let how = (streams, congestion, BULK_WINDOW);
                let bulk = client::bulk(&target.route, &target.processes, &self.seen, how)?;
                let cpu = (contender.kind != Kind::Direct).then_some(bulk.cpu_s_per_gb);
                let all = Some(bulk.all_cpu_s_per_gb);
                self.note(test, name, [Some(bulk.gigabytes_per_s), cpu, all]);
            }
            "rtt" => {
                let took = client::one_by_one(&target.route, REQUEST_WINDOW)?;
                self.note(test, name, [Some(took.p50_us), Some(took.p99_us)]);
            }
            "requests" => {
                let took = client::side_by_side(&target.route, CONNECTIONS, REQUEST_WINDOW)?;
                let values = [took.per_s / 1e3, took.p50_us, took.p99_us];
                self.note(test, name, values.map(Some));
            }
            "short" => {
                let per_s = client::short(&target.route, REQUEST_WINDOW)?;
                self.note(test, name, [Some(per_s / 1e3)]);
                if name == "faultbed" {
                    let sources = (1..=16).map(|last| Ipv4Addr::new(127, 67, 0, last)).collect();
                    let route = Route { sources, ..target.route.clone() };
                    let per_s = client::short(&route, REQUEST_WINDOW)?;
                    self.note(test, "faultbed (lookup)", [Some(per_s / 1e3)]);
                }
            }
            _ if contender.kind == Kind::Direct => {}
            _ => {
                let kilobytes = idle(contender, place + FRESH_PLACE)?;
                self.note(test, name, [Some(kilobytes)]);
            }
        }
        Ok(())
    }

    /// Adds a test's values, in the order of its metrics.
    fn note<const N: usize>(&mut self, test: &str, target: &str, values: [Option<f64>; N]) {
        let names = METRICS.iter().filter(|metric| metric.0 == test).map(|metric| metric.1);
        for (name, value) in names.zip(values) {
            if let Some(value) = value {
                self.samples.entry((name, target.to_owned())).or_default().push(value);
            }
        }
    }

    /// What new sockets take that do not choose. Only a network namespace of our own is changed.
    fn set_congestion(&mut self, default: bool) {
        if std::env::var_os("FAULTBED_BENCH_NAMESPACE").is_some() {
            let wanted = [self.host_default.as_str(), "cubic", "reno"];
            let wanted = if default { &wanted[..1] } else { &wanted[1..] };
            let _refused = wanted.iter().find(|name| fs::write(CONGESTION, name).is_ok());
        }
        if !default {
            self.plain = fs::read_to_string(CONGESTION).unwrap_or_default().trim().to_owned();
        }
    }
}

/// Memory of an idle connection, in a process that has not carried others before.
fn idle(contender: &Contender, place: u16) -> anyhow::Result<f64> {
    let target = contender.start(place)?;
    let count = if contender.kind == Kind::Socat { IDLE_FORKED } else { IDLE };
    let first = client::idle(&target.route, IDLE_FIRST)?;
    std::thread::sleep(IDLE_SETTLE);
    let before = target.processes.memory_kilobytes();
    let idle = client::idle(&target.route, count)?;
    std::thread::sleep(IDLE_SETTLE);
    let kilobytes = target.processes.memory_kilobytes() - before;
    drop((first, idle));
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let each = kilobytes / count as f64;
    Ok(each)
}

fn rows(contenders: &[Contender], samples: &Samples) -> Vec<Row> {
    let mut rows = Vec::new();
    let lookup = "faultbed (lookup)".to_owned();
    let names: Vec<_> = contenders.iter().map(|one| &one.name).chain([&lookup]).collect();
    for (test, metric, unit, bounds) in METRICS {
        for name in &names {
            let Some(own) = samples.get(&(metric, (*name).clone())) else { continue };
            let mut row = Row::new(metric, *name, unit, own.clone());
            let is_ours = contenders
                .iter()
                .any(|one| one.name == **name && matches!(one.kind, Kind::Ours(_)));
            if test == "idle" && is_ours {
                row = row.bound(IDLE_KILOBYTES);
            }
            for (to, bounds) in bounds {
                let Some(other) = samples.get(&(metric, (*to).to_owned())) else { continue };
                if is_ours {
                    row = row.bounded_ratio(to, own, other, bounds);
                } else if to != name {
                    row = row.ratio(to, own, other);
                }
            }
            let ours = samples.get(&(metric, "faultbed".to_owned()));
            if let (true, Some(ours)) = (is_ours && *name != "faultbed", ours) {
                row = row.ratio("faultbed", own, ours);
            }
            rows.push(row);
        }
    }
    rows
}
