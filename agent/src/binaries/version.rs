//! What a program says when it is asked for its version.

use std::{
    io::Read as _,
    path::Path,
    process::{ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, poll};

/// A version is a word in one of the first lines, not a book.
const BYTES_MAX: usize = 4096;

/// What it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The line of its version.
    Line(String),
    /// Nothing, or it cannot be run.
    Nothing,
    /// It was not done when its time was up: the host may be busy, or it is no program that answers.
    Late,
}

/// Asks a program, which has so long to answer.
#[must_use]
pub fn ask(program: &Path, args: &[String], limit: Duration) -> Said {
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return Said::Nothing };
    let said = match child.stdout.take() {
        Some(mut stdout) => read_within(&mut stdout, limit),
        None => Said::Nothing,
    };
    // It has closed its output, or its time is up; either way it is done.
    child.kill().ok();
    child.wait().ok();
    said
}

fn read_within(stdout: &mut ChildStdout, limit: Duration) -> Said {
    let deadline = Instant::now() + limit;
    let mut bytes = Vec::new();
    while bytes.len() < BYTES_MAX {
        match is_readable(stdout, deadline.saturating_duration_since(Instant::now())) {
            Ok(true) => {}
            Ok(false) => return Said::Late,
            Err(_) => return Said::Nothing,
        }
        let mut chunk = [0; BYTES_MAX];
        match stdout.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(read) => bytes.extend_from_slice(&chunk[..read]),
        }
    }
    line(&String::from_utf8_lossy(&bytes)).map_or(Said::Nothing, Said::Line)
}

fn is_readable(stdout: &ChildStdout, limit: Duration) -> rustix::io::Result<bool> {
    let limit = rustix::time::Timespec::try_from(limit).map_err(|_| rustix::io::Errno::INVAL)?;
    Ok(poll(&mut [PollFd::new(stdout, PollFlags::IN)], Some(&limit))? > 0)
}

/// The first line with a digit, since some programs, like TiKV, print a line with their name alone before
/// it; where no line has one, the first.
fn line(text: &str) -> Option<String> {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let numbered = lines().find(|line| line.contains(|c: char| c.is_ascii_digit()));
    numbered.or_else(|| lines().next()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_below_a_name() {
        let rows = [
            ("etcd Version: 3.4.23\nGit SHA: 0d5f5\n", Some("etcd Version: 3.4.23")),
            (
                "TiKV \nRelease Version:   8.5.7\nEdition: Community\n",
                Some("Release Version:   8.5.7"),
            ),
            ("\n mykv \nsecond line\n", Some("mykv")),
            (" \n", None),
        ];
        for (text, expected) in rows {
            assert_eq!(line(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_takes_too_long_is_not_taken_for_what_says_nothing() {
        let sh = Path::new("/bin/sh");
        let run = |script: &str, limit| ask(sh, &["-c".to_owned(), script.to_owned()], limit);
        let long = Duration::from_secs(60);
        assert_eq!(run("echo mykv 1", long), Said::Line("mykv 1".to_owned()));
        assert_eq!(run("true", long), Said::Nothing);
        assert_eq!(ask(Path::new("/nowhere/mykv"), &[], long), Said::Nothing);
        assert_eq!(run("exec sleep 60", Duration::from_millis(1)), Said::Late);
    }
}
