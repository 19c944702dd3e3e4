//! Stands in for `gitaly` and `praefect`: reads their files as strictly as can be, and has one repository.
//!
//! The PostgreSQL between them is a real one. A Praefect asks each storage for its health at the address
//! that it was given, and writes down who has the repository and who its primary is.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{die, open, print, serve};

/// How often a Praefect asks its storages; the real one does every second.
const ROUND: Duration = Duration::from_millis(500);

/// How long a storage has to answer.
const HEALTH: Duration = Duration::from_secs(1);

/// The longest path of a unix socket, its closing NUL included.
const SOCKET_PATH_MAX: usize = 108;

/// Tables as far as others read them; the real ones have more columns.
const TABLES: &str = "create table if not exists repositories \
    (repository_id bigint primary key, relative_path text not null, \"primary\" text); \
    create table if not exists storage_repositories \
    (repository_id bigint, storage text, generation bigint, primary key (repository_id, storage)); \
    create index concurrently if not exists by_storage on storage_repositories (storage)";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gitaly {
    listen_addr: SocketAddr,
    prometheus_listen_addr: SocketAddr,
    bin_dir: PathBuf,
    runtime_dir: PathBuf,
    graceful_restart_timeout: String,
    storage: Vec<Storage>,
    auth: Auth,
    gitlab: GitLab,
    daily_maintenance: Maintenance,
    logging: Logging,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Storage {
    name: String,
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Auth {
    token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GitLab {
    url: String,
    secret: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Maintenance {
    disabled: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Logging {
    format: String,
    level: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Praefect {
    listen_addr: SocketAddr,
    prometheus_listen_addr: SocketAddr,
    graceful_stop_timeout: String,
    auth: Auth,
    logging: Logging,
    database: Database,
    reconciliation: Reconciliation,
    failover: Failover,
    virtual_storage: Vec<VirtualStorage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Database {
    host: IpAddr,
    port: u16,
    user: String,
    dbname: String,
    sslmode: String,
    session_pooled: Pooled,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pooled {
    host: IpAddr,
    port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reconciliation {
    scheduling_interval: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Failover {
    enabled: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VirtualStorage {
    name: String,
    node: Vec<Backend>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Backend {
    storage: String,
    address: String,
    token: String,
}

pub(crate) fn gitaly(args: &[String]) {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let file = match words.as_slice() {
        ["--version"] => return print("Gitaly, version stand-in"),
        ["serve", file] => *file,
        _ => die(&format!("unknown command {words:?}")),
    };
    let config: Gitaly = read(file);
    reads_as_durations(&[&config.graceful_restart_timeout]);
    checks_common(&config.auth, &config.logging);
    if std::env::var("GITALY_TESTING_NO_GIT_HOOKS").as_deref() != Ok("1") {
        die(&format!("hooks would ask GitLab at {}", config.gitlab.url));
    }
    if config.gitlab.secret.is_empty() || !config.daily_maintenance.disabled {
        die("gitlab.secret is empty, or maintenance is on");
    }
    let [storage] = config.storage.as_slice() else { die("there is not exactly one storage") };
    for dir in [&config.bin_dir, &config.runtime_dir, &storage.path] {
        if !dir.is_dir() {
            die(&format!("path doesn't exist: {}", dir.display()));
        }
    }
    if storage.name.is_empty() {
        die("a storage has no name");
    }
    make_runtime_dir(&config.runtime_dir);
    metrics(config.prometheus_listen_addr);
    answer_health(config.listen_addr, None);
}

/// Each run has its own, and clears away those of processes that are gone; nothing else may be in it.
fn make_runtime_dir(parent: &Path) {
    let entries = fs::read_dir(parent).map(|entries| entries.flatten().collect::<Vec<_>>());
    for entry in entries.unwrap_or_default() {
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.strip_prefix("gitaly-").and_then(|pid| pid.parse::<u32>().ok()) {
            Some(pid) if Path::new(&format!("/proc/{pid}")).exists() => {}
            Some(_) => drop(fs::remove_dir_all(entry.path())),
            None => die(&format!("gitaly process directory contains an unexpected {name:?}")),
        }
    }
    let sockets = parent.join(format!("gitaly-{}/sock.d", std::process::id()));
    let socket = sockets.join("intern");
    if socket.as_os_str().len() >= SOCKET_PATH_MAX {
        die(&format!("failed creating internal test socket: {} is too long", socket.display()));
    }
    fs::create_dir_all(&sockets).unwrap_or_else(|error| die(&format!("make {sockets:?}: {error}")));
    let bound = std::os::unix::net::UnixListener::bind(&socket);
    let listener = bound.unwrap_or_else(|error| die(&format!("bind {socket:?}: {error}")));
    thread::spawn(move || listener.incoming().flatten().for_each(drop));
}

pub(crate) fn praefect(args: &[String]) {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let (file, command) = match words.as_slice() {
        ["--version"] => return print("Praefect, version stand-in"),
        ["-config", file, command @ ("serve" | "sql-migrate")] => (*file, *command),
        _ => die(&format!("unknown command {words:?}")),
    };
    let config: Praefect = read(file);
    check_praefect(&config);
    if command == "sql-migrate" {
        if !sql(&config.database, TABLES) {
            die("sql-migrate: the database cannot be reached");
        }
        return print("praefect sql-migrate: OK");
    }
    metrics(config.prometheus_listen_addr);
    answer_health(config.listen_addr, Some(config));
}

fn check_praefect(config: &Praefect) {
    reads_as_durations(&[
        &config.graceful_stop_timeout,
        &config.reconciliation.scheduling_interval,
    ]);
    checks_common(&config.auth, &config.logging);
    let Database { host, port, user, dbname, sslmode, session_pooled } = &config.database;
    if (host, port) != (&session_pooled.host, &session_pooled.port) {
        die("session_pooled is another database");
    }
    if (user.as_str(), dbname.as_str(), sslmode.as_str())
        != ("praefect", "praefect_production", "disable")
    {
        die(&format!("{user} of {dbname} with sslmode {sslmode} is not who sql-migrate was for"));
    }
    let [only] = config.virtual_storage.as_slice() else { die("not one virtual storage") };
    if only.name.is_empty() || only.node.is_empty() || !config.failover.enabled {
        die("a virtual storage without a name, nodes or failover");
    }
    let mut seen = std::collections::BTreeSet::new();
    for node in &only.node {
        if !seen.insert(&node.storage) {
            die("internal gitaly storages are not unique");
        }
        if node.token.is_empty() || is_private(backend(node).ip()) {
            die(&format!("{} has no token, or is where no proxy would be met", node.address));
        }
    }
    if is_private(*host) {
        die(&format!("the database at {host} would be met without a proxy"));
    }
}

/// Whether nodes listen there themselves: 127.128.0.0/9.
fn is_private(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.is_loopback() && ip.octets()[1] >= 128)
}

fn backend(node: &Backend) -> SocketAddr {
    let at = node.address.strip_prefix("tcp://").and_then(|at| at.parse().ok());
    at.unwrap_or_else(|| die(&format!("{} is no tcp:// address", node.address)))
}

/// Both programs read TOML and pass over what they do not know; this does not.
fn read<T: for<'a> Deserialize<'a>>(file: &str) -> T {
    let text =
        fs::read_to_string(file).unwrap_or_else(|error| die(&format!("read {file}: {error}")));
    toml::from_str(&text).unwrap_or_else(|error| die(&format!("load toml: {file}: {error}")))
}

fn reads_as_durations(texts: &[&str]) {
    for text in texts {
        let digits = text.strip_suffix("ms").or_else(|| text.strip_suffix(['s', 'm', 'h']));
        if digits.and_then(|digits| digits.parse::<u32>().ok()).is_none() {
            die(&format!("time: invalid duration {text:?}"));
        }
    }
}

fn checks_common(auth: &Auth, logging: &Logging) {
    if auth.token.is_empty() {
        die("auth.token is empty");
    }
    if !["text", "json"].contains(&logging.format.as_str())
        || !["debug", "info", "warn", "error"].contains(&logging.level.as_str())
    {
        die(&format!("logging: {} {}", logging.format, logging.level));
    }
}

fn metrics(at: SocketAddr) {
    let listener = open(at);
    thread::spawn(move || {
        serve(listener, |path| match path {
            "/metrics" => (200, "# stand-in\n".to_owned()),
            _ => (404, String::new()),
        });
    });
}

/// Answers for its health as the real ones do, without a token. A Praefect first looks at its storages
/// once, which takes the tables of its database.
fn answer_health(at: SocketAddr, praefect: Option<Praefect>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| die(&format!("start a runtime: {error}")));
    runtime.block_on(async {
        if let Some(config) = praefect {
            while !round(&config).await {
                tokio::time::sleep(ROUND).await;
            }
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(ROUND).await;
                    round(&config).await;
                }
            });
        }
        let (_reporter, health) = tonic_health::server::health_reporter();
        let bound = TcpListener::bind(at).await;
        let listener = bound.unwrap_or_else(|error| die(&format!("listen on {at}: {error}")));
        let incoming = TcpListenerStream::new(listener);
        let served = Server::builder().add_service(health).serve_with_incoming(incoming).await;
        served.unwrap_or_else(|error| die(&format!("serve {at}: {error}")));
    });
}

/// Asks every storage, and writes down who has the repository. Its primary changes where it is not well.
async fn round(config: &Praefect) -> bool {
    let mut well = Vec::new();
    for node in config.virtual_storage.iter().flat_map(|storage| &storage.node) {
        if is_well(backend(node)).await {
            well.push(format!("'{}'", node.storage));
        }
    }
    let Some(first) = well.first() else {
        return sql(&config.database, "select from repositories");
    };
    let list = well.join(", ");
    sql(
        &config.database,
        &format!(
            "insert into repositories values (1, '@hashed/one', {first}) on conflict do nothing; \
             insert into storage_repositories select 1, unnest(array[{list}]), 0 on conflict do nothing; \
             update repositories set \"primary\" = {first} where \"primary\" not in ({list})"
        ),
    )
}

async fn is_well(at: SocketAddr) -> bool {
    let ask = async {
        let channel = Endpoint::from_shared(format!("http://{at}")).ok()?.connect().await.ok()?;
        HealthClient::new(channel).check(HealthCheckRequest::default()).await.ok()
    };
    tokio::time::timeout(HEALTH, ask).await.ok().flatten().is_some()
}

/// Runs statements in the database, and says whether they were.
fn sql(database: &Database, statements: &str) -> bool {
    let (host, port) = (database.host.to_string(), database.port.to_string());
    let child = Command::new("psql")
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", &host, "-p", &port])
        .args(["-U", &database.user, "-d", &database.dbname])
        .env("PGCONNECT_TIMEOUT", "2")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { die("run psql") };
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(statements.as_bytes()));
    written.is_some_and(|written| written.is_ok())
        && child.wait().is_ok_and(|status| status.success())
}
