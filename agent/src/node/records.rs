//! The files of a run directory: what agent and shim tell each other, versioned.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use faultbed_common::{
    generation::Incarnation,
    host_spec::Limits,
    name::{LabName, NodeName},
    port_block::FarDials,
    report::Identity,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::process::ProcessId;

/// The version of these files that this release writes. Fields are only added, and a reader takes
/// every version up to its own, since shims of an older binary outlive an upgrade.
pub const VERSION: u32 = 1;
/// What to run: [`LaunchSpec`].
pub const LAUNCH_FILE: &str = "launch.json";
/// What may change while it runs: [`ShimOrders`].
pub const ORDERS_FILE: &str = "orders.json";
/// Which processes these are: [`RunRecord`].
pub const RUN_FILE: &str = "run.json";
/// That the end was asked for: [`AskedRecord`].
pub const ASKED_FILE: &str = "asked.json";
/// That it is over: [`ExitRecord`].
pub const EXIT_FILE: &str = "exit.json";
/// How connections are named: [`IdentityRecord`].
pub const IDENTITY_FILE: &str = "identity.json";
/// Locked by whoever starts or is the shim.
pub const LOCK_FILE: &str = "lock";
/// What the node prints; older parts end in `.1`, `.2`, and so on.
pub const OUTPUT_FILE: &str = "output.log";
/// No record is larger; a file that is has been tampered with.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What the shim runs, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// [`VERSION`].
    pub version: u32,
    /// The lab, for the environment tag.
    pub lab: LabName,
    /// The node.
    pub node: NodeName,
    /// Which start of it this is.
    pub incarnation: Incarnation,
    /// The program, as an absolute path.
    pub program: PathBuf,
    /// Its arguments, without the program.
    pub args: Vec<String>,
    /// Over the agent's own environment, less proxy settings.
    pub env: BTreeMap<String, String>,
    /// Where it runs.
    pub cwd: PathBuf,
    /// The user to run as, by name or number; only root can change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its limits; a value above the hard limit is lowered to it where we are not root.
    #[serde(default)]
    pub limits: Limits,
    /// The address its connects to `dials` come from.
    pub private: IpAddr,
    /// The size at which the output is rotated, in bytes.
    pub log_bytes_max: u64,
    /// How many output files there are at most, the current one included.
    pub log_files: u32,
}

/// What may change while a node runs; read again at SIGHUP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimOrders {
    /// Proxies on this machine: a connect to one of these is bound to the private address.
    pub dials: Arc<BTreeSet<SocketAddr>>,
    /// Proxies on others, and maybe those above: a connect to another one is bound to a port of a block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub far: Option<FarDials>,
    /// The node's own advertised addresses: what dials one that nothing listens behind is refused, as
    /// it would be without a proxy there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub own: BTreeSet<SocketAddr>,
    /// Whether all processes of the node stand still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// Whether its calls that wait for a disk wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Pause>,
}

/// A pause, of all processes or of their disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Its end on CLOCK_BOOTTIME, kept by the shim even if everybody else is dead; `None` is until
    /// the orders change. One that has passed is never applied.
    pub until_boottime_ns: Option<u64>,
}

/// Which processes a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`VERSION`] of the shim that wrote it.
    pub version: u32,
    /// The boot that pids and times belong to.
    pub boot_id: String,
    /// The shim: the run is over when it is gone.
    pub shim: ProcessId,
    /// The node's main process, a child of the shim.
    pub node: ProcessId,
    /// Which start of the node this is.
    pub incarnation: Incarnation,
    /// When it started, in milliseconds of CLOCK_BOOTTIME.
    pub started_boot_ms: u64,
}

/// Why the end of a run was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AskedWhy {
    /// It shall be down.
    Stop,
    /// It shall fail.
    Kill,
    /// A later incarnation shall run.
    Restart,
    /// Its data shall go.
    Wipe,
    /// The node shall go.
    Remove,
}

/// That the end of a run was asked for; written before the signal is sent, since this alone, and
/// not the exit code, tells a stop from a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedRecord {
    /// Why.
    pub why: AskedWhy,
    /// The signal it was asked with.
    pub signal: i32,
    /// When, in milliseconds of CLOCK_BOOTTIME.
    pub at_boot_ms: u64,
}

/// How a run ended. It is on disk only when no process of the run is left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The main process's exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// When the main process ended, in milliseconds of CLOCK_BOOTTIME.
    pub at_boot_ms: u64,
    /// Processes that outlived the main process, or ended with it by SIGKILL.
    pub killed_descendants: u32,
    /// Output that could not be written.
    pub log_bytes_dropped: u64,
    /// Why there is neither code nor signal: it never ran, or nobody saw its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<String>,
    /// Whether its shim was told to end, as a machine tells everybody before it goes down, or was gone
    /// with the machine. Once the machine was started again, this tells its end from a crash.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told_to_end: bool,
}

impl ExitRecord {
    /// Whether this end was asked for: asked for no later than it happened.
    #[must_use]
    pub fn was_asked(&self, asked: Option<&AskedRecord>) -> bool {
        asked.is_some_and(|asked| asked.at_boot_ms <= self.at_boot_ms)
    }
}

/// How the connections of a node are named, and how often it did not work.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdentityRecord {
    /// By its own address, unless connects to proxies of the lab went out without it.
    pub identity: Identity,
    /// Connects that were bound to the private address, or to a port of the block.
    pub bound: u64,
    /// Destinations that could not be read.
    pub unread: u64,
    /// Calls of processes that may not be looked into: not dumpable, or another user's.
    pub nodump: u64,
    /// Connects to proxies on sockets that the program had bound itself.
    pub app_bound: u64,
    /// Connects to proxies for which there was no free port: of the block, or of the private address.
    pub no_port: u64,
}

/// Writes a record so that a reader sees the old or the new one, whole, and never a part.
///
/// # Errors
/// Where the directory cannot be written.
pub fn write_record<T: Serialize>(dir: &Path, name: &str, record: &T) -> io::Result<()> {
    let tmp = dir.join(format!(".{name}.tmp"));
    let mut file = record_file(&tmp)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    fs::rename(tmp, dir.join(name))
}

/// Opens a file for a record: empty, and the owner's alone, since environments hold secrets.
///
/// # Errors
/// As open(2).
pub fn record_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Reads a record; `None` where there is none.
///
/// # Errors
/// Where it cannot be read, or is not such a record: the message names the file.
pub fn read_record<T: DeserializeOwned>(dir: &Path, name: &str) -> io::Result<Option<T>> {
    let path = dir.join(name);
    let say = |error: String| io::Error::other(format!("read {}: {error}", path.display()));
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(say(error.to_string())),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| say(error.to_string()))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| say(error.to_string()))
}
