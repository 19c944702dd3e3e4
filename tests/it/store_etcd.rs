//! The same lab with a real etcd as its store, edited by hand with `etcdctl put`.

mod secured;

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use faultbed_common::status::FaultState;
use faultbed_tests::{
    lab::{ETCD, Lab, PATIENCE},
    wait::wait_for,
};

/// An etcd of the user's own, on free loopback ports.
pub(crate) struct Etcd {
    child: Child,
    pub(crate) url: String,
}

impl Etcd {
    pub(crate) fn start(home: &Path) -> Self {
        let port = || {
            let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
            free.local_addr().expect("address").port()
        };
        let (client, peer) =
            (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(home.join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("run etcd (deploy/setup.sh installs it)");
        let etcd = Self { child, url: client };
        wait_for("etcd serves", PATIENCE, || etcd.ctl(&["get", "ready"]).map(|_| ()));
        etcd
    }

    fn ctl(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.url))
            .args(args)
            .output()
            .expect("run etcdctl");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn hand_edits_are_obeyed_or_reported_and_refused_and_the_last_good_version_survives() {
    let lab = Lab::new("byhand");
    let etcd = Etcd::start(lab.home());
    let file = lab.write("lab.toml", ETCD).display().to_string();
    lab.ok(&["up", "-d", &file, "--store", &format!("etcd={}", etcd.url)]);
    lab.wait_ready();
    let key = |kind: &str, name: &str| format!("/faultbed/v1/byhand/spec/{kind}/{name}");

    let fault = r#"{"between": ["kv-1", "kv-2"], "rtt": "20ms", "for": "none"}"#;
    etcd.ctl(&["put", &key("fault", "wan"), fault]).expect("put");
    lab.wait("a good hand edit is obeyed", |status| {
        let wan = status.faults.iter().find(|f| f.name.as_str() == "wan")?;
        (wan.state == FaultState::Active && wan.in_force).then_some(())
    });

    etcd.ctl(&["put", &key("cluster", "kv"), r#"{"blueprint": "etdc"}"#]).expect("put");
    let says_so = |status: &faultbed_common::status::Status| {
        let text = status.stuck.join("\n");
        (text.contains("spec/cluster/kv") && text.contains("refused")).then_some(())
    };
    lab.wait("a wrong one is refused and reported", says_so);
    assert!(lab.ok(&["events"]).contains("refused"));

    faultbed_tests::lab::signal(
        lab.daemon_pid("coordinator/coordinator.pid"),
        rustix::process::Signal::KILL,
    );
    lab.ok(&["up", "-d"]);
    lab.wait("the last good version is in force after a restart", |status| {
        let ready = status.clusters.iter().any(|c| c.blueprint == "etcd")
            && status.nodes.iter().all(|n| n.observed == faultbed_common::report::NodeState::Ready);
        (ready && says_so(status).is_some()).then_some(())
    });

    // What no coordinator wrote cannot be read: the lab goes on, and is not called converged.
    let broken = "/faultbed/v1/byhand/accepted/fault/broken";
    etcd.ctl(&["put", broken, "{nope"]).expect("put");
    lab.wait("unreadable keys are told", |status| {
        let told = status.pending.iter().any(|sentence| sentence.contains(broken));
        (told && !status.converged).then_some(())
    });
    etcd.ctl(&["del", broken]).expect("del");
    lab.wait("and forgotten", |status| {
        (!status.pending.iter().any(|sentence| sentence.contains(broken))).then_some(())
    });

    etcd.ctl(&["del", &key("fault", "wan")]).expect("del");
    lab.wait("deleting by hand heals", |status| {
        let wan = status.faults.iter().find(|f| f.name.as_str() == "wan");
        wan.is_none_or(|f| f.state != FaultState::Active).then_some(())
    });
    lab.ok(&["down", "--wipe"]);
}
