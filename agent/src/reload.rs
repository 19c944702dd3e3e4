//! A reload: the same process goes on with the program that is now at its path. Nodes and proxy go on.

use std::{
    ffi::OsString,
    io::ErrorKind,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;

/// How long a program that is tried out may take to say its version, on a machine that has much else to do.
const TRY_MAX: Duration = Duration::from_secs(20);
/// How soon one that somebody still holds open for writing is tried again, within [`TRY_MAX`].
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// This process's own program and arguments, as it was started.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
}

impl Program {
    /// To be asked at the start: later its file may be another one.
    ///
    /// # Errors
    /// The kernel does not say what runs.
    pub fn own() -> anyhow::Result<Self> {
        let mut args = std::env::args_os();
        // As it was called, where that says a place: a link may by then lead to another release.
        let called = args.next().map(PathBuf::from).filter(|path| path.is_absolute());
        let path = match called {
            Some(path) => path,
            None => std::env::current_exe().context("find own program")?,
        };
        Ok(Self { path, args: args.collect() })
    }

    /// The same program with these arguments: for who was started by a command that works once.
    #[must_use]
    pub fn with_args(self, args: impl IntoIterator<Item = OsString>) -> Self {
        Self { args: args.into_iter().collect(), ..self }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether what is at its path now can take over: a file that is being written or of another
    /// machine must not cost a running agent.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn try_out(&self) -> anyhow::Result<()> {
        let mut trial = tokio::process::Command::new(&self.path);
        trial.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        trial.kill_on_drop(true);
        let tried = async {
            loop {
                match trial.status().await {
                    Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                        tokio::time::sleep(TRY_AGAIN).await;
                    }
                    ran => break ran,
                }
            }
        };
        let ran = tokio::time::timeout(TRY_MAX, tried).await;
        let what = || format!("run {} --version", self.path.display());
        let status = ran.with_context(what)?.with_context(what)?;
        anyhow::ensure!(status.success(), "{}: {status}; put a whole program there", what());
        Ok(())
    }

    /// Becomes what is at its path now. Returns only where that fails.
    #[must_use]
    pub fn exec(&self) -> anyhow::Error {
        // What has told systemd and the lock of the directory goes on: the pid is the same.
        let error = std::process::Command::new(&self.path).args(&self.args).exec();
        anyhow::Error::new(error).context(format!("run {}", self.path.display()))
    }
}
