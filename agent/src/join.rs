//! `faultbed-agent join`: from a one-time token to an agent that the lab sees.
//!
//! The key is made here and stays here. The secret of the token is sent only to who shows the CA that
//! the token names, which the handshake checks.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::IpAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use faultbed_common::{
    name::HostName,
    session::IDENTITY_PORT,
    trust::{Identity, Issued, Presence, Who},
};
use faultbed_proto::v1::{Document, trust_client::TrustClient};
use faultbed_trust::{
    ask,
    credentials::{self, Credentials, write_private},
    dial::Dialer,
    key::Key,
};

use crate::{
    agent,
    allow::Allow,
    args::JoinArgs,
    reload::Program,
    session::Coordinator,
    settings::{FILE, IDENTITY, Settings},
};

/// The key of a join that is under way, beside the one that the host has.
const JOINING: &str = "joining.pem";

/// How long a coordinator may take to say whether it sees the host.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// How long the lab may take to see the host.
const CONNECTED_WITHIN: Duration = Duration::from_secs(30);

/// How often it is asked whether it does.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Where root's agent keeps everything.
const ROOT_DIR: &str = "/var/lib/faultbed";
/// Where root's agent has its sockets.
const ROOT_RUNTIME: &str = "/run/faultbed";
/// Where people look for its settings.
const ROOT_CONFIG: &str = "/etc/faultbed/agent.toml";

/// Where the unit may be, and what it is called.
const UNIT_DIRS: [&str; 3] =
    ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
const UNIT: &str = "faultbed-agent.service";

/// There only where systemd runs this machine.
const SYSTEMD_RUNS: &str = "/run/systemd/system";

/// Joins, and returns when the lab has the host; in the foreground when the agent ends.
///
/// # Errors
/// The token does not let in, nobody of the lab can be reached, or the agent does not start.
pub fn run(args: &JoinArgs) -> anyhow::Result<()> {
    let (dir, runtime) = places(args)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir.join(IDENTITY))
        .with_context(|| format!("make {}", dir.join(IDENTITY).display()))?;
    let lock = agent::Lock::take(&dir)?;
    let key = key_of(&dir.join(IDENTITY))?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let bearer = ask::Bearer::Host { name: args.name.clone(), machine: machine_name() };
    let asked = ask::join(&args.token, &key, bearer);
    let (issued, own) = tokio.block_on(asked)?;
    let settings = settle(args, (dir, runtime), &issued, own)?;
    let identity = settings.identity_dir();
    let credentials =
        Credentials { key: key.pem(), certificate: issued.certificate, ca: issued.ca };
    // Key and certificate change together, so the old certificate goes first. Until now it was
    // good: a token that is refused costs a host nothing.
    let _ = fs::remove_file(identity.join(credentials::CERTIFICATE));
    credentials.write(&identity)?;
    let _ = fs::remove_file(identity.join(JOINING));
    let config = write_settings(&settings)?;
    drop(lock);
    let (lab, host) = (&settings.lab, &settings.host);
    if args.foreground {
        tracing::info!(%host, %lab, address = %settings.address, "joined");
        // A reload must not use the token a second time.
        let args = ["agent".into(), "--config".into(), config.into_os_string()];
        return agent::run(&settings, Program::own()?.with_args(args));
    }
    let log = start(&settings, &config)?;
    tokio.block_on(connected(&settings, &credentials)).with_context(|| {
        format!("wait until lab {lab} sees host {host}; what its agent says is in {log}")
    })?;
    tracing::info!("host {host} is in lab {lab}, reached at {}; its log: {log}", settings.address);
    Ok(())
}

/// The directories, said or usual.
fn places(args: &JoinArgs) -> anyhow::Result<(PathBuf, PathBuf)> {
    let is_root = rustix::process::getuid().is_root();
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let dir = match &args.dir {
        Some(dir) => std::path::absolute(dir)?,
        None if is_root => ROOT_DIR.into(),
        None => absolute("XDG_STATE_HOME")
            .or_else(|| Some(absolute("HOME")?.join(".local/state")))
            .context(
                "find a place for the agent: neither XDG_STATE_HOME nor HOME is set; say --dir",
            )?
            .join("faultbed/agent"),
    };
    let runtime = match &args.runtime {
        Some(runtime) => std::path::absolute(runtime)?,
        None if is_root => ROOT_RUNTIME.into(),
        None => {
            let usual =
                || PathBuf::from(format!("/tmp/faultbed-{}", rustix::process::getuid().as_raw()));
            absolute("XDG_RUNTIME_DIR").map_or_else(usual, |dir| dir.join("faultbed")).join("agent")
        }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&runtime)
        .with_context(|| format!("make {}", runtime.display()))?;
    Ok((dir, runtime))
}

/// The key to be certified. One that an earlier try left is used again: if only the answer was lost,
/// the same token still works for the same key.
fn key_of(identity: &Path) -> anyhow::Result<Key> {
    let path = identity.join(JOINING);
    if let Ok(pem) = fs::read_to_string(&path)
        && let Ok(key) = Key::read(&pem)
    {
        return Ok(key);
    }
    let key = Key::new()?;
    write_private(&path, &key.pem()).with_context(|| format!("write {}", path.display()))?;
    Ok(key)
}

/// What the agent will go by. Limits that the owner of the machine set before stay.
fn settle(
    args: &JoinArgs,
    (dir, runtime): (PathBuf, PathBuf),
    issued: &Issued,
    own: Option<IpAddr>,
) -> anyhow::Result<Settings> {
    let identity: Identity = issued.identity.parse().map_err(anyhow::Error::msg)?;
    let Who::Host(host) = identity.who else {
        bail!("this token is for a user: give it to `faultbed context add`");
    };
    let address = args.address.or(own).context("find out this host's address; say --address")?;
    if address.is_unspecified() {
        bail!("{address} is no address that other hosts can dial; say --address");
    }
    let read = |url: &String| url.parse::<Coordinator>().map_err(anyhow::Error::msg);
    // What the owner of the machine wrote there before stays.
    let allow = Allow::read(&dir.join(FILE)).map_err(anyhow::Error::msg)?;
    let before = Settings::read(&dir.join(FILE)).ok();
    let mut labels: BTreeMap<String, String> = args.labels.iter().cloned().collect();
    labels.extend(issued.labels.clone());
    Ok(Settings {
        lab: identity.lab,
        host,
        address,
        dir,
        runtime,
        coordinators: issued.urls.iter().map(read).collect::<anyhow::Result<_>>()?,
        labels,
        identity_port: IDENTITY_PORT,
        fetch_ca: before.and_then(|before| before.fetch_ca),
        allow,
    })
}

/// Writes `agent.toml`; root's is also where people look for it.
fn write_settings(settings: &Settings) -> anyhow::Result<PathBuf> {
    let path = settings.dir.join(FILE);
    write_private(&path, &settings.text()?).with_context(|| format!("write {}", path.display()))?;
    if settings.dir == Path::new(ROOT_DIR) && rustix::process::getuid().is_root() {
        let known = Path::new(ROOT_CONFIG);
        let linked = known.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            match fs::symlink_metadata(known) {
                // A file of somebody's own is kept beside it.
                Ok(meta) if !meta.is_symlink() => fs::rename(known, known.with_extension("old")),
                Ok(_) => fs::remove_file(known),
                Err(_) => Ok(()),
            }?;
            std::os::unix::fs::symlink(&path, known)
        });
        linked.with_context(|| format!("link {ROOT_CONFIG} to {}", path.display()))?;
    }
    Ok(path)
}

/// Starts the agent, as a service where there is one; says where its log is.
fn start(settings: &Settings, config: &Path) -> anyhow::Result<String> {
    let has_unit = UNIT_DIRS.iter().any(|dir| Path::new(dir).join(UNIT).exists());
    let is_usual = settings.dir == Path::new(ROOT_DIR) && rustix::process::getuid().is_root();
    if has_unit && is_usual && Path::new(SYSTEMD_RUNS).exists() {
        for verb in [["enable", UNIT], ["restart", UNIT]] {
            let done = Command::new("systemctl").args(verb).status().context("run systemctl")?;
            if !done.success() {
                bail!("systemctl {} failed; see journalctl -u {UNIT}", verb.join(" "));
            }
        }
        return Ok(format!("journalctl -u {UNIT}"));
    }
    let path = settings.dir.join("agent.log");
    let open = || File::options().create(true).append(true).open(&path);
    let log = open().with_context(|| format!("open {}", path.display()))?;
    Command::new(std::env::current_exe().context("find own program")?)
        .args(["agent", "--detached", "--config"])
        .arg(config)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start the agent")?;
    Ok(path.display().to_string())
}

/// Waits until some coordinator says that it holds this host's stream.
async fn connected(settings: &Settings, credentials: &Credentials) -> anyhow::Result<()> {
    let dialer = Dialer::new(credentials)?;
    let deadline = Instant::now() + CONNECTED_WITHIN;
    let mut last = anyhow::anyhow!("no coordinator answers");
    while Instant::now() < deadline {
        for coordinator in &settings.coordinators {
            let Coordinator::Https(url) = coordinator else { continue };
            match present(&dialer, url, deadline).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

async fn present(dialer: &Dialer, url: &str, deadline: Instant) -> anyhow::Result<()> {
    let channel = dialer.connect(url, |endpoint| endpoint).await?;
    let mut client = TrustClient::new(channel);
    while Instant::now() < deadline {
        let mut ask = tonic::Request::new(Document::default());
        ask.set_timeout(ANSWER_MAX);
        let answer = client.present(ask).await;
        let answer = answer.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        let presence: Presence = serde_json::from_str(&answer.get_ref().json)?;
        if presence.connected {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    bail!("the agent has not connected within {} s", CONNECTED_WITHIN.as_secs())
}

/// This machine's name, where it is one that a host can have.
fn machine_name() -> Option<HostName> {
    let uname = rustix::system::uname();
    let text = uname.nodename().to_string_lossy().to_ascii_lowercase();
    let short = text.split('.').next().unwrap_or_default().to_owned();
    let words = short.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    HostName::parse(&words.collect::<Vec<_>>().join("-")).ok()
}
