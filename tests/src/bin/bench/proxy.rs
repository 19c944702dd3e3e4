//! Our proxy as the process that it is in a lab, with orders written by the benchmark.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use faultbed_common::{
    fault::HealPolicy,
    generation::{FaultRevision, Generation},
    link::Link,
    name::{FaultName, NodeName},
    proxy_spec::{LinkEffect, LinkFault, Listener, ProxyFile, ProxySpec},
};

use super::load::{
    client::Route,
    server::{DOORS, door},
};

/// The node behind every door.
pub(crate) const NODE: &str = "n-1";

/// Its orders, which the benchmark changes while it runs.
#[derive(Debug)]
pub(crate) struct Orders {
    dir: PathBuf,
    pub(crate) file: ProxyFile,
}

impl Orders {
    /// Orders to forward at these listeners, with nothing else. `diallers` are c-1, c-2 and so on.
    ///
    /// # Errors
    /// Where the boot cannot be told.
    pub(crate) fn new(
        dir: &Path,
        listeners: Vec<Listener>,
        diallers: &[IpAddr],
    ) -> anyhow::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let named = diallers.iter().enumerate();
        let diallers: anyhow::Result<BTreeMap<IpAddr, NodeName>> =
            named.map(|(at, ip)| Ok((*ip, format!("c-{}", at + 1).parse()?))).collect();
        let spec = ProxySpec {
            generation: Generation(1),
            listeners,
            diallers: diallers?,
            ..ProxySpec::default()
        };
        let file = ProxyFile { version: 1, lab: None, boot_id, spec, deadlines: BTreeMap::new() };
        Ok(Self { dir: dir.to_owned(), file })
    }

    /// Writes the file; it is not in force yet.
    ///
    /// # Errors
    /// As the file system says.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let draft = self.dir.join("proxy.json.new");
        fs::write(&draft, serde_json::to_vec(&self.file)?)?;
        Ok(fs::rename(draft, self.dir.join("proxy.json"))?)
    }

    /// The command that starts the proxy with these orders.
    ///
    /// # Errors
    /// As the file system says.
    pub(crate) fn command(&self, program: &Path) -> anyhow::Result<Command> {
        self.write()?;
        let mut command = Command::new(program);
        command.arg("proxy").arg(&self.dir).arg(self.socket());
        Ok(command)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("control")
    }

    /// Sets the one fault there is: an effect on links; none heals it.
    ///
    /// # Errors
    /// Where a link cannot be understood.
    pub(crate) fn set(
        &mut self,
        effect: Option<&LinkEffect>,
        links: &[Link],
    ) -> anyhow::Result<()> {
        self.file.spec.generation = self.file.spec.generation.next();
        let generation = self.file.spec.generation;
        let name: FaultName = "f".parse()?;
        self.file.spec.faults.clear();
        if let Some(effect) = effect {
            let fault = LinkFault {
                revision: FaultRevision(generation.0),
                lasts: None,
                effect: effect.clone(),
                grade: None,
                heal: HealPolicy::Resume,
                links: BTreeSet::from_iter(links.iter().cloned()),
                seed: 1,
                probability: None,
                canary: false,
                fast_heal: false,
            };
            self.file.spec.faults.insert(name, fault);
        }
        self.write()
    }

    /// Has the proxy obey the file; returns when it is in force on every connection.
    ///
    /// # Errors
    /// Where the proxy does not say so.
    pub(crate) fn apply(&self) -> anyhow::Result<()> {
        let mut stream = UnixStream::connect(self.socket()).context("reach proxy")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"{\"v\":1,\"op\":\"apply\"}\n")?;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply)?;
        let reply: serde_json::Value = serde_json::from_str(&reply)?;
        anyhow::ensure!(reply["ok"] == true, "apply: {reply}");
        Ok(())
    }
}

/// A listener of a node.
///
/// # Errors
/// Where the node's name is none.
pub(crate) fn listener(
    node: &str,
    number: usize,
    listen: SocketAddr,
    upstream: SocketAddr,
) -> anyhow::Result<Listener> {
    Ok(Listener { node: node.parse()?, port: format!("p{number}").parse()?, listen, upstream })
}

/// The command of a proxy without faults, as one of the targets.
///
/// # Errors
/// As the file system says.
pub(crate) fn command(program: &Path, dir: &Path, route: &Route) -> anyhow::Result<Command> {
    let listeners: anyhow::Result<Vec<_>> = (0..DOORS)
        .map(|number| listener(NODE, usize::from(number), route.door(number), door(number)))
        .collect();
    let sources: Vec<IpAddr> = route.sources.iter().map(|ip| IpAddr::V4(*ip)).collect();
    Orders::new(dir, listeners?, &sources)?.command(program)
}
