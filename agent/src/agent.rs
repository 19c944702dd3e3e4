//! Wires the agent together: one lock, one loop, one session; nodes and proxy outlive it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::{net::UnixDatagram, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
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
    args::{AgentArgs, DownArgs},
    clock, down, facts,
    ledger::Ledger,
    proxy,
    reconcile::{
        real::RealHands,
        task::{Identity, ORDERS_MAX, Reconciler},
    },
    session::{Coordinator, Session},
};

/// Threads for steps that block. They end when they are idle; a host has as many nodes as it has.
const BLOCKING_THREADS_MAX: usize = 16;

/// Runs the agent until it is asked to end.
///
/// # Errors
/// It cannot begin: another agent has the directory, or the disk refuses it.
pub fn run(args: &AgentArgs) -> anyhow::Result<()> {
    // Now, since the path of a program that was replaced cannot be found out any more.
    let own = std::env::current_exe().context("find this program")?;
    proxy::reap_inherited();
    let coordinator: Coordinator = args.coordinator.parse().map_err(anyhow::Error::msg)?;
    let dir = std::path::absolute(&args.dir)?;
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    // Held as long as we live.
    let lock = Lock::take(&dir)?;
    note_runtime(&dir, &args.runtime)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(std::time::Duration::from_secs(1))
        .build()?;
    let end = runtime.block_on(serve(args, dir.clone(), coordinator, &own))?;
    // Nothing of the lab is left to run when others begin to look after the host.
    drop(runtime);
    match end {
        End::Asked => Ok(()),
        End::Again => {
            drop(lock);
            tracing::info!(program = %own.display(), "agent becomes the program that is there now");
            // Comes back only where it failed; the unit, or who watches, starts the agent anew then.
            Err(Command::new(&own).args(std::env::args_os().skip(1)).exec())
                .with_context(|| format!("become {}", own.display()))
        }
        End::Removed(why) => {
            tracing::warn!("{why}: this host stops everything and keeps its data");
            drop(lock);
            down::run(&DownArgs { dir, wipe: false, runtime: Some(args.runtime.clone()) })?;
            Ok(())
        }
    }
}

/// Why an agent ends.
enum End {
    /// By a signal: nodes and proxy go on.
    Asked,
    /// By SIGHUP: it becomes the program that is at its path now.
    Again,
    /// Its host is of the lab no more, in these words.
    Removed(String),
}

async fn serve(
    args: &AgentArgs,
    dir: PathBuf,
    coordinator: Coordinator,
    own: &Path,
) -> anyhow::Result<End> {
    let boot_id = clock::boot_id().context("read the boot id")?;
    let ledger = Ledger::open(&dir, &args.lab, &args.host, &boot_id, clock::now())?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let hands = Arc::new(RealHands::new(args, &dir));
    let spec = ledger.accepted().map(|accepted| accepted.spec.clone());
    let (reconciler, reports) =
        Reconciler::new(hands, ledger, Identity { version: version.clone(), boot_id });
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    let hello = Hello {
        lab: args.lab.clone(),
        host: args.host.clone(),
        address: args.address,
        dir,
        version,
        port_range: facts::port_range(),
        labels: BTreeMap::new(),
    };
    let mut session = Session::new(coordinator, hello, orders, reports);
    if let Some(spec) = &spec {
        session.knows(spec);
    }
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut reload = signal(SignalKind::hangup())?;
    let passes = tokio::spawn(reconciler.run(ordered, stop.clone()));
    let mut talks = tokio::spawn(session.run(stop.clone()));
    notify_ready();
    tracing::info!(host = %args.host, lab = %args.lab, "agent begun");
    let mut again = false;
    let over = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = reload.recv() => again = can_run(own).await,
            over = &mut talks => break Some(over),
        }
        if again {
            break None;
        }
    };
    if over.is_none() {
        tracing::info!("agent stops; nodes and proxy go on");
    }
    stop.cancel();
    passes.await.context("end the loop")?;
    let told = match over {
        Some(told) => told,
        None => talks.await,
    };
    // The host may be removed in the moment in which it is asked to stop.
    let end = if again { End::Again } else { End::Asked };
    Ok(told.context("end the session")?.map_or(end, End::Removed))
}

/// How long a new program may take to say its version.
const VERSION_MAX: Duration = Duration::from_secs(10);

/// Whether the program at this path runs at all: an agent must not end for one that was copied by half,
/// or is for another machine.
async fn can_run(program: &Path) -> bool {
    let asked = tokio::process::Command::new(program).arg("--version").kill_on_drop(true).output();
    let why = match tokio::time::timeout(VERSION_MAX, asked).await {
        Ok(Ok(said)) if said.status.success() => return true,
        Ok(Ok(said)) => said.status.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no version within {} s", VERSION_MAX.as_secs()),
    };
    tracing::error!(program = %program.display(), why, "reload refused: the new program does not run");
    false
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
