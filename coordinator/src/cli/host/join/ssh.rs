//! Runs the user's own `ssh` and `scp`, with the user's own configuration and keys.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// How long a script may take: an agent that joins waits until its coordinator has it.
const SCRIPT_MAX: Duration = Duration::from_secs(120);

/// How long an agent may take to be copied.
const COPY_MAX: Duration = Duration::from_secs(600);

/// Seconds to connect; with several machines at a time nobody can be asked for a password.
const OPTIONS: [&str; 4] = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=15"];

/// Lines of an error that are shown.
const LINES_SHOWN: usize = 6;

/// The programs.
#[derive(Debug, Clone)]
pub(super) struct Ssh {
    pub(super) ssh: OsString,
    pub(super) scp: OsString,
}

impl Ssh {
    /// Runs a script in the shell of a machine, and gives what it printed.
    ///
    /// # Errors
    /// The machine cannot be reached, or the script failed: with its last words.
    pub(super) async fn run(&self, at: &str, script: &str) -> Result<String, String> {
        let mut command = Command::new(&self.ssh);
        command.args(OPTIONS).args(["--", at, "sh", "-s"]);
        ended(command, script.as_bytes(), SCRIPT_MAX).await
    }

    /// Copies a file to a path below the home directory at the other end.
    ///
    /// # Errors
    /// As `scp` says.
    pub(super) async fn copy(&self, from: &Path, at: &str, to: &str) -> Result<(), String> {
        let mut command = Command::new(&self.scp);
        let to = match at.strip_prefix("ssh://") {
            Some(rest) => format!("scp://{rest}/{to}"),
            None => format!("{at}:{to}"),
        };
        command.args(OPTIONS).args([OsStr::new("-q"), OsStr::new("--"), from.as_os_str()]).arg(to);
        ended(command, b"", COPY_MAX).await.map(drop)
    }
}

async fn ended(mut command: Command, input: &[u8], most: Duration) -> Result<String, String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("run {program}: {error}"))?;
    let mut stdin = child.stdin.take();
    let talk = async {
        if let Some(mut stdin) = stdin.take() {
            // Who does not read has an answer of its own: it is shown below.
            let _closed = stdin.write_all(input).await;
        }
    };
    let both = async { tokio::join!(talk, child.wait_with_output()).1 };
    let ran = match timeout(most, both).await {
        Ok(Ok(ran)) => ran,
        Ok(Err(error)) => return Err(format!("wait for {program}: {error}")),
        Err(_) => return Err(format!("{program} did not end within {} s", most.as_secs())),
    };
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("; ");
    Err(if last.is_empty() { format!("{program}: {}", ran.status) } else { last })
}
