//! What it costs a node that its connections name it, and a proxy to ask another host who dialled.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use faultbed_common::proxy_spec::{HostDesk, LinkEffect, Listener};
use faultbed_tests::bins;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use serde_json::json;

use super::{
    proxy::Orders,
    table::{Bound, Row, Table},
};

/// Rounds of all ways to connect, one after the other.
const ROUNDS: usize = 5;
/// Connects of one way in a round.
const CONNECTS: usize = 2000;
/// Connections that somebody is asked about.
const ASKED: usize = 200;
/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Addresses of this machine that stand for two hosts, and a node's own.
const HOST: [u8; 4] = [127, 0, 0, 9];
const OTHER: [u8; 4] = [127, 77, 9, 2];
const PRIVATE: [u8; 4] = [127, 128, 128, 5];
/// Where the two hosts answer.
const DESKS: [u16; 2] = [7476, 7477];
/// The argument with which this program is the node that connects.
pub(crate) const DIAL: &str = "identity-dial";

/// The node: connects, and writes how long each took, in nanoseconds.
///
/// # Errors
/// Where a connect fails.
pub(crate) fn dial(arguments: &[String]) -> anyhow::Result<()> {
    let [to, path] = arguments else { anyhow::bail!("usage: bench {DIAL} ADDRESS FILE") };
    let to: SocketAddr = to.parse()?;
    let mut samples = Vec::with_capacity(CONNECTS);
    for _ in 0..CONNECTS {
        let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        // A reset leaves no connection behind that the next one would have to wait for.
        sockopt::set_socket_linger(&fd, Some(Duration::ZERO))?;
        let began = Instant::now();
        connect(&fd, &to)?;
        samples.push(u64::try_from(began.elapsed().as_nanos())?);
    }
    let draft = format!("{path}.new");
    fs::write(&draft, serde_json::to_vec(&samples)?)?;
    Ok(fs::rename(draft, path)?)
}

/// Measures.
///
/// # Errors
/// Where something of it cannot be started.
pub(crate) fn run() -> anyhow::Result<Table> {
    let mut rows = connects()?;
    rows.extend(questions()?);
    let notes = vec!["over loopback; the node connects and resets, one after the other".to_owned()];
    Ok(Table { bench: "identity", rows, notes })
}

/// Connection set-up of a node: bare, named on this machine, named by ports, and not to a proxy.
fn connects() -> anyhow::Result<Vec<Row>> {
    let listener = TcpListener::bind((IpAddr::from(OTHER), 0))?;
    let to = listener.local_addr()?;
    thread::spawn(move || while listener.accept().is_ok() {});
    let far = |dials: &[SocketAddr]| {
        json!({ "address": IpAddr::from(HOST), "block": { "first": 20000, "count": 128 },
            "dials": dials })
    };
    let ways = [
        ("bare", None),
        ("shim, elsewhere", Some(json!({ "dials": [] }))),
        ("shim, this host", Some(json!({ "dials": [to] }))),
        ("shim, other host", Some(json!({ "dials": [], "far": far(&[to]) }))),
    ];
    let mut medians: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (name, orders) in &ways {
            let mut samples = connect_all(to, orders.as_ref())?;
            samples.sort_unstable();
            #[expect(clippy::cast_precision_loss, reason = "some microseconds")]
            let median = samples[samples.len() / 2] as f64 / 1000.0;
            medians.entry(name).or_default().push(median);
        }
    }
    let bare = &medians["bare"];
    let row = |(name, _): &(&str, _)| {
        let own = &medians[name];
        let row = Row::new("connect", *name, "us", own.clone());
        if *name == "bare" { row } else { row.ratio("bare", own, bare) }
    };
    Ok(ways.iter().map(row).collect())
}

fn connect_all(to: SocketAddr, orders: Option<&serde_json::Value>) -> anyhow::Result<Vec<u64>> {
    let dir = tempfile::tempdir()?;
    let (run, out) = (dir.path().join("run"), dir.path().join("samples"));
    let program = std::env::current_exe()?;
    let arguments = [DIAL.to_owned(), to.to_string(), out.display().to_string()];
    let mut node = match orders {
        None => Command::new(program).args(arguments).spawn()?,
        Some(orders) => {
            fs::create_dir(&run)?;
            let launch = json!({
                "version": 1, "lab": "bench", "node": "kv-1", "incarnation": 1,
                "program": program, "args": arguments, "env": {}, "cwd": dir.path(),
                "private": IpAddr::from(PRIVATE), "log_bytes_max": 1 << 20, "log_files": 2,
            });
            fs::write(run.join("launch.json"), launch.to_string())?;
            fs::write(run.join("orders.json"), orders.to_string())?;
            let lock = File::create(run.join("lock"))?;
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
            let mut starter = Command::new(bins::path("faultbed-agent"));
            starter.arg("shim").arg(&run).stdin(lock).stdout(Stdio::null());
            starter.spawn()?
        }
    };
    let samples = eventually(|| fs::read(&out).ok()).context("wait for the node");
    node.wait()?;
    Ok(serde_json::from_slice(&samples?)?)
}

/// A connection through a proxy with a rule, where its port names the dialler, and where the proxy
/// of another host is asked.
fn questions() -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    let server = TcpListener::bind((IpAddr::from(PRIVATE), 0))?;
    let upstream = server.local_addr()?;
    thread::spawn(move || {
        while let Ok((mut stream, _)) = server.accept() {
            let mut byte = [0];
            let _gone = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
        }
    });
    let listen = SocketAddr::new(OTHER.into(), upstream.port());
    let listener = Listener { node: "n-1".parse()?, port: "client".parse()?, listen, upstream };
    let authority = Authority::new()?;
    let _proxies = [
        start(dir.path(), &authority, 0, Vec::new())?,
        start(dir.path(), &authority, 1, vec![listener])?,
    ];
    let desk = SocketAddr::new(HOST.into(), DESKS[0]);
    eventually(|| TcpStream::connect(desk).ok()).context("wait for the other proxy")?;
    eventually(|| echo(listen, HOST).ok()).context("wait for an answer")?;
    let sample = |from| -> anyhow::Result<Vec<f64>> {
        (0..ASKED).map(|_| Ok(echo(listen, from)?.as_secs_f64() * 1e6)).collect()
    };
    let (named, asked) = (sample(PRIVATE)?, sample(HOST)?);
    Ok(vec![
        Row::new("first byte with a rule", "named", "us", named.clone()),
        Row::new("first byte with a rule", "asked", "us", asked.clone())
            .ratio("named", &asked, &named)
            .bound(Bound::AtMost(100_000.0)),
    ])
}

/// From the connect to the first byte that came back.
fn echo(to: SocketAddr, from: [u8; 4]) -> anyhow::Result<Duration> {
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&fd, &SocketAddr::new(from.into(), 0))?;
    let began = Instant::now();
    connect(&fd, &to)?;
    let mut stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(began.elapsed())
}

/// A proxy that ends with the benchmark.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// Starts the proxy of one of the two hosts.
fn start(
    dir: &Path,
    authority: &Authority,
    which: usize,
    listeners: Vec<Listener>,
) -> anyhow::Result<Proxy> {
    let addresses = [HOST, OTHER].map(IpAddr::from);
    let names = ["h1", "h2"];
    let agent = dir.join(names[which]);
    fs::create_dir_all(agent.join("proxy"))?;
    authority.equip(&agent.join("identity"), names[which])?;
    let mut orders = Orders::new(&agent.join("proxy"), listeners, &[PRIVATE.into()])?;
    orders.file.lab = Some("bench".parse()?);
    orders.file.spec.desk = Some(SocketAddr::new(addresses[which], DESKS[which]));
    let other = 1 - which;
    let desk = HostDesk { host: names[other].parse()?, port: Some(DESKS[other]) };
    orders.file.spec.hosts.insert(addresses[other], desk);
    // A rule that lets everything pass, so that it must be known who dials.
    let effect = LinkEffect { accept_delay_us: 1, ..LinkEffect::default() };
    orders.set(Some(&effect), &["nobody>n-1".parse()?])?;
    let mut command = orders.command(&bins::path("faultbed-agent"))?;
    Ok(Proxy(command.stderr(Stdio::null()).spawn().context("start proxy")?))
}

/// Signs the certificates of both.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> anyhow::Result<Self> {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?))
    }

    fn equip(&self, dir: &Path, host: &str) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        let uri = format!("faultbed://bench/host/{host}");
        parameters.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        fs::create_dir_all(dir)?;
        fs::write(dir.join("key.pem"), key.serialize_pem())?;
        fs::write(dir.join("ca.pem"), self.0.pem())?;
        Ok(fs::write(dir.join("cert.pem"), parameters.signed_by(&key, &self.0)?.pem())?)
    }
}

/// Waits until there is something.
fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < end, "not in time");
        thread::sleep(LOOK_EVERY);
    }
}
