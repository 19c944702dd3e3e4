//! The promise of the data plane: whatever sequence of faults and heals a stream meets, it arrives whole
//! and in order, or it ends by an error that a fault promised. It is never altered and has no hole.
//!
//! A round is a lab with busy connections and a random plan of faults. Everything random in it comes
//! from one seed, which is printed with the command that runs it again (when threads run is the
//! machine's affair, so that a replay is the same plan and not the same schedule):
//!
//! - `FAULTBED_SEED`: the seed of the first round; the next one has the next number.
//! - `FAULTBED_STREAM_ROUNDS`: how many rounds at least.
//! - `FAULTBED_STREAM_MB`: how many megabytes at least; thousands for a night.

mod dice;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::Write as _,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use faultbed_common::{
    generation::FaultRevision,
    proxy_spec::{LinkEffect, LinkFault},
};

use super::harness::Lab;
use dice::{Plan, Step};
use traffic::{Ending, Outcome, Traffic};

/// Rounds of a run that is not told otherwise, and how many run side by side.
const ROUNDS: u64 = 12;
const SIDE_BY_SIDE: u64 = 2;
/// Bytes of a run that is not told otherwise.
const MEGABYTES: u64 = 0;
/// A fault that is over may still show its end this much later, on a busy machine.
const AFTERMATH: Duration = Duration::from_secs(5);

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Whether steady connections of a round may be ended by what it plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// Nothing that the round plans ends a connection.
    Whole,
    /// Resets, closes, limits, and heals that end what they held.
    Ends,
}

#[test]
fn streams_arrive_whole_or_end_as_promised() {
    let first = number("FAULTBED_SEED").unwrap_or_else(rand::random);
    let rounds = number("FAULTBED_STREAM_ROUNDS").unwrap_or(ROUNDS);
    let wanted = number("FAULTBED_STREAM_MB").unwrap_or(MEGABYTES) << 20;
    // Before anything can hang.
    let last = first.saturating_add(rounds.saturating_sub(1));
    let note = format!("seeds {first} to {last}; one of them again: {}", replay(first));
    writeln!(std::io::stderr(), "{note}").expect("print the seed");
    let began = Instant::now();
    let next = Mutex::new((first, 0_u64));
    let run = || loop {
        let seed = {
            let mut next = next.lock().expect("no round failed");
            if next.0 >= first.saturating_add(rounds) && next.1 >= wanted {
                return;
            }
            next.0 += 1;
            next.0 - 1
        };
        let bytes = round(seed);
        next.lock().expect("no round failed").1 += bytes;
    };
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE.min(rounds) {
            scope.spawn(run);
        }
    });
    let (end, bytes) = *next.lock().expect("no round failed");
    let seconds = began.elapsed().as_secs_f64();
    let (megabytes, count) = (bytes >> 20, end - first);
    let note = format!("{megabytes} MB through {count} rounds from seed {first} in {seconds:.1} s");
    writeln!(std::io::stderr(), "{note}").expect("print the figures");
}

fn replay(seed: u64) -> String {
    let test = "proxy::tests::stream_property";
    format!(
        "FAULTBED_SEED={seed} FAULTBED_STREAM_ROUNDS=1 cargo test -p faultbed-agent --lib {test}"
    )
}

/// One lab, one plan, which meets busy streams. Returns how many bytes arrived.
fn round(seed: u64) -> u64 {
    let promise = if seed.is_multiple_of(2) { Promise::Whole } else { Promise::Ends };
    let plan = Plan::draw(seed, promise == Promise::Ends);
    let mut lab = Lab::start(&["x", "y"]);
    let traffic = Traffic::new(seed);
    let mut windows = Windows::default();
    let (outcomes, trail) = thread::scope(|scope| {
        let _whatever_fails = traffic.stop_on_panic(replay(seed));
        traffic.start(scope, &lab, promise == Promise::Ends);
        traffic.wait_busy();
        let mut trail = String::new();
        for step in &plan.steps {
            let _cannot_fail = writeln!(trail, "{:7.3} {step:?}", traffic.age().as_secs_f64());
            take(step, &mut lab, &mut windows);
        }
        lab.file.spec.faults.clear();
        lab.apply();
        windows.close_all();
        (traffic.finish(), trail)
    });
    let mut bytes = 0;
    let mut wrong = Vec::new();
    for outcome in &outcomes {
        bytes += outcome.got;
        let whole = outcome.ending == Ending::End && outcome.sent == Some(outcome.got);
        let promised = outcome.may_be_promised() && windows.cover(outcome);
        if !(whole || promised) {
            wrong.push(outcome);
        }
    }
    assert!(wrong.is_empty(), "replay: {}\n{trail}wrong: {wrong:#?}", replay(seed));
    let leaks = leaks(&lab);
    assert!(leaks.is_empty(), "{leaks:?}; replay: {}\n{trail}", replay(seed));
    bytes
}

/// Bytes that crossed a cut.
fn leaks(lab: &Lab) -> Vec<String> {
    let mut leaks = Vec::new();
    for (name, fault) in &lab.report().faults {
        for (link, evidence) in &fault.links {
            if evidence.leaked_bytes > 0 {
                leaks.push(format!("{} bytes through {name} on {link}", evidence.leaked_bytes));
            }
        }
    }
    leaks
}

fn take(step: &Step, lab: &mut Lab, windows: &mut Windows) {
    match step {
        Step::Inject { fault, effect, links, heal, probability, ends } => {
            let links: BTreeSet<_> =
                links.iter().map(|link| link.parse().expect("a link")).collect();
            let order = LinkFault {
                revision: FaultRevision(1),
                lasts: None,
                effect: LinkEffect::clone(effect),
                grade: None,
                heal: *heal,
                links,
                seed: 7,
                probability: *probability,
                canary: false,
                fast_heal: false,
            };
            // What it promises holds from before it is in force, also of the one it replaces.
            windows.open(fault, *ends);
            lab.file.spec.faults.insert(fault.parse().expect("a fault"), order);
            lab.apply();
        }
        Step::Heal { fault } => {
            lab.heal(fault);
            windows.close(fault);
        }
        Step::Rest(time) => thread::sleep(*time),
    }
}

/// When a fault was in force that promises to end connections.
#[derive(Debug, Default)]
struct Windows {
    open: BTreeMap<String, Instant>,
    closed: Vec<(Instant, Instant)>,
}

impl Windows {
    fn open(&mut self, fault: &str, ends: bool) {
        self.close(fault);
        if ends {
            self.open.insert(fault.to_owned(), Instant::now());
        }
    }

    fn close(&mut self, fault: &str) {
        if let Some(began) = self.open.remove(fault) {
            self.closed.push((began, Instant::now() + AFTERMATH));
        }
    }

    fn close_all(&mut self) {
        for (_, began) in std::mem::take(&mut self.open) {
            self.closed.push((began, Instant::now() + AFTERMATH));
        }
    }

    /// Whether some promise explains that a stream ended early.
    fn cover(&self, outcome: &Outcome) -> bool {
        self.closed.iter().any(|(from, to)| outcome.began <= *to && *from <= outcome.ended)
    }
}
