//! The proxy as a process: started in a session of its own, recorded, found again by another agent.

use std::{
    fs, io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use faultbed_common::program::{Content, Sha256};
use serde::{Deserialize, Serialize};

use crate::{clock, node::ProcessId};

/// How long a proxy may take to load its file and open its listeners.
const START_MAX: Duration = Duration::from_secs(5);
const START_POLL: Duration = Duration::from_millis(2);
/// How much of the log is shown where the start failed.
const LOG_BYTES_SHOWN: usize = 2000;

/// `proxy.pid.json`.
#[derive(Debug, Serialize, Deserialize)]
struct PidRecord {
    version: u32,
    boot_id: String,
    process: ProcessId,
}

/// The proxy process that serves a directory, if one runs.
#[must_use]
pub fn find(dir: &Path) -> Option<ProcessId> {
    let text = fs::read_to_string(record_path(dir)).ok()?;
    let record: PidRecord = serde_json::from_str(&text).ok()?;
    let same_boot = clock::boot_id().is_ok_and(|boot_id| boot_id == record.boot_id);
    (same_boot && record.process.is_alive().unwrap_or(false)).then_some(record.process)
}

/// Starts this program as the proxy of `dir`, with its control socket at `socket`. Returns when its
/// file is in force and its listeners are open; it has taken over from a proxy that ran.
///
/// # Errors
/// With the end of its log where it does not come up within 5 s.
pub fn spawn(dir: &Path, socket: &Path) -> io::Result<ProcessId> {
    spawn_program(Path::new("/proc/self/exe"), dir, socket)
}

/// As [`spawn`], with another program.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_program(program: &Path, dir: &Path, socket: &Path) -> io::Result<ProcessId> {
    fs::create_dir_all(dir)?;
    let log_path = dir.join("proxy.log");
    let log = fs::OpenOptions::new().create(true).append(true).open(&log_path)?;
    let mut child = Command::new(program)
        .arg0("faultbed-agent")
        .arg("proxy")
        .arg(dir)
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let end = Instant::now() + START_MAX;
    loop {
        if let Some(process) = find(dir).filter(|process| process.pid == child.id().cast_signed()) {
            reap_later(child);
            return Ok(process);
        }
        if let Some(status) = child.try_wait()? {
            let why = format!("the proxy ended with {status}: {}", log_end(&log_path));
            return Err(io::Error::other(why));
        }
        if Instant::now() > end {
            // It has not said that it serves: another one may be started in its place.
            child.kill()?;
            child.wait()?;
            let why = format!("the proxy did not come up: {}", log_end(&log_path));
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        std::thread::sleep(START_POLL);
    }
}

/// Tells programs apart by their content, and remembers what it has read.
#[derive(Debug, Default)]
pub struct Programs {
    own: Option<Sha256>,
    other: Option<(ProcessId, Sha256)>,
}

impl Programs {
    /// Whether a process runs another program than this process. Where that was replaced on disk,
    /// what counts is what runs.
    ///
    /// # Errors
    /// Where the program of either cannot be read.
    pub fn differ(&mut self, process: &ProcessId) -> io::Result<bool> {
        let (own, other) = (Path::new("/proc/self/exe"), exe_of(process));
        let (own_file, other_file) = (fs::metadata(own)?, fs::metadata(&other)?);
        // One file cannot change while it runs, and hardly two releases have one length: the common
        // cases cost no reading.
        let inode = |file: &fs::Metadata| (file.dev(), file.ino());
        if inode(&own_file) == inode(&other_file) {
            return Ok(false);
        }
        if own_file.len() != other_file.len() {
            return Ok(true);
        }
        let hash =
            |path: &Path| Ok::<_, io::Error>(Content::read(&mut fs::File::open(path)?)?.sha256);
        if self.own.is_none() {
            self.own = Some(hash(own)?);
        }
        if self.other.as_ref().is_none_or(|(known, _)| known != process) {
            self.other = Some((*process, hash(&other)?));
        }
        Ok(self.other.as_ref().map(|(_, hash)| hash) != self.own.as_ref())
    }
}

fn exe_of(process: &ProcessId) -> PathBuf {
    PathBuf::from(format!("/proc/{}/exe", process.pid))
}

/// Waits for the process in the background, so that its end leaves nothing behind.
fn reap_later(mut child: Child) {
    let thread = std::thread::Builder::new().name("reap-proxy".to_owned());
    // Without the thread the process stays a zombie, which counts as dead everywhere.
    let _zombie = thread.spawn(move || child.wait());
}

/// Takes over the duty to collect a proxy that this process started before it became this program.
pub fn collect_own(dir: &Path) {
    let Some(process) = find(dir) else { return };
    let own = std::process::id().cast_signed();
    let child = crate::node::ProcStat::of(process.pid).is_some_and(|stat| stat.parent == own);
    let Some(pid) = rustix::process::Pid::from_raw(process.pid).filter(|_| child) else { return };
    let wait = move || rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    // Without the thread the process stays a zombie, which counts as dead everywhere.
    let _zombie = std::thread::Builder::new().name("reap-proxy".to_owned()).spawn(wait);
}

fn log_end(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_BYTES_SHOWN)..]).trim().to_owned()
}

/// Records that this process serves `dir`: it is ready.
///
/// # Errors
/// As the file system says.
pub(crate) fn record_self(dir: &Path) -> io::Result<()> {
    let process = ProcessId::of(std::process::id().cast_signed())?;
    let record = PidRecord { version: 1, boot_id: clock::boot_id()?, process };
    let path = record_path(dir);
    let draft = path.with_extension("json.new");
    fs::write(&draft, serde_json::to_vec_pretty(&record)?)?;
    fs::rename(draft, path)
}

/// Records this process again where a successor that failed has recorded itself.
///
/// # Errors
/// As the file system says.
pub(crate) fn record_again(dir: &Path) -> io::Result<()> {
    if record_path(dir).exists() { record_self(dir) } else { Ok(()) }
}

/// Takes the record back.
pub(crate) fn forget_self(dir: &Path) {
    let _gone_already = fs::remove_file(record_path(dir));
}

fn record_path(dir: &Path) -> PathBuf {
    dir.join("proxy.pid.json")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    const WAITS: &str = "FAULTBED_TEST_WAITS";

    use super::*;
    use crate::proxy::eventually_within;

    #[test]
    fn a_process_is_found_by_its_record_while_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path()), None);
        record_self(dir.path()).unwrap();
        let found = find(dir.path()).unwrap();
        assert_eq!(found.pid.cast_unsigned(), std::process::id());
        assert!(found.is_alive().unwrap());
        forget_self(dir.path());
        assert_eq!(find(dir.path()), None);
    }

    #[test]
    fn another_process_of_the_same_number_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        record_self(dir.path()).unwrap();
        let text = fs::read_to_string(record_path(dir.path())).unwrap();
        for field in ["boot_id", "start_ticks", "pidfd_inode"] {
            let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
            match field {
                "boot_id" => record[field] = "another boot".into(),
                _ => record["process"][field] = 1.into(),
            }
            fs::write(record_path(dir.path()), record.to_string()).unwrap();
            assert_eq!(find(dir.path()), None, "{field}");
        }
    }

    #[test]
    fn the_remains_of_a_process_are_not_alive() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = ProcessId::of(child.id().cast_signed()).unwrap();
        assert!(process.is_alive().unwrap());
        child.kill().unwrap();
        // Not waited for yet: it is a zombie, or about to be one.
        eventually_within(START_MAX, "a zombie is not alive", || !process.is_alive().unwrap());
        child.wait().unwrap();
        assert!(!process.is_alive().unwrap());
    }

    #[test]
    fn programs_are_told_apart_by_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let own = ProcessId::of(std::process::id().cast_signed()).unwrap();
        let mut programs = Programs::default();
        assert!(!programs.differ(&own).unwrap());
        // What follows the last section of a program is not loaded, nor are its headers of sections, which end it.
        let change = |program: &mut Vec<u8>, how: &str| match how {
            "longer" => program.push(0),
            "changed" => *program.last_mut().unwrap() ^= 1,
            _ => {}
        };
        let run = |how: &str| {
            let path = dir.path().join(how);
            let mut program = fs::read("/proc/self/exe").unwrap();
            change(&mut program, how);
            fs::write(&path, program).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            // It waits for its standard input.
            let mut command = Command::new(&path);
            command.args(["--exact", "proxy::process::tests::waits"]).env(WAITS, "1");
            command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
        };
        for (how, differs) in [("same", false), ("longer", true), ("changed", true)] {
            let mut child = run(how);
            let process = ProcessId::of(child.id().cast_signed()).unwrap();
            for _ in 0..2 {
                assert_eq!(programs.differ(&process).unwrap(), differs, "{how}");
            }
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }

    /// Not a test by itself: the other program of the test above, which says so in its environment.
    #[test]
    fn waits() {
        if std::env::var_os(WAITS).is_some() {
            let _end = io::stdin().read_line(&mut String::new());
        }
    }

    #[test]
    fn a_proxy_that_does_not_come_up_says_why() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("proxy.log"), "the reason\n").unwrap();
        let socket = dir.path().join("s");
        let error = spawn_program(Path::new("/bin/false"), dir.path(), &socket).unwrap_err();
        assert!(error.to_string().contains("the reason"), "{error}");
        assert!(spawn_program(Path::new("/no/such"), dir.path(), &socket).is_err());
    }
}
