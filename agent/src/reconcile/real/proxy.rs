//! The agent's side of the proxy process: finds it, starts it, tells it, ends it.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use faultbed_common::{proxy_spec::ProxyFile, report::FaultReport};
use rustix::process::{Signal, pidfd_send_signal};

use super::watch;
use crate::{
    node::ProcessId,
    node::records::record_file,
    proxy::{self, Applied, FailedListener, FaultInForce, Programs, ProxyClient, ProxyState},
    reconcile::hands::{ProxyApplied, ProxySeen},
};

/// The file that the proxy starts from, in its directory.
const PROXY_FILE: &str = "proxy.json";

/// A proxy that was asked to end has ended by then; else it is killed.
const END_MAX: Duration = Duration::from_secs(2);

/// How often it is looked at whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The proxy process of this host.
#[derive(Debug)]
pub(super) struct Proxy {
    dir: PathBuf,
    socket: PathBuf,
    client: ProxyClient,
    programs: Mutex<Programs>,
}

impl Proxy {
    pub(super) fn new(dir: PathBuf, socket: PathBuf) -> Self {
        let client = ProxyClient::new(&socket);
        Self { dir, socket, client, programs: Mutex::default() }
    }

    pub(super) fn find(&self) -> Option<u32> {
        proxy::find(&self.dir).map(|process| process.pid.cast_unsigned())
    }

    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        watch::readable(proxy::find(&self.dir).and_then(|process| open(&process)))
    }

    /// The file is whole on disk before the proxy is told: it may start anew at any moment.
    pub(super) fn apply(&self, file: &ProxyFile) -> Result<ProxyApplied, String> {
        write(&self.dir, file).map_err(|error| format!("write the proxy's rules: {error}"))?;
        match proxy::find(&self.dir) {
            None => self.start()?,
            // Somebody cleared the runtime directory: it would never be told anything again. The
            // next one starts from the file, so nothing is open in between.
            Some(process) if !self.socket.exists() => {
                tracing::warn!(socket = %self.socket.display(), "the proxy's socket is gone: start it anew");
                kill(&process)?;
                self.start()?;
            }
            Some(_) => {}
        }
        let began = Instant::now();
        let mut applied = self.client.apply().map_err(describe)?;
        tracing::debug!(generation = %file.spec.generation, took = ?began.elapsed(), "rules applied");
        // Rules first: they do not wait for a new process.
        let outdated = match self.upgrade() {
            Ok(false) => None,
            Ok(true) => {
                applied = self.client.apply().map_err(describe)?;
                None
            }
            Err(why) => {
                tracing::warn!(%why, "upgrade the proxy");
                Some(why)
            }
        };
        let Applied { failed, faults, .. } = applied;
        let failed = failed.into_iter().map(|FailedListener { listener, why }| (listener, why));
        let fault = |name, FaultInForce { grade, active, why }| {
            let links = file.spec.faults.get(&name);
            let revision = links.map(|fault| fault.revision).unwrap_or_default();
            (name, FaultReport { revision, active, grade, why, ..FaultReport::default() })
        };
        Ok(ProxyApplied {
            failed: failed.collect(),
            faults: faults.into_iter().map(|(name, stands)| fault(name, stands)).collect(),
            outdated,
        })
    }

    /// Has a proxy that runs another program than this agent hand over to one that does not. Says
    /// whether it did; without one, or where that cannot be told, it does not.
    fn upgrade(&self) -> Result<bool, String> {
        let Some(old) = proxy::find(&self.dir) else { return Ok(false) };
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        match programs.differ(&old) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => {
                tracing::debug!(%error, "compare the proxy's program");
                return Ok(false);
            }
        }
        let began = Instant::now();
        let new = proxy::spawn(&self.dir, &self.socket)
            .map_err(|error| format!("hand over to a new process: {error}"))?;
        tracing::info!(old = old.pid, pid = new.pid, took = ?began.elapsed(), "proxy upgraded");
        Ok(true)
    }

    fn start(&self) -> Result<(), String> {
        let say = |error: io::Error| format!("start the proxy: {error}");
        if let Some(runtime) = self.socket.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(runtime).map_err(say)?;
        }
        let process = proxy::spawn(&self.dir, &self.socket).map_err(say)?;
        tracing::info!(pid = process.pid, "proxy started");
        Ok(())
    }

    pub(super) fn ask(&self) -> Result<ProxySeen, String> {
        let ProxyState { report, faults, .. } = self.client.report().map_err(describe)?;
        Ok(ProxySeen { report, faults })
    }

    pub(super) fn stop(&self) -> Result<(), String> {
        let Some(process) = proxy::find(&self.dir) else { return Ok(()) };
        if let Err(error) = self.client.stop() {
            tracing::debug!(error = %describe(error), "ask the proxy to end");
        }
        if ends(&process) {
            return Ok(());
        }
        // What does not hear is killed: its rules end with it, and so does all it carries.
        kill(&process)
    }
}

fn kill(process: &ProcessId) -> Result<(), String> {
    if let Some(pidfd) = open(process) {
        pidfd_send_signal(pidfd, Signal::KILL).map_err(|error| error.to_string())?;
    }
    if ends(process) { Ok(()) } else { Err("it does not end".to_owned()) }
}

fn ends(process: &ProcessId) -> bool {
    let deadline = Instant::now() + END_MAX;
    while process.is_alive().unwrap_or(false) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    true
}

/// A descriptor of exactly this process.
fn open(process: &ProcessId) -> Option<OwnedFd> {
    Some(process.open().ok()??.0)
}

fn write(dir: &Path, file: &ProxyFile) -> io::Result<()> {
    use std::io::Write as _;
    fs::create_dir_all(dir)?;
    let draft = dir.join("proxy.json.agent");
    record_file(&draft)?.write_all(&serde_json::to_vec(file)?)?;
    fs::rename(draft, dir.join(PROXY_FILE))
}

/// An error with what caused it.
fn describe(error: impl std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let causes: Vec<String> = causes.map(ToString::to_string).collect();
    std::iter::once(error.to_string()).chain(causes).collect::<Vec<_>>().join(": ")
}
