//! A directory of runs for one test, which leaves no process behind, and helper processes.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use faultbed_agent::node::{
    self, AskedRecord, AskedWhy, ExitRecord, LaunchError, LaunchSpec, RunRecord, RunState,
    ShimOrders, clock,
    launch::launch_with,
    records::{RUN_FILE, VERSION, read_record},
};
use faultbed_common::{generation::Incarnation, host_spec::Limits};

/// Names another copy of the real binary.
pub(crate) const AGENT_COPY: &str = "SHIM_TEST_AGENT";
/// How long anything may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const HELPER_VERB: &str = "SHIM_TEST_HELPER";
const HELPER_ARGUMENTS: &str = "SHIM_TEST_HELPER_ARGUMENTS";

/// The real binary.
pub(crate) fn agent() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_faultbed-agent");
    std::env::var_os(AGENT_COPY).map_or_else(|| built.into(), PathBuf::from)
}

/// A node's directory.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
    runs: Cell<u64>,
}

/// A run that was launched.
pub(crate) struct Run {
    pub(crate) dir: PathBuf,
    pub(crate) record: RunRecord,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        Self { dir, runs: Cell::new(0) }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir().join("data")
    }

    /// The directory of the next run.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.runs.set(self.runs.get() + 1);
        node::run_dir(self.dir(), Incarnation(self.runs.get()))
    }

    /// A node that is this shell script.
    pub(crate) fn spec(&self, script: &str) -> LaunchSpec {
        LaunchSpec {
            version: VERSION,
            lab: "t".parse().unwrap(),
            node: "kv-1".parse().unwrap(),
            incarnation: Incarnation(self.runs.get() + 1),
            program: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            env: [].into(),
            cwd: self.data(),
            user: None,
            limits: Limits::default(),
            private: "127.128.128.5".parse().unwrap(),
            log_bytes_max: 1 << 20,
            log_files: 4,
        }
    }

    pub(crate) fn try_launch(
        &self,
        dir: &Path,
        spec: &LaunchSpec,
        orders: &ShimOrders,
    ) -> Result<RunRecord, LaunchError> {
        launch_with(&agent(), dir, spec, orders)
    }

    pub(crate) fn launch(&self, script: &str) -> Run {
        self.launch_spec(&self.spec(script))
    }

    pub(crate) fn launch_spec(&self, spec: &LaunchSpec) -> Run {
        self.launch_with_orders(spec, &ShimOrders::default())
    }

    pub(crate) fn launch_with_orders(&self, spec: &LaunchSpec, orders: &ShimOrders) -> Run {
        let dir = self.run_dir();
        let record = self.try_launch(&dir, spec, orders).unwrap();
        Run { dir, record }
    }

    /// The pid that a script wrote to a file, once it is complete.
    pub(crate) fn pid_in(&self, file: &str) -> Option<i32> {
        let text = fs::read_to_string(self.data().join(file)).ok()?;
        text.strip_suffix('\n')?.parse().ok()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (_, dir) in node::runs::all_runs(self.dir()).unwrap_or_default() {
            if let Ok(Some(record)) = read_record::<RunRecord>(&dir, RUN_FILE) {
                let _gone = node::signal::send(&record.shim, libc::SIGTERM);
                within(PATIENCE, || !record.shim.is_alive().unwrap_or(false));
            }
        }
        for left in node::leftovers(self.dir()).unwrap_or_default() {
            let _gone = node::signal::send(&left.process, libc::SIGKILL);
        }
    }
}

impl Run {
    pub(crate) fn is_alive(&self) -> bool {
        self.record.shim.is_alive().unwrap() || self.record.node.is_alive().unwrap()
    }

    /// What became of it, once that can be told.
    pub(crate) fn settled(&self) -> RunState {
        let over = |state: &RunState| matches!(state, RunState::Exited { .. });
        assert!(eventually(|| over(&node::inspect(&self.dir))), "{:?}", node::inspect(&self.dir));
        node::inspect(&self.dir)
    }

    /// Ends it, and sees that nothing of it is left.
    pub(crate) fn end(&self) {
        let signal = libc::SIGKILL;
        let asked = AskedRecord { why: AskedWhy::Stop, signal, at_boot_ms: clock::boottime_ms() };
        node::kill_tree(&self.record, &self.dir, &asked).unwrap();
        self.settled();
        assert!(eventually(|| !self.is_alive()));
    }
}

/// The exit record of a run, once there is one.
pub(crate) fn last_exit(dir: &Path) -> ExitRecord {
    let mut found = None;
    let over = eventually(|| match node::inspect(dir) {
        RunState::Exited { exit, .. } => {
            found = Some(exit);
            true
        }
        _ => false,
    });
    assert!(over, "{:?}", node::inspect(dir));
    found.unwrap()
}

/// Whether something comes true before patience ends.
pub(crate) fn eventually(holds: impl FnMut() -> bool) -> bool {
    within(PATIENCE, holds)
}

/// Whether something comes true in time.
pub(crate) fn within(time: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// This very binary as another process, which does what `helper` in `main` says for `verb`.
pub(crate) fn helper(verb: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "helper", "--nocapture", "--test-threads=1"]);
    command.env(HELPER_VERB, verb).env(HELPER_ARGUMENTS, arguments.join("\u{1f}"));
    command
}

/// In such a process: its verb and arguments.
pub(crate) fn helper_arguments() -> Option<(String, Vec<String>)> {
    let verb = std::env::var(HELPER_VERB).ok()?;
    let arguments = std::env::var(HELPER_ARGUMENTS).unwrap();
    Some((verb, arguments.split('\u{1f}').map(str::to_owned).collect()))
}
