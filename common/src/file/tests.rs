//! What people see of their files: all mistakes at once, each where it is, with what to do.

mod blueprints;
mod labs;
mod round_trip;

use std::fmt::Write;

use super::*;

/// Takes every fault as it is, for tests of the reading alone.
const NO_CHECKS: Checks = Checks { shape: |_| Ok(()), target: |_| Ok(()) };

/// The mistakes as the command line prints them.
fn show(text: &str, problems: &[Problem]) -> String {
    problems.iter().fold(String::new(), |mut out, problem| {
        let _ = writeln!(out, "{}", problem.render("lab.toml", text));
        out
    })
}

fn lab_errors(text: &str) -> String {
    show(text, &parse_lab(text).unwrap_err())
}

fn blueprint_errors(text: &str) -> String {
    show(text, &parse_blueprint(text).unwrap_err())
}
