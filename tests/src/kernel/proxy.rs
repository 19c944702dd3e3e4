//! Our side of a comparison: the real proxy process before the server, told what to do by its file.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use faultbed_common::{
    fault::{Grade, HealPolicy},
    generation::FaultRevision,
    link::Link,
    name::FaultName,
    proxy_spec::{LinkEffect, LinkFault, Listener, ProxyFile},
};
use tempfile::TempDir;

use crate::{bins, wait::wait_for};

/// How long the proxy may take to answer on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);
/// From the client to the server, and back.
pub(super) const OUT: &str = "dialler>server";
pub(super) const BACK: &str = "server>dialler";

/// A running proxy with one listener.
#[derive(Debug)]
pub(super) struct Proxy {
    dir: TempDir,
    child: Child,
    file: ProxyFile,
}

impl Proxy {
    /// Starts it where the calling thread is; it ends with that thread at the latest.
    pub(super) fn start(dialler: IpAddr, listen: SocketAddr, upstream: SocketAddr) -> Self {
        let dir = tempfile::Builder::new().prefix("fbk").tempdir().expect("make directory");
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("read boot id");
        let boot_id = boot_id.trim().to_owned();
        let mut file = ProxyFile { version: 1, boot_id, ..ProxyFile::default() };
        file.spec.diallers.insert(dialler, "dialler".parse().expect("a node"));
        file.spec.listeners.push(Listener {
            node: "server".parse().expect("a node"),
            port: "client".parse().expect("a port"),
            listen,
            upstream,
        });
        write(&dir, &file);
        let log = fs::File::create(dir.path().join("log")).expect("make log");
        // Whoever kills this process does not leave proxies behind, which lead sessions of their own.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(bins::path("faultbed-agent"))
            .arg("proxy")
            .arg(dir.path())
            .arg(dir.path().join("s"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share log"))
            .stderr(log)
            .spawn()
            .expect("run setpriv (package util-linux)");
        let mut proxy = Self { dir, child, file };
        let record = proxy.dir.path().join("proxy.pid.json");
        wait_for("the proxy serves", PATIENCE, || {
            let over = proxy.child.try_wait().ok().flatten();
            if record.exists() && over.is_none() { Ok(()) } else { Err(format!("{over:?}")) }
        });
        proxy
    }

    /// Puts effects in force, and ends all others. They are in force when this returns, with whether
    /// all of them are so in full on this machine.
    pub(super) fn set(&mut self, effects: &[(&str, LinkEffect)]) -> bool {
        let spec = &mut self.file.spec;
        spec.generation = spec.generation.next();
        spec.faults.clear();
        for (link, effect) in effects {
            let name: FaultName = format!("f{}", spec.faults.len()).parse().expect("a name");
            let link: Link = link.parse().expect("a link");
            // Where there are two grades, it must be the true one.
            let graded = effect.cut.is_some() || !effect.loss.is_empty();
            let fault = LinkFault {
                revision: FaultRevision(spec.generation.0),
                lasts: None,
                effect: effect.clone(),
                grade: graded.then_some(Grade::Packet),
                heal: HealPolicy::Resume,
                links: BTreeSet::from([link]),
                seed: 7,
                probability: None,
                canary: false,
                fast_heal: false,
            };
            spec.faults.insert(name, fault);
        }
        write(&self.dir, &self.file);
        let applied = self.ask("apply");
        let faults = &self.file.spec.faults;
        for name in faults.keys() {
            let fault = &applied["faults"][name.as_str()];
            assert_eq!(fault["active"], true, "the fault must act: {applied}\n{}", self.log());
        }
        faults.keys().all(|name| applied["faults"][name.as_str()]["why"].is_null())
    }

    /// Asks the proxy one thing.
    pub(super) fn ask(&self, op: &str) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.dir.path().join("s")).expect("reach the proxy");
        stream.set_read_timeout(Some(PATIENCE)).expect("set time-out");
        writeln!(stream, r#"{{"v":1,"op":"{op}"}}"#).expect("ask the proxy");
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply).expect("hear the proxy");
        let reply: serde_json::Value = serde_json::from_str(&reply).expect("understand the proxy");
        assert_eq!(reply["ok"], true, "{op}: {reply}");
        reply
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}

/// Writes the file as the agent does: whole, or not at all.
fn write(dir: &TempDir, file: &ProxyFile) {
    let path: PathBuf = dir.path().join("proxy.json");
    let draft = dir.path().join("proxy.json.new");
    fs::write(&draft, serde_json::to_vec(file).expect("write JSON")).expect("write the file");
    fs::rename(draft, path).expect("put the file in place");
}
