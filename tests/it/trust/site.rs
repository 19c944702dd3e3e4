//! A coordinator that serves other machines, hosts that joined it, and its users.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use faultbed_common::status::Status;
use faultbed_proto::v1::{Document, trust_client::TrustClient};
use faultbed_tests::{
    bins,
    lab::{PATIENCE, Ran},
    wait::wait_for,
};
use faultbed_trust::{certificate::Facts, credentials::Credentials};
use tempfile::TempDir;
use tonic::transport::Channel;

/// A lab whose coordinator was started by itself, on loopback addresses, with TLS.
pub(super) struct Site {
    home: TempDir,
    lab: String,
    coordinators: BTreeMap<String, Child>,
}

/// Somebody with a command line of their own.
pub(super) struct User<'a> {
    site: &'a Site,
    name: String,
}

impl Site {
    /// A lab with one coordinator on any port.
    pub(super) fn start(lab: &str, flags: &[&str]) -> Self {
        let mut site = Self::new(lab);
        let flags: Vec<&str> = ["--listen", "127.0.0.1:0"].iter().chain(flags).copied().collect();
        site.coordinator("coordinator", &flags);
        site
    }

    /// A lab without a coordinator.
    pub(super) fn new(lab: &str) -> Self {
        let home = tempfile::Builder::new().prefix("fb").tempdir().expect("make directory");
        Self { home, lab: lab.to_owned(), coordinators: BTreeMap::new() }
    }

    /// The directory of all of it.
    pub(super) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Starts a coordinator, for the first time or again, and waits until it serves.
    pub(super) fn coordinator(&mut self, name: &str, flags: &[&str]) {
        let log = File::create(self.home.path().join(format!("{name}.log"))).expect("make log");
        let child = Command::new(bins::path("faultbed-coordinator"))
            .args(["--lab", &self.lab, "--dir"])
            .arg(self.home.path().join(format!("{name}-dir")))
            .arg("--runtime")
            .arg(self.home.path().join(format!("{name}-run")))
            .args(flags)
            .stdin(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .expect("start coordinator");
        self.coordinators.insert(name.to_owned(), child);
        wait_for("the coordinator is ready", PATIENCE, || {
            let log = self.read(&format!("{name}.log"));
            log.contains("coordinator ready").then_some(()).ok_or(log)
        });
    }

    /// Kills a coordinator.
    pub(super) fn kill(&mut self, name: &str) {
        let mut child = self.coordinators.remove(name).expect("it runs");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.home.path().join(name)).unwrap_or_default()
    }

    /// The user of the coordinator's machine.
    pub(super) fn admin(&self) -> User<'_> {
        self.admin_of("coordinator")
    }

    /// The same where there are several.
    pub(super) fn admin_of(&self, coordinator: &str) -> User<'_> {
        let user = self.user("admin");
        let socket = self.home.path().join(format!("{coordinator}-run/api.sock"));
        user.ok(&["context", "add", &format!("unix:{}", socket.display())]);
        user
    }

    /// Somebody who has no context yet.
    pub(super) fn user(&self, name: &str) -> User<'_> {
        User { site: self, name: name.to_owned() }
    }

    fn join_command(&self, host: &str, token: &str) -> Command {
        let mut command = Command::new(bins::path("faultbed-agent"));
        command.args(["join", token, "--dir"]).arg(self.host_dir(host));
        command.arg("--runtime").arg(self.home.path().join(format!("{host}r")));
        command.stdin(Stdio::null());
        command
    }

    pub(super) fn join(&self, host: &str, token: &str, address: &str) {
        let output = self
            .join_command(host, token)
            .args(["--address", address])
            .output()
            .expect("run faultbed-agent");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{}", self.read("coordinator.log"));
    }

    pub(super) fn join_refused(&self, host: &str, token: &str) -> String {
        let output = self.join_command(host, token).output().expect("run faultbed-agent");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub(super) fn host_dir(&self, host: &str) -> PathBuf {
        self.home.path().join(host)
    }

    /// What a host shows.
    pub(super) fn credentials(&self, host: &str) -> Credentials {
        Credentials::read(&self.host_dir(host).join("identity")).expect("read credentials")
    }

    pub(super) fn certificate(&self, host: &str) -> Facts {
        self.credentials(host).facts().expect("a certificate of a lab")
    }

    /// Where the coordinator serves other machines.
    pub(super) fn url(&self) -> String {
        let log = self.read("coordinator.log");
        let address =
            log.split("listening=").nth(1).and_then(|rest| rest.split_whitespace().next());
        format!("https://{}", address.expect("it says where it listens"))
    }

    /// Whether a host is answered on this connection.
    pub(super) async fn is_answered(&self, channel: Channel) -> bool {
        TrustClient::new(channel).present(Document::default()).await.is_ok()
    }

    /// Ends a host's agent; its identity stays.
    pub(super) fn stop_agent(&self, host: &str) {
        let mut down = Command::new(bins::path("faultbed-agent"));
        let output = down.args(["down", "--dir"]).arg(self.host_dir(host)).output();
        assert!(output.expect("run faultbed-agent down").status.success());
    }

    pub(super) fn agent_log(&self, host: &str) -> String {
        self.read(&format!("{host}/agent.log"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.home.path()).into_iter().flatten().flatten() {
            if entry.path().join("agent.pid").exists() {
                let mut down = Command::new(bins::path("faultbed-agent"));
                let down = down.args(["down", "--dir"]).arg(entry.path());
                let output = down.output().expect("run faultbed-agent down");
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(output.status.success() || std::thread::panicking(), "{said}");
            }
        }
        for child in self.coordinators.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl User<'_> {
    fn home(&self) -> PathBuf {
        self.site.home.path().join(format!("user-{}", self.name))
    }

    /// What this user shows.
    pub(super) fn credentials(&self) -> Credentials {
        let labs = self.home().join("state/faultbed/labs");
        Credentials::read(&labs.join(&self.site.lab).join("identity")).expect("read credentials")
    }

    pub(super) fn run(&self, args: &[&str]) -> Ran {
        let home = self.home();
        std::fs::create_dir_all(home.join("run")).expect("make directory");
        let output = Command::new(bins::path("faultbed"))
            .args(args)
            .env("XDG_STATE_HOME", home.join("state"))
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_RUNTIME_DIR", home.join("run"))
            .env("FAULTBED_LAB", &self.site.lab)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .expect("run faultbed");
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(super) fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        let log = self.site.read("coordinator.log");
        assert_eq!(ran.code, 0, "faultbed {args:?}: {}\n{}\n{log}", ran.stdout, ran.stderr);
        ran.stdout
    }

    pub(super) fn status(&self) -> Status {
        serde_json::from_str(&self.ok(&["status", "-o", "json"])).expect("status is JSON")
    }
}
