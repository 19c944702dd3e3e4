//! Wires the agent together: one lock, one loop, one session; nodes and proxy outlive it.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::net::UnixDatagram,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use faultbed_common::session::Hello;
use rustix::fs::FlockOperation;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::{
    args::DownArgs,
    clock, down, facts,
    identity::HostIdentity,
    ledger::Ledger,
    proxy,
    reconcile::{
        real::RealHands,
        task::{Identity, ORDERS_MAX, Reconciler},
    },
    reload::Program,
    session::{Known, Session},
    settings::Settings,
};

/// Threads for steps that block. They end when they are idle; a host has as many nodes as it has.
const BLOCKING_THREADS_MAX: usize = 16;

/// Runs the agent until it is asked to end.
///
/// # Errors
/// It cannot begin: another agent has the directory, or the disk refuses it.
pub fn run(args: &Settings, program: Program) -> anyhow::Result<()> {
    let dir = make_dir(&args.dir).with_context(|| format!("create {}", args.dir.display()))?;
    // Held as long as we live.
    let lock = Lock::take(&dir)?;
    note_runtime(&dir, &args.runtime)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(std::time::Duration::from_secs(1))
        .build()?;
    proxy::collect_own(&dir.join("proxy"));
    let end = runtime.block_on(serve(args, dir.clone(), &program))?;
    // Nothing of the lab is left to run when others begin to look after the host.
    drop(runtime);
    match end {
        End::Asked => Ok(()),
        End::Reload => {
            drop(lock);
            Err(program.exec())
        }
        End::Removed(why) => {
            tracing::warn!("{why}: this host stops everything and keeps its data");
            drop(lock);
            let runtime = Some(args.runtime.clone());
            down::run(&DownArgs { dir: dir.clone(), wipe: false, runtime })?;
            let _lock = Lock::take(&dir)?;
            let boot_id = clock::boot_id().context("read the boot id")?;
            Ledger::open(&dir, &args.lab, &args.host, &boot_id, clock::now())?.forget_nodes();
            Ok(())
        }
    }
}

/// Makes the agent's directory, and gives it a path that does not climb: those of nodes begin with it, and
/// one that climbs could lead anywhere.
fn make_dir(dir: &Path) -> io::Result<PathBuf> {
    let dir = std::path::absolute(dir)?;
    fs::create_dir_all(&dir)?;
    let climbs = dir.components().any(|part| part == Component::ParentDir);
    if climbs { fs::canonicalize(dir) } else { Ok(dir) }
}

/// Why an agent ends.
enum End {
    /// By a signal: nodes and proxy go on.
    Asked,
    /// Goes on as the program that is now at its path.
    Reload,
    /// Its host is of the lab no more, in these words.
    Removed(String),
}

async fn serve(args: &Settings, dir: PathBuf, program: &Program) -> anyhow::Result<End> {
    let identity = match args.needs_identity() {
        true => Some(Arc::new(HostIdentity::open(args)?)),
        false => None,
    };
    let boot_id = clock::boot_id().context("read the boot id")?;
    let ledger = Ledger::open(&dir, &args.lab, &args.host, &boot_id, clock::now())?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let known = Known { coordinators: args.coordinators.clone(), identity: identity.clone() };
    let hands = Arc::new(RealHands::new(args, &dir, known.clone()));
    let spec = ledger.accepted().map(|accepted| accepted.spec.clone());
    let (line, heard) = crate::line::line();
    let (reconciler, reports) =
        Reconciler::new(hands, ledger, Identity { version: version.clone(), boot_id });
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    let hello = Hello {
        remembers: true,
        lab: args.lab.clone(),
        host: args.host.clone(),
        address: args.address,
        dir,
        version,
        port_range: facts::port_range(),
        labels: args.labels.clone(),
        identity_port: args.identity_port(),
    };
    let mut session = Session::new(known.clone(), hello, orders, reports);
    session.line = line;
    session.allow(args.allow.clone());
    if let Some(spec) = &spec {
        session.knows(spec);
    }
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let passes = tokio::spawn(reconciler.hearing(heard).run(ordered, stop.clone()));
    if let Some(identity) = identity {
        // It ends with the runtime; a renewal that is under way loses nothing.
        tokio::spawn(identity.keep(args.coordinators.clone(), stop.clone()));
    }
    let mut talks = tokio::spawn(session.run(stop.clone()));
    notify_ready();
    tracing::info!(host = %args.host, lab = %args.lab, "agent begun");
    let mut told = None;
    let end = loop {
        tokio::select! {
            _ = terminate.recv() => break End::Asked,
            _ = interrupt.recv() => break End::Asked,
            _ = hangup.recv() => match program.try_out().await {
                Ok(()) => break End::Reload,
                Err(error) => tracing::error!("not reloaded: {error:#}"),
            },
            over = &mut talks => {
                told = Some(over);
                break End::Asked;
            }
        }
    };
    match &end {
        End::Reload => tracing::info!(program = %program.path().display(), "agent reloads"),
        End::Asked if told.is_none() => tracing::info!("agent stops; nodes and proxy go on"),
        End::Asked | End::Removed(_) => {}
    }
    stop.cancel();
    passes.await.context("end the loop")?;
    let told = match told {
        Some(told) => told,
        None => talks.await,
    };
    // The host may be removed in the moment in which it is asked to stop.
    Ok(told.context("end the session")?.map_or(end, End::Removed))
}

/// The pid file of an agent's directory, locked while the agent lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the directory for this process.
    ///
    /// # Errors
    /// Another agent has it, which is named; or the file cannot be written.
    pub fn take(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("agent.pid");
        match Self::try_take(&path).with_context(|| format!("lock {}", path.display()))? {
            Ok(lock) => Ok(lock),
            Err(pid) => anyhow::bail!(
                "another agent runs for {}: pid {pid}; stop it first, or use its directory's lab",
                dir.display()
            ),
        }
    }

    /// The lock, or the pid of who has it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn try_take(path: &Path) -> io::Result<Result<Self, String>> {
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid)?;
                return Ok(Err(pid.trim().to_owned()));
            }
            Err(error) => return Err(error.into()),
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Ok(Self { _file: file }))
    }
}

/// Where `down` finds the sockets of an agent that is dead.
fn note_runtime(dir: &Path, runtime: &Path) -> anyhow::Result<()> {
    let path = dir.join("runtime");
    let runtime = std::path::absolute(runtime)?;
    fs::write(&path, runtime.as_os_str().as_encoded_bytes())
        .with_context(|| format!("write {}", path.display()))
}

/// Tells systemd, where it asked, that the agent serves.
fn notify_ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = UnixDatagram::unbound().and_then(|from| {
        use std::os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr};
        let bytes = socket.as_encoded_bytes();
        // systemd writes an abstract name with an '@' for its leading zero.
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&socket)?,
        };
        from.send_to_addr(b"READY=1", &address)
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "tell systemd that the agent is ready");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_directory_that_is_named_by_climbing_does_not_climb() {
        let home = tempfile::tempdir().unwrap();
        let home = fs::canonicalize(home.path()).unwrap();
        fs::create_dir(home.join("here")).unwrap();
        assert_eq!(make_dir(&home.join("here/../h1")).unwrap(), home.join("h1"));
        assert_eq!(make_dir(&home.join("h2")).unwrap(), home.join("h2"));
    }
}
