//! Runs a short command of a blueprint to its end: without a shell, bounded in time and output.

use std::{collections::BTreeMap, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    time::timeout,
};

/// Longer output is cut.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;

/// Variables that would send a command's questions elsewhere.
pub(crate) const PROXY_VARIABLES: [&str; 8] = [
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

/// A command that ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code; 128 and the signal's number where a signal ended it.
    pub status: i64,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

/// Another user than ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Runs a command, as another user where one is given.
///
/// # Errors
/// It cannot be started, or takes too long; then its whole process group is killed.
pub async fn run(
    argv: &[String],
    dir: &Path,
    env: &BTreeMap<String, String>,
    limit: Duration,
    who: Option<Ids>,
) -> Result<Ran, String> {
    let [program, args @ ..] = argv else { return Err("it is empty".to_owned()) };
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    for name in PROXY_VARIABLES {
        command.env_remove(name);
    }
    command.envs(env);
    if let Some(Ids { uid, gid }) = who {
        command.uid(uid).gid(gid);
    }
    die_with_us(&mut command);
    let mut child = command.spawn().map_err(|error| format!("run {program}: {error}"))?;
    let group = Group::of(child.id());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let running = async {
        let (out, err) = (read(stdout, &mut said), read(stderr, &mut complained));
        tokio::join!(out, err, child.wait()).2
    };
    match timeout(limit, running).await {
        Ok(Ok(status)) => {
            group.forget();
            use std::os::unix::process::ExitStatusExt as _;
            let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
            let (stdout, stderr) = (text(&said), text(&complained));
            Ok(Ran { status: i64::from(code.unwrap_or(-1)), stdout, stderr })
        }
        Ok(Err(error)) => Err(format!("wait for {program}: {error}")),
        Err(_) => {
            let (limit, words) = (humane(limit), format!("{}\n{}", text(&said), text(&complained)));
            let last = words.lines().map(str::trim).rfind(|line| !line.is_empty());
            let last = last.map_or(String::new(), |last| format!("; the last it said: {last}"));
            Err(format!("{program} did not end in {limit}{last}"))
        }
    }
}

/// The process group of a command, killed when it is dropped before its end.
pub(crate) struct Group(Option<u32>);

impl Group {
    /// The group that a child leads; nothing where it has ended already.
    pub(crate) fn of(leader: Option<u32>) -> Self {
        Self(leader)
    }

    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid =
            self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may be gone already.
            rustix::process::kill_process_group(pid, rustix::process::Signal::KILL).ok();
        }
    }
}

/// A command must not go on when its agent is killed: the next agent begins it again.
#[allow(unsafe_code, reason = "the parent-death signal is set between fork and exec")]
pub(crate) fn die_with_us(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        });
    }
}

/// Reads all of it and keeps as much as is shown, also of one that is dropped before its end.
async fn read(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    if let Some(from) = from {
        let mut limited = from.take(OUTPUT_BYTES_MAX);
        // What was read before an error is all there is to show.
        while limited.read_buf(into).await.is_ok_and(|read| read > 0) {}
        let mut rest = limited.into_inner();
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.ok();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn humane(limit: Duration) -> String {
    faultbed_common::duration::Span(limit).to_string()
}
