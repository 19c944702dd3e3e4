//! Runs every case on both paths, again where a noisy machine may have spoiled it, and prints the table.

use std::{any::Any, fmt::Write as _, thread, time::Instant};

use crate::kernel::{
    reading::{HEAD, Pairing, Reading},
    scene::{Family, Path, Scene},
    witness::{Stillness, Witness},
};

/// How often a case that failed is tried before it counts: a machine may stand still for a moment.
const TRIES_MAX: usize = 6;

/// One comparison.
pub struct Case {
    /// For people.
    pub name: String,
    /// Whether it must have the machine for itself: it measures how much passes.
    pub alone: bool,
    /// Which addresses it uses.
    pub family: Family,
    /// What the client does and sees.
    pub run: Box<dyn Fn(&mut Scene) -> Reading + Send + Sync>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A case that waits more than it works.
pub(super) fn quiet(
    name: impl Into<String>,
    run: impl Fn(&mut Scene) -> Reading + Send + Sync + 'static,
) -> Case {
    Case { name: name.into(), alone: false, family: Family::V4, run: Box::new(run) }
}

/// A case that needs the machine for itself.
pub(super) fn alone(
    name: impl Into<String>,
    run: impl Fn(&mut Scene) -> Reading + Send + Sync + 'static,
) -> Case {
    Case { alone: true, ..quiet(name, run) }
}

/// The same between IPv6 addresses.
pub(super) fn v6(case: Case) -> Case {
    Case { name: format!("{} (IPv6)", case.name), family: Family::V6, ..case }
}

/// What came of a case.
#[derive(Debug)]
pub struct Compared {
    /// The case.
    pub name: String,
    /// Its rows, or why there are none.
    pub rows: Result<Vec<Pairing>, String>,
    /// How much of its time the machine was away.
    pub stillness: Stillness,
}

impl Compared {
    /// What is not as it must be, in lines.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        match &self.rows {
            Ok(rows) => {
                let wrong = rows.iter().filter(|row| !row.holds() && !self.is_excused(row));
                wrong.map(|row| format!("{}: {}", self.name, row.line())).collect()
            }
            Err(error) => vec![format!("{}: {error}", self.name)],
        }
    }

    /// What is not as it must be and cannot be judged, in lines with the reason.
    #[must_use]
    pub fn excused(&self) -> Vec<String> {
        let Stillness { longest, lost } = self.stillness;
        let why = format!("still for {} ms, {:.0} % in all", longest.as_millis(), lost * 100.0);
        let rows = self.rows.iter().flatten();
        let excused = rows.filter(|row| !row.holds() && self.is_excused(row));
        excused.map(|row| format!("{}: {} ({why})", self.name, row.line())).collect()
    }

    /// What took too long, or too little, on a machine that was not there all the time. What was
    /// counted, and how things ended, is never excused.
    fn is_excused(&self, row: &Pairing) -> bool {
        row.is_timed() && self.stillness.is_restless()
    }
}

/// Runs cases; quiet ones side by side, then the others one after the other. What fails is tried
/// again, and what `say` is told about that should not be hidden.
pub fn compare_all(cases: &[Case], mut say: impl FnMut(&str)) -> Vec<Compared> {
    let mut results: Vec<_> = cases.iter().map(|_| None).collect();
    for round in 0..TRIES_MAX {
        let open: Vec<usize> = (0..cases.len()).filter(|&at| !is_fine(&results[at])).collect();
        for at in &open {
            let Some(compared) = &results[*at] else { continue };
            let lines = [compared.failures(), compared.excused()].concat();
            lines.iter().for_each(|line| say(&format!("try {round} failed: {line}")));
        }
        let (alone, quiet): (Vec<_>, Vec<_>) = open.into_iter().partition(|&at| cases[at].alone);
        for (at, compared) in quiet.iter().zip(compare(cases, &quiet)) {
            results[*at] = Some(compared);
        }
        for at in alone {
            results[at] = compare(cases, &[at]).pop();
        }
    }
    results.into_iter().flatten().collect()
}

fn is_fine(result: &Option<Compared>) -> bool {
    let wrong = |compared: &Compared| [compared.failures(), compared.excused()].concat();
    result.as_ref().is_some_and(|compared| wrong(compared).is_empty())
}

/// Runs some cases on both paths. Those that need the machine run on one path after the other.
fn compare(cases: &[Case], which: &[usize]) -> Vec<Compared> {
    // Before any of them runs: building links is work, which would disturb those that measure.
    let build = |at: &usize| {
        (*at, [Path::Kernel, Path::Proxy].map(|path| Scene::new(path, cases[*at].family)))
    };
    let scenes: Vec<_> = which.iter().map(build).collect();
    let (witness, begun) = (Witness::begin(), Instant::now());
    thread::scope(|scope| {
        let running: Vec<_> = scenes
            .into_iter()
            .map(|(at, [mut kernel, mut proxy])| {
                let case = &cases[at];
                let first = scope.spawn(move || (case.run)(&mut kernel));
                if case.alone {
                    let first = first.join();
                    let second = scope.spawn(move || (case.run)(&mut proxy)).join();
                    return (case, Ok((first, second)));
                }
                (case, Err((first, scope.spawn(move || (case.run)(&mut proxy)))))
            })
            .collect();
        let done = running.into_iter().map(|(case, both)| {
            let (kernel, ours) =
                both.unwrap_or_else(|(first, second)| (first.join(), second.join()));
            let (rows, stillness) = (pair(kernel, ours), witness.since(begun));
            Compared { name: case.name.clone(), rows, stillness }
        });
        done.collect()
    })
}

type Outcome = thread::Result<Reading>;

fn pair(kernel: Outcome, ours: Outcome) -> Result<Vec<Pairing>, String> {
    let kernel = kernel.map_err(|panic| format!("on the real link: {}", words(&*panic)))?;
    let ours = ours.map_err(|panic| format!("through the proxy: {}", words(&*panic)))?;
    if kernel.len() != ours.len() {
        return Err(format!("{} rows of the kernel, {} of ours", kernel.len(), ours.len()));
    }
    Ok(kernel.into_iter().zip(ours).map(|(kernel, ours)| Pairing { kernel, ours }).collect())
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}

/// The table of all cases, in Markdown.
#[must_use]
pub fn table(results: &[Compared]) -> String {
    let mut out = String::new();
    for compared in results {
        let _infallible = writeln!(out, "### {}\n", compared.name);
        match &compared.rows {
            Ok(rows) => {
                out.push_str(HEAD);
                rows.iter().for_each(|row| row.markdown(&mut out));
            }
            Err(error) => out.push_str(error),
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kernel::reading::{Like, Value, row};

    fn compared(kernel: Value, ours: Value, longest_ms: u64) -> Compared {
        let pairing = Pairing {
            kernel: row("seen", kernel, Like::Same),
            ours: row("seen", ours, Like::Same),
        };
        let stillness = Stillness { longest: Duration::from_millis(longest_ms), lost: 0.0 };
        Compared { name: "case".to_owned(), rows: Ok(vec![pairing]), stillness }
    }

    #[test]
    fn only_what_was_timed_while_the_machine_stood_still_is_excused() {
        let late = |longest_ms| compared(Value::Millis(1.0), Value::Millis(2.0), longest_ms);
        assert_eq!((late(1).failures().len(), late(1).excused().len()), (1, 0));
        assert_eq!((late(70).failures().len(), late(70).excused().len()), (0, 1));
        assert!(late(70).excused()[0].contains("still for 70 ms"));
        let counted = compared(Value::Count(1), Value::Count(2), 70);
        assert_eq!((counted.failures().len(), counted.excused().len()), (1, 0));
        let ended = compared(Value::Word("ECONNRESET".into()), Value::Millis(2.0), 70);
        assert_eq!(ended.failures().len(), 1);
    }
}
