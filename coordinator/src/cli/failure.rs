//! How a command ends: an exit code, and for failures a message with the next thing to type.

use std::fmt;

/// The exit code of a command that ended in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(pub u8);

impl Exit {
    /// Done.
    pub const DONE: Self = Self(0);
    /// The answer is no.
    pub const NO: Self = Self(1);
    /// Usage, or the lab refused.
    pub const REFUSED: Self = Self(2);
    /// Not in time.
    pub const LATE: Self = Self(3);
    /// The lab cannot be reached.
    pub const UNREACHABLE: Self = Self(4);
}

/// What a command returns.
pub type Outcome = Result<Exit, Failure>;

/// Why a command did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the process ends with.
    pub exit: Exit,
    /// For people; `None` where everything was said already.
    pub message: Option<String>,
    /// What to type next.
    pub next: Vec<String>,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: Some(message.into()), next: Vec::new() }
    }

    /// The answer is no.
    pub fn no(message: impl Into<String>) -> Self {
        Self::new(Exit::NO, message)
    }

    /// Wrong usage, or the lab refused.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Exit::REFUSED, message)
    }

    /// Not in time.
    pub fn late(message: impl Into<String>) -> Self {
        Self::new(Exit::LATE, message)
    }

    /// The lab cannot be reached.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Exit::UNREACHABLE, message)
    }

    /// Something on this machine did not work: verb and object, and why.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::no(format!("{what}: {error}"))
    }

    /// Puts `--lab` into the commands to type next, for a lab that was named by that flag.
    #[must_use]
    pub fn in_lab(mut self, lab: &str) -> Self {
        for line in self.next.iter_mut().filter(|line| line.starts_with("faultbed ")) {
            if !line.contains("--lab") {
                *line = with_lab(line, lab);
            }
        }
        self
    }

    /// Nobody reads our output any more: success, silently.
    #[must_use]
    pub fn pipe_closed() -> Self {
        Self { exit: Exit::DONE, message: None, next: Vec::new() }
    }

    /// Adds a line to type next.
    #[must_use]
    pub fn next(mut self, line: impl Into<String>) -> Self {
        self.next.push(line.into());
        self
    }
}

/// A command line with `--lab` at the end of its own words: before a comment or a command to run.
#[must_use]
pub fn with_lab(line: &str, lab: &str) -> String {
    let end = ["   #", " -- "].iter().filter_map(|mark| line.find(mark)).min();
    let (own, rest) = line.split_at(end.unwrap_or(line.len()));
    format!("{own} --lab {lab}{rest}")
}

/// Prefixes [`Failure::next`] lines.
const NEXT: &str = "  next: ";

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(message) = &self.message else { return Ok(()) };
        write!(f, "error: {}", message.trim_end())?;
        for line in &self.next {
            write!(f, "\n{NEXT}{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_goes_before_comments_and_commands() {
        assert_eq!(with_lab("faultbed up -d   # again", "x"), "faultbed up -d --lab x   # again");
        assert_eq!(with_lab("faultbed up f -- ./t", "x"), "faultbed up f --lab x -- ./t");
    }

    #[test]
    fn a_failure_ends_with_what_to_type_next() {
        let failure = Failure::no("node kv-1 crashed").next("faultbed logs kv-1");
        assert_eq!(failure.to_string(), "error: node kv-1 crashed\n  next: faultbed logs kv-1");
    }
}
