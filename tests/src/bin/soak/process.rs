//! The proxy process, its orders, and what it uses.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use faultbed_common::{
    fault::HealPolicy,
    generation::FaultRevision,
    name::FaultName,
    proxy_spec::{Cut, Deadline, LinkEffect, LinkFault, ProxyFile},
};
use faultbed_tests::bins;
use rustix::time::{ClockId, clock_gettime};

use super::traffic::Traffic;

const PATIENCE: Duration = Duration::from_secs(10);
/// The fault that cuts one node off for long.
const LONG: &str = "long";

/// What the process uses.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    pub(crate) rss: u64,
    /// What it has written to: not the pages of its program, which come in as code first runs.
    pub(crate) own: u64,
    pub(crate) descriptors: u64,
    pub(crate) connections: u64,
}

impl Figures {
    /// The larger of each.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            rss: self.rss.max(other.rss),
            own: self.own.max(other.own),
            descriptors: self.descriptors.max(other.descriptors),
            connections: self.connections.max(other.connections),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rss, own, descriptors, connections } = self;
        let mb = |bytes: &u64| format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10);
        write!(f, "{connections} connections, {descriptors} descriptors, ")?;
        write!(f, "RSS {}, {} of it its own", mb(rss), mb(own))
    }
}

/// The process and its file.
#[derive(Debug)]
pub(crate) struct Proxy {
    dir: tempfile::TempDir,
    child: Child,
    file: ProxyFile,
}

impl Proxy {
    /// Starts it between the nodes of the traffic.
    ///
    /// # Errors
    /// Where it does not come up.
    pub(crate) fn start(traffic: &Traffic) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let mut file = ProxyFile { version: 1, boot_id, ..ProxyFile::default() };
        traffic.describe(&mut file.spec)?;
        fs::write(dir.path().join("proxy.json"), serde_json::to_vec(&file)?)?;
        let child = Command::new(bins::path("faultbed-agent"))
            .arg("proxy")
            .arg(dir.path())
            .arg(dir.path().join("s"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("start the proxy")?;
        let mut proxy = Self { dir, child, file };
        let end = Instant::now() + PATIENCE;
        while proxy.ask("report").is_err() {
            anyhow::ensure!(Instant::now() < end, "the proxy does not come up");
            std::thread::sleep(Duration::from_millis(5));
        }
        proxy.apply()?;
        Ok(proxy)
    }

    /// Puts a fault into the file, with an end of its own where `lasts` says so.
    ///
    /// # Errors
    /// Where a name cannot be understood.
    pub(crate) fn inject(
        &mut self,
        name: &str,
        mut fault: LinkFault,
        lasts: Option<Duration>,
    ) -> anyhow::Result<()> {
        let name: FaultName = name.parse()?;
        let spec = &mut self.file.spec;
        fault.revision = FaultRevision(spec.generation.0 + 1);
        let deadline = lasts.map(|time| Deadline {
            revision: fault.revision,
            boottime_ns: Some(boottime_ns() + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
        });
        self.file.deadlines.remove(&name);
        self.file.deadlines.extend(deadline.map(|deadline| (name.clone(), deadline)));
        spec.faults.insert(name, fault);
        Ok(())
    }

    /// Takes a fault out of the file.
    ///
    /// # Errors
    /// Where the name cannot be understood.
    pub(crate) fn heal(&mut self, name: &str) -> anyhow::Result<()> {
        self.file.spec.faults.remove(&name.parse::<FaultName>()?);
        Ok(())
    }

    /// Cuts off the node that dials in vain.
    ///
    /// # Errors
    /// Where a name cannot be understood.
    pub(crate) fn cut_off(&mut self) -> anyhow::Result<()> {
        let effect = LinkEffect { cut: Some(Cut::Packets), ..LinkEffect::default() };
        let fault = link_fault(effect, &["off>y", "y>off"], HealPolicy::Resume)?;
        self.inject(LONG, fault, None)
    }

    /// Heals that.
    pub(crate) fn join_again(&mut self) {
        self.file.spec.faults.retain(|name, _| name.as_str() != LONG);
    }

    /// Takes all faults out of the file.
    pub(crate) fn heal_all(&mut self) {
        self.file.spec.faults.clear();
    }

    /// Makes the file true; says how long that took.
    ///
    /// # Errors
    /// Where it is not in force.
    pub(crate) fn apply(&mut self) -> anyhow::Result<Duration> {
        self.file.spec.generation = self.file.spec.generation.next();
        let (path, draft) = (self.dir.path().join("proxy.json"), self.dir.path().join("draft"));
        fs::write(&draft, serde_json::to_vec(&self.file)?)?;
        fs::rename(draft, path)?;
        let began = Instant::now();
        self.ask("apply")?;
        Ok(began.elapsed())
    }

    /// What it uses now.
    ///
    /// # Errors
    /// Where it has died.
    pub(crate) fn figures(&self) -> anyhow::Result<Figures> {
        let reply = self.ask("report")?;
        let connections = reply["report"]["connections"].as_u64().context("count connections")?;
        let proc = format!("/proc/{}", self.child.id());
        let text = fs::read_to_string(format!("{proc}/smaps_rollup"))?;
        let bytes = |key: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
        };
        Ok(Figures {
            rss: bytes("Rss:").context("read the memory map")?,
            own: bytes("Anonymous:").context("read the memory map")?,
            descriptors: fs::read_dir(format!("{proc}/fd"))?.count() as u64,
            connections,
        })
    }

    fn ask(&self, op: &str) -> anyhow::Result<serde_json::Value> {
        let mut stream = UnixStream::connect(self.dir.path().join("s")).context("reach proxy")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "{{\"v\":1,\"op\":\"{op}\"}}")?;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply).context("hear from the proxy")?;
        let reply: serde_json::Value = serde_json::from_str(&reply)?;
        anyhow::ensure!(reply["ok"] == true, "{op}: {reply}");
        Ok(reply)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _dead_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A fault without an end.
///
/// # Errors
/// Where a link cannot be understood.
pub(crate) fn link_fault(
    effect: LinkEffect,
    links: &[&str],
    heal: HealPolicy,
) -> anyhow::Result<LinkFault> {
    let links: Result<BTreeSet<_>, _> = links.iter().map(|link| link.parse()).collect();
    Ok(LinkFault {
        revision: FaultRevision(1),
        lasts: None,
        effect,
        grade: None,
        heal,
        links: links?,
        seed: 7,
        probability: None,
        canary: false,
        fast_heal: false,
    })
}

fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
