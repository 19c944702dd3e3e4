//! The survival matrix: what dies, and what must not notice. Each row kills something under load and says what it saw.
//!
//! Rows of one field run one after the other, so that each begins with what the rows before it left;
//! fields run side by side.

mod alone;
mod clocks;
mod disk;
mod hosts;
mod row;
mod store;

use std::{
    any::Any,
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    thread,
    time::Instant,
};

use self::row::Notes;
use super::{Field, Shape};
use crate::{bins, kernel::ground};

/// One thing that dies.
struct Row {
    name: &'static str,
    run: fn(&mut Field, &mut Notes),
}

/// Rows that share a field.
struct Group {
    shape: Shape,
    rows: Vec<Row>,
}

/// What came of a row.
struct Outcome {
    name: &'static str,
    notes: Notes,
    failure: Option<String>,
    seconds: f64,
}

fn groups() -> Vec<Group> {
    let shape = Shape {
        name: "hosts",
        hosts: 3,
        coordinators: 2,
        clocks: false,
        ipv6: false,
        disk_kib: None,
    };
    let clocks = Shape { name: "clocks", clocks: true, ipv6: true, ..shape };
    let mut rows = hosts::rows();
    rows.extend(store::rows());
    let mut of_one = disk::rows();
    of_one.extend(alone::rows());
    vec![
        Group { shape, rows },
        Group { shape: clocks, rows: clocks::rows() },
        Group { shape: Shape { name: "disk", disk_kib: Some(4096), ..shape }, rows: of_one },
    ]
}

/// Runs the rows whose names contain one of `words`, or all, and prints the table.
#[must_use]
pub fn main(words: impl Iterator<Item = String>) -> ExitCode {
    // Before namespaces are entered: they may have to be built.
    let _built = bins::path("faultbed-agent");
    ground::demand_own_machine();
    let words: Vec<String> = words.collect();
    let mut groups = groups();
    for group in &mut groups {
        group.rows.retain(|row| words.is_empty() || words.iter().any(|w| row.name.contains(w)));
    }
    groups.retain(|group| !group.rows.is_empty());
    let began = Instant::now();
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let threads: Vec<_> =
            groups.iter().map(|group| scope.spawn(move || run_group(group))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("run rows")).collect()
    });
    say(&format!("\n{}", table(&outcomes)));
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect();
    say(&format!(
        "{} rows, {} failed, {:.0} s\n",
        outcomes.len(),
        failed.len(),
        began.elapsed().as_secs_f64()
    ));
    for outcome in &failed {
        let why = outcome.failure.as_deref().unwrap_or_default();
        say(&format!("{}: {}\n", outcome.name, why.replace("\\n", "\n")));
    }
    let good = failed.is_empty() && !outcomes.is_empty();
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A field that a failed row leaves behind may be in any state: the next row gets a new one.
fn run_group(group: &Group) -> Vec<Outcome> {
    let mut field = None;
    let mut outcomes = Vec::new();
    for row in &group.rows {
        let mut notes = Notes::default();
        let began = Instant::now();
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let field = field.get_or_insert_with(|| Field::new(group.shape));
            let began = Instant::now();
            (row.run)(field, &mut notes);
            began.elapsed()
        }));
        let (failure, took) = match ran {
            Ok(took) => (None, took),
            Err(panic) => {
                field = None;
                (Some(words_of(panic.as_ref())), began.elapsed())
            }
        };
        let word = if failure.is_some() { "FAILED" } else { "ok" };
        say(&format!("{:<44} {word:<6} {:>5.1} s\n", row.name, took.as_secs_f64()));
        outcomes.push(Outcome { name: row.name, notes, failure, seconds: took.as_secs_f64() });
    }
    outcomes
}

fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        text.push_str(&format!("{} ({:.1} s)\n", outcome.name, outcome.seconds));
        for line in outcome.notes.lines() {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}

fn say(text: &str) {
    let _no_reader = std::io::stdout().write_all(text.as_bytes());
}
