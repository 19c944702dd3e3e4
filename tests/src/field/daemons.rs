//! The daemons of a field: coordinators and agents, each in a place and with directories of its own.

use std::{
    fs::{self, File},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::net::Place;
use crate::lab::is_alive;

/// Where Debian's faketime package has its library, below the directory of the machine's kind.
const FAKETIME: &str = "faketime/libfaketime.so.1";

/// A process that may be killed and started again.
#[derive(Debug)]
pub struct Daemon {
    /// Where it is on the network.
    pub place: Place,
    /// Its directory.
    pub dir: PathBuf,
    /// Its sockets.
    pub runtime: PathBuf,
    /// What it runs.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// The file that says how far its wall clock is from the machine's.
    pub clock: Option<PathBuf>,
    child: Option<Child>,
}

impl Daemon {
    /// One that does not run yet.
    ///
    /// # Panics
    /// Where its directories cannot be made.
    #[must_use]
    pub fn new(place: Place, (dir, runtime): (PathBuf, PathBuf), program: PathBuf) -> Self {
        for dir in [&dir, &runtime] {
            fs::create_dir_all(dir).expect("make directory");
        }
        Self { place, dir, runtime, program, args: Vec::new(), clock: None, child: None }
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    /// Starts it, in a session of its own as a service is.
    ///
    /// # Panics
    /// Where the program cannot be run.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).expect("open log");
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.process_group(0);
        if let Some(clock) = &self.clock {
            command
                .env("LD_PRELOAD", faketime())
                .env("FAKETIME_TIMESTAMP_FILE", clock)
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        self.child = Some(self.place.spawn(&mut command));
    }

    /// Puts another release of its program at its path, in one step, as a package manager does. It
    /// does the same: what follows the last section of a program is not loaded.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn install(&self, release: u8) {
        let mut bytes = fs::read(&self.program).expect("read a program");
        bytes.push(release);
        let fresh = self.program.with_extension("new");
        fs::write(&fresh, bytes).expect("write a program");
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).expect("let it run");
        fs::rename(&fresh, &self.program).expect("replace a program");
    }

    /// Makes what it left on disk that of an earlier boot of its machine.
    ///
    /// # Panics
    /// Where its files cannot be changed.
    pub fn age_by_a_boot(&self) {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("read boot id");
        let mut dirs = vec![self.dir.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).expect("list files").flatten() {
                let path = entry.path();
                if entry.file_type().expect("look at file").is_dir() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|name| name == "json") {
                    let text = fs::read_to_string(&path).expect("read record");
                    let aged = text.replace(boot_id.trim(), "the-boot-before");
                    fs::write(&path, aged).expect("write record");
                }
            }
        }
    }

    /// SIGKILL, at whatever moment this is.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = child.kill();
            let _gone = child.wait();
        }
    }

    /// Its pid while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id).filter(|pid| is_alive(*pid))
    }

    /// Puts its wall clock this far from the machine's; only of one that has a `clock`.
    ///
    /// # Panics
    /// Where it has none.
    pub fn set_clock(&self, offset_seconds: i64) {
        let file = self.clock.as_ref().expect("a daemon with a clock of its own");
        write_whole(file, &format!("{offset_seconds:+}\n"));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn write_whole(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text).expect("write file");
    fs::rename(&fresh, path).expect("replace file");
}

/// The library that moves a process's wall clock.
fn faketime() -> PathBuf {
    let lib = Path::new("/usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let path = lib.join(FAKETIME);
    assert!(path.exists(), "{} is missing: deploy/setup.sh test installs it", path.display());
    path
}
