//! etcd, as Debian has it.

use std::{
    collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command,
};

use faultbed_common::{report::NodeState, status::NodeStatus};
use faultbed_tests::{
    lab::{ETCD, Lab, find, leader, signal, summary},
    wait::wait_for,
};

use crate::life::{self, Database, PATIENCE, no_bypass, ready, said};

struct Etcd;

impl Database for Etcd {
    fn role(&self) -> &'static str {
        "kv"
    }

    fn port(&self) -> &'static str {
        "client"
    }

    fn question(&self) -> &'static [u8] {
        b"GET /health HTTP/1.1\r\nHost: etcd\r\n\r\n"
    }

    fn put(&self, at: &str, key: &str) -> bool {
        let at = format!("--endpoints={at}");
        said("etcdctl", &[&at, "--command-timeout=3s", "put", key, "1"]).as_deref() == Some("OK")
    }

    fn has(&self, at: &str, key: &str) -> bool {
        let at = format!("--endpoints={at}");
        let args = [&at, "--command-timeout=3s", "get", "--print-value-only", key];
        said("etcdctl", &args).as_deref() == Some("1")
    }
}

pub(crate) fn lives_through_the_list() {
    life::live(&Lab::up("etcd", ETCD), &Etcd);
}

/// What a client reads of a server's certificate, told apart from all others by its number.
fn serial(dir: &Path, at: &str) -> Option<String> {
    let script = format!(
        "openssl s_client -connect {at} -CAfile ca.pem -cert cert.pem -key key.pem -verify_return_error \
         </dev/null 2>/dev/null | openssl x509 -noout -serial"
    );
    let mut command = Command::new("timeout");
    let output = command.args(["-s", "KILL", "5", "sh", "-c", &script]).current_dir(dir).output();
    let output = output.expect("run openssl");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    text.starts_with("serial=").then_some(text)
}

/// Peers and clients show each other certificates of the cluster's own CA, and nobody else gets in.
pub(crate) fn tls_between_members_and_clients() {
    let lab = Lab::up("etcd-tls", &format!("{ETCD}tls = true\n"));
    let first = lab.wait_ready();
    no_bypass(&lab);
    let status = lab.status();
    let at = |node: &str| find(&status, node).endpoints["client"].clone();
    assert!(at("kv-1").starts_with("https://"), "{}", at("kv-1"));
    let tls = |node: &str| {
        let host = &find(&status, node).host;
        lab.dir().join(format!("hosts/{host}/nodes/{node}/tls"))
    };
    let ctl = |node: &str, words: &[&str]| {
        let (dir, at) = (tls(node), format!("--endpoints={}", at(node)));
        let file = |flag: &str, name: &str| format!("--{flag}={}", dir.join(name).display());
        let files = [file("cacert", "ca.pem"), file("cert", "cert.pem"), file("key", "key.pem")];
        let mut args: Vec<&str> = files.iter().map(String::as_str).collect();
        args.extend([at.as_str(), "--command-timeout=3s"]);
        said("etcdctl", &[&args[..], words].concat())
    };
    wait_for("a write over TLS", PATIENCE, || {
        ctl("kv-2", &["put", "k", "1"]).ok_or_else(|| "not acknowledged".to_owned())
    });
    let plain = at("kv-2").replace("https://", "http://");
    let refused = said("etcdctl", &["--endpoints", &plain, "--command-timeout=2s", "get", "k"]);
    assert_eq!(refused, None, "who speaks no TLS gets nothing");

    // A restart brings another certificate of the same CA, which the others take.
    let address = at("kv-3").replace("https://", "");
    let ca = fs::read(tls("kv-3").join("ca.pem")).expect("read the CA");
    let shown = || {
        wait_for("a certificate that verifies", PATIENCE, || {
            serial(&tls("kv-1"), &address).ok_or_else(|| "none".to_owned())
        })
    };
    let before = shown();
    lab.ok(&["restart", "kv-3"]);
    ready(&lab);
    assert_ne!(before, shown());
    assert_eq!(fs::read(tls("kv-3").join("ca.pem")).expect("read the CA"), ca);

    // Faults act on it as on any other, and its leaders are told from outside.
    lab.ok(&["isolate", first.as_str(), "--name", "cut", "--for", "5m"]);
    lab.wait("another one leads", |status| leader(status).filter(|name| *name != first));
    lab.ok(&["heal", "cut", "--require", "confirmed"]);
    lab.ok(&["scale", "kv", "4"]);
    ready(&lab);
    assert_eq!(ctl("kv-1", &["get", "--print-value-only", "k"]).as_deref(), Some("1"));
    // Leadership goes where it is told to, over TLS too.
    let is_second = leader(&lab.status()).is_some_and(|name| name.as_str() == "kv-2");
    let heir = if is_second { "kv-3" } else { "kv-2" };
    lab.ok(&["inject", "move-leader", "--on", heir, "--for", "1m"]);
    lab.wait("it leads", |status| leader(status).filter(|name| name.as_str() == heir));
    let plain = lab.run(&["set", "kv", "tls=false"]);
    assert_ne!(plain.code, 0);
}

/// A disk that stands still holds back what must be kept, and goes on by itself when its time is up.
pub(crate) fn a_disk_stands_still_until_its_time_is_up() {
    let lab = Lab::up("etcd-disk", &format!("{ETCD}etcd.count = 1\n"));
    lab.wait_ready();
    let at = lab.node("kv-1").endpoints["client"].replace("http://", "");
    let put = |key: &str| {
        let at = format!("--endpoints={at}");
        said("etcdctl", &[&at, "--command-timeout=2s", "put", key, "1"])
    };
    wait_for("a write", PATIENCE, || put("before").ok_or_else(|| "not acknowledged".to_owned()));
    lab.ok(&["inject", "disk-stall", "--on", "kv-1", "--name", "disk", "--for", "8s"]);
    assert_eq!(put("during"), None, "nothing is acknowledged that is on no disk");
    // Nobody heals it: its shim keeps the time, whoever else is dead.
    signal(lab.daemon_pid("hosts/h1/agent.pid"), rustix::process::Signal::KILL);
    signal(lab.daemon_pid("coordinator/coordinator.pid"), rustix::process::Signal::KILL);
    wait_for("a write after it", PATIENCE, || put("after").ok_or_else(|| "not yet".to_owned()));
    lab.ok(&["up", "-d"]);
    lab.wait_ready();
}

/// One after another, those that follow first; it stops where a node does not come back, and the others stay.
fn upgrades_roll_and_stop(lab: &Lab) {
    let run = |lab: &Lab| {
        let hash = |node: NodeStatus| Some((node.name, node.binary?.sha256));
        lab.status().nodes.into_iter().filter_map(hash).collect::<BTreeMap<_, _>>()
    };
    let before = run(lab);
    let mut bytes = fs::read("/usr/bin/etcd").expect("read etcd");
    bytes.extend_from_slice(b"another build");
    fs::write(lab.home().join("etcd-next"), bytes).expect("write another etcd");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && echo etcd Version: 3.4.99 && exit\nexit 1\n";
    fs::write(lab.home().join("etcd-broken"), script).expect("write a broken etcd");
    for name in ["etcd-next", "etcd-broken"] {
        let all = fs::Permissions::from_mode(0o755);
        fs::set_permissions(lab.home().join(name), all).expect("make it executable");
    }
    lab.ok(&["upgrade", "kv", "--path", "./etcd-next", "--order", "followers-first"]);
    let leads = ready(lab);
    wait_for("all run the other build", PATIENCE, || {
        let now = run(lab);
        let is_other = now.iter().all(|(node, hash)| before[node] != *hash);
        if is_other { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let whole = run(lab);
    let broken = ["upgrade", "kv", "--path", "./etcd-broken", "--order", "followers-first"];
    assert_ne!(lab.run(&broken).code, 0);
    let mixed = lab.status();
    let other: Vec<_> =
        mixed.nodes.iter().filter(|node| node.observed != NodeState::Ready).collect();
    assert!(other.len() == 1 && other[0].name != leads, "{}", summary(&mixed));
    let after = run(lab);
    assert_eq!(after.iter().filter(|(node, hash)| whole[*node] == **hash).count(), 2, "{after:?}");
    lab.ok(&["upgrade", other[0].name.as_str(), "--path", "./etcd-next"]);
    ready(lab);
}

/// Data that is left on hosts is found by the same cluster again, and by no other of its name.
pub(crate) fn data_that_was_kept_is_met_by_the_same_cluster_only() {
    let lab = Lab::up("etcd-kept", ETCD);
    let first = lab.wait_ready();
    let put = lab.etcdctl(&[first.as_str()], &["put", "k", "1"]);
    assert_eq!(put.code, 0, "{}", put.stderr);
    upgrades_roll_and_stop(&lab);
    lab.ok(&["delete", "cluster", "kv"]);
    let refused: [(&[&str], &str); 2] = [
        (&["--etcd.count", "1"], "its members were other nodes"),
        (&["--blueprint", "etcd", "--etcd.hosts", "h1"], "its members were other nodes"),
    ];
    let start = ["start", "cluster", "--name", "kv"];
    for (words, why) in refused {
        let ran = lab.run(&[&start[..], words].concat());
        assert_ne!(ran.code, 0, "{words:?}");
        assert!(ran.stderr.contains(why) && ran.stderr.contains("--wipe"), "{}", ran.stderr);
    }
    lab.ok(&[&start[..], &["--etcd.count", "3"]].concat());
    ready(&lab);
    let get = lab.etcdctl(&["kv-1"], &["get", "--print-value-only", "k"]);
    assert_eq!(get.stdout.trim(), "1", "the same cluster goes on with its data");
    lab.ok(&["delete", "cluster", "kv"]);
    lab.ok(&["delete", "cluster", "kv", "--wipe"]);
    // A program of another system is known before anything of it runs.
    let redis = "/usr/bin/redis-server";
    let ran =
        lab.run(&[&start[..], &["--etcd.count", "1", "--etcd.path", redis, "--wait=20s"]].concat());
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.code, 1, "that nothing helps is known before the time is up: {said}");
    assert!(said.contains("no program of etcd") && said.contains("Redis server"), "{said}");
    assert_eq!(lab.node("kv-1").pid, None);
    lab.ok(&["set", "kv/etcd", "path=/usr/bin/etcd"]);
    ready(&lab);
    let empty = lab.etcdctl(&["kv-1"], &["get", "--print-value-only", "k"]);
    assert_eq!((empty.code, empty.stdout.trim()), (0, ""), "what was wiped is gone");
}
