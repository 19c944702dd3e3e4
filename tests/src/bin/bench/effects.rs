//! What faults in force do: how exact they are, how soon they act, and what they cost links they do not name.

mod bandwidth;
mod change;
mod latency;
mod rig;

use super::{
    cost::Machine,
    options::Options,
    table::{Row, Table},
};
use rig::Rig;

/// The tests, each with a proxy of its own.
type Test = (&'static str, fn() -> anyhow::Result<Vec<Row>>);
const TESTS: [Test; 6] = [
    ("latency", latency::exactness),
    ("delayed-bulk", latency::delayed_bulk),
    ("bandwidth", bandwidth::exactness),
    ("elsewhere", change::elsewhere),
    ("change", change::to_first_byte),
    ("links", change::many_links),
];

pub(crate) fn run(options: &Options) -> anyhow::Result<Table> {
    let before = Machine::now();
    let mut rows = Vec::new();
    for (_, test) in TESTS.iter().filter(|(name, _)| options.picks("only", name)) {
        rows.extend(test()?);
    }
    Ok(Table { bench: "effects", rows, notes: vec![Machine::now().noise(before)] })
}
