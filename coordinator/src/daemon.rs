//! The daemon: arguments, start-up order, readiness and the end.

pub mod etcd;
pub mod remote;

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use clap::Parser;
use faultbed_common::name::LabName;
use faultbed_proto::v1::{
    agent_server::AgentServer, exec_server::ExecServer, operator_server::OperatorServer,
    trust_server::TrustServer,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    chore::{Chores, Refused},
    content::{CONTENT_BYTES_MAX, Contents, collect_for_ever},
    editor::Editor,
    http,
    journal::Journal,
    listen::{self, Door},
    mirror::Mirror,
    runtime::{Runtime, make_private_dir},
    service::{
        DOCUMENT_BYTES_MAX,
        agent::AgentService,
        exec::ExecService,
        operator::OperatorService,
        trust::{TRUST_BYTES_MAX, TrustService},
    },
    sessions::Sessions,
    store::{self, StoreChoice},
};

/// `faultbed-coordinator`: keeps the desired state of one lab.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Args {
    /// The lab's name.
    #[arg(long)]
    pub lab: LabName,
    /// Where the embedded store and the journal are.
    #[arg(long)]
    pub dir: PathBuf,
    /// Where sockets, addresses and tokens are; cleared of stale ones.
    #[arg(long)]
    pub runtime: PathBuf,
    /// The third byte of the lab's addresses on this machine: simulated hosts are 127.77.OCTET.N.
    #[arg(long, default_value_t = 0)]
    pub octet: u8,
    /// `embedded`, or `etcd=https://HOST:PORT,…`.
    #[arg(long, default_value = "embedded")]
    pub store: StoreChoice,
    /// What opens the etcd.
    #[command(flatten)]
    pub etcd: etcd::EtcdArgs,
    /// How many bytes all pushed programs may take together.
    #[arg(long, value_name = "BYTES", default_value_t = CONTENT_BYTES_MAX)]
    pub content_max: u64,
    /// Where other machines come in.
    #[command(flatten)]
    pub remote: remote::RemoteArgs,
    /// How log lines are written to standard error.
    #[arg(long, default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts the log. `RUST_LOG` selects as usual; without it `info`.
pub fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Says which of its directories, sockets or stores cannot be had.
pub async fn run(args: Args) -> anyhow::Result<()> {
    make_private_dir(&args.dir)?;
    let _pid_file = claim_pid_file(&args.dir.join("coordinator.pid"))?;

    // Listeners open early, so that callers queue instead of failing; nothing is answered before
    // the lab is known.
    let tcp = TcpListener::bind("127.0.0.1:0").await.context("listen on loopback")?;
    let address = tcp.local_addr().context("read own address")?;
    let token = new_token();
    let other_machines = remote::bind(&args.remote).await?;
    let (runtime, unix) = Runtime::open(&args.runtime, &token, address)?;
    let runtime = Arc::new(runtime);

    let store = store::open_with(&args.store, &args.etcd.access()?, &args.dir)
        .await
        .context("open the lab's store")?;
    let mirror = Mirror::start(store, args.lab.clone(), args.octet)
        .await
        .with_context(|| format!("read lab {} from its store", args.lab))?;
    let contents = Arc::new(Contents::new(args.dir.join("content"), args.content_max));
    let editor = Editor::new(Arc::clone(&mirror), Arc::clone(&contents));
    let journal = Arc::new(Journal::open(&args.dir.join("events.jsonl")));
    let refused = Arc::new(Refused::default());
    let sessions = Arc::new(Sessions::default());
    let operator = OperatorService {
        mirror: Arc::clone(&mirror),
        editor: editor.clone(),
        journal: Arc::clone(&journal),
        refused: Arc::clone(&refused),
        sessions: Arc::clone(&sessions),
        contents: Arc::clone(&contents),
    };
    let door = match other_machines {
        Some(listener) => {
            let editor = editor.clone();
            Some(remote::open(&args.remote, listener, Arc::clone(&mirror), editor).await?)
        }
        None => None,
    };
    let pki = door.as_ref().map(|(pki, _)| Arc::clone(pki));
    let agents = AgentService {
        mirror: Arc::clone(&mirror),
        editor: editor.clone(),
        sessions,
        contents: Arc::clone(&contents),
        compiled: Arc::default(),
        pki: pki.clone(),
    };
    let trust = TrustService { pki, joins: Arc::default() };
    let grpc = tonic::service::Routes::new(
        OperatorServer::new(operator.clone()).max_decoding_message_size(DOCUMENT_BYTES_MAX),
    )
    .add_service(AgentServer::new(agents).max_decoding_message_size(DOCUMENT_BYTES_MAX))
    .add_service(TrustServer::new(trust).max_decoding_message_size(TRUST_BYTES_MAX));
    let execs = ExecService {
        mirror: Arc::clone(&mirror),
        journal: Arc::clone(&journal),
        desk: Arc::default(),
    };
    let execs = ExecServer::new(execs).max_decoding_message_size(DOCUMENT_BYTES_MAX);
    let router = grpc.add_service(execs).into_axum_router().merge(http::routes(operator));

    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(collect_for_ever(contents, Arc::clone(&mirror), stop.clone()));
    if let Some((_, door)) = &door {
        let listening = door.address().context("read own address")?;
        info!(%listening, "serving other machines over TLS");
        tasks.spawn(Arc::clone(door).serve(router.clone(), stop.clone()));
        tasks.spawn(Arc::clone(door).renew(Arc::clone(&mirror), stop.clone()));
    }
    let chores = Chores { mirror, editor, journal, refused };
    tasks.spawn(chores.run(stop.clone()));
    let door = Door { uid: rustix::process::getuid().as_raw(), token: token.into(), address };
    let doors = listen::Doors { unix, tcp, runtime: Arc::clone(&runtime) };
    tasks.spawn(listen::serve(router, door, doors, stop.clone()));
    info!(lab = %args.lab, %address, store = %args.store, "coordinator ready");
    notify_ready();

    wait_for_end().await?;
    info!("coordinator ends; nodes and faults stay as they are");
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    runtime.clear();
    Ok(())
}

async fn wait_for_end() -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// Holds the lock that makes this the only coordinator of its directory, and names its pid.
fn claim_pid_file(path: &Path) -> anyhow::Result<fs::File> {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let holder = fs::read_to_string(path).unwrap_or_default();
        bail!("another coordinator runs this lab: pid {}", holder.trim());
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).context("write pid")?;
    Ok(file)
}

fn new_token() -> String {
    let bytes: [u8; 16] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tells systemd that the daemon serves, where systemd started it.
fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let Ok(socket) = std::os::unix::net::UnixDatagram::unbound() else { return };
    let sent = match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt as _;
            std::os::unix::net::SocketAddr::from_abstract_name(name)
                .and_then(|address| socket.send_to_addr(b"READY=1", &address))
        }
        None => socket.send_to(b"READY=1", &path),
    };
    if let Err(error) = sent {
        tracing::warn!(%error, "tell systemd that we are ready");
    }
}
