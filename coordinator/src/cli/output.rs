//! Where words go: data to stdout, all else to stderr, colours only where a person looks.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use clap::ValueEnum;
use serde::Serialize;

use crate::cli::failure::Failure;

/// How data is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: stable, only ever added to.
    Json,
}

/// `-o` of commands that print data.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct OutputArgs {
    /// How to print it
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        hide_default_value = true,
        value_name = "table|json"
    )]
    pub output: Format,
}

/// Writes text to stdout, with a line end.
///
/// # Errors
/// A closed pipe ends the command with success; any other failure is named.
pub fn data(text: impl Display) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|e| write_failure(&e))
}

/// Writes a JSON document to stdout.
///
/// # Errors
/// As [`data`].
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::no(format!("write the answer as JSON: {e}")))?;
    data(text)
}

/// Writes a JSON document to stdout, on one line.
///
/// # Errors
/// As [`data`].
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|e| Failure::no(format!("write the answer as JSON: {e}")))?;
    data(text)
}

/// Says something beside the data, on stderr. Nobody listening is no failure.
pub fn say(text: impl Display) {
    let mut err = anstream::stderr().lock();
    let _ = writeln!(err, "{text}");
}

/// Whether somebody watches stderr, so that progress may move.
#[must_use]
pub fn is_watched() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn write_failure(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Failure::pipe_closed()
    } else {
        Failure::io("write to stdout", error)
    }
}
