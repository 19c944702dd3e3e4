//! `faultbed-agent doctor`: whether this machine can be a host of a lab, what it cannot do, what root would add.

mod ask;
mod facts;
mod judge;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use faultbed_common::check::{Check, CheckVerdict, lines, tally};

use crate::args::{DoctorArgs, Output};

/// Where the agent keeps everything when root installs it.
const ROOT_DIR: &str = "/var/lib/faultbed";

/// Checks this machine and prints what was found. Exit 1 where something fails.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let checks = checks(args.dir.as_deref());
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => serde_json::to_writer_pretty(&mut out, &checks)?,
        Output::Table => write!(out, "{}\n\n{}", lines(&checks), tally(&checks))?,
    }
    writeln!(out)?;
    let failed = checks.iter().any(|check| check.verdict == CheckVerdict::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// All checks; `dir` is where the agent keeps everything, or would.
#[must_use]
pub fn checks(dir: Option<&Path>) -> Vec<Check> {
    let dir = dir.map_or_else(default_dir, Path::to_owned);
    judge::judge(&facts::gather(&dir))
}

fn default_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from(ROOT_DIR);
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    state.or_else(home).unwrap_or_else(|| PathBuf::from("/tmp")).join("faultbed")
}
