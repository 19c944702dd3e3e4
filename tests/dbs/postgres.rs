//! PostgreSQL with streaming replicas, which are promoted by hand.

use std::{fs, os::unix::fs::PermissionsExt as _};

use faultbed_common::{name::NodeName, status::NodeStatus};
use faultbed_tests::{
    lab::{Lab, signal},
    wait::wait_for,
};

use crate::life::{self, Database, PATIENCE, host_port, said};

/// A commit waits for a standby, so nothing acknowledged is lost when that is promoted, and a primary
/// that is cut off acknowledges nothing.
const FILE: &str = "[lab]\nhosts = 3\n\n[cluster.db]\nblueprint = \"postgres\"\n\
    [cluster.db.postgres]\nargs = [\"--synchronous_standby_names=ANY 1 (*)\"]\n";

struct Postgres;

fn psql(at: &str, sql: &str) -> Option<String> {
    let (host, port) = host_port(at);
    said("psql", &["-XAtq", "-h", host, "-p", port, "-U", "postgres", "-d", "postgres", "-c", sql])
}

impl Database for Postgres {
    fn role(&self) -> &'static str {
        "db"
    }

    fn port(&self) -> &'static str {
        "sql"
    }

    /// Whether it speaks TLS: it answers with one letter.
    fn question(&self) -> &'static [u8] {
        &[0, 0, 0, 8, 4, 210, 22, 47]
    }

    /// One statement at a time: what is given together is one transaction.
    fn put(&self, at: &str, key: &str) -> bool {
        psql(at, "create table if not exists kv (key text primary key)").is_some()
            && psql(at, &format!("insert into kv values ('{key}') on conflict do nothing"))
                .is_some()
    }

    fn has(&self, at: &str, key: &str) -> bool {
        let found = psql(at, &format!("select count(*) from kv where key = '{key}'"));
        found.as_deref() == Some("1")
    }

    /// Of the standbys it must be the one that has received most: the others could not follow it.
    fn elect(&self, lab: &Lab, old: &NodeName) {
        let received = |node: &NodeStatus| {
            let at = node.endpoints["sql"].rsplit('/').next().unwrap_or_default();
            let bytes = psql(at, "select pg_last_wal_receive_lsn() - '0/0'");
            bytes.and_then(|bytes| bytes.parse::<u64>().ok())
        };
        let new = wait_for("a standby to promote", PATIENCE, || {
            let nodes = lab.status().nodes;
            let standbys = nodes.into_iter().filter(|node| node.name != *old);
            // One that is slow to answer may be the one that has most.
            let received: Option<Vec<_>> =
                standbys.map(|node| Some((received(&node)?, node.name))).collect();
            let best = received.and_then(|all| all.into_iter().max());
            best.map(|(_, name)| name).ok_or_else(|| "a standby does not answer".to_owned())
        });
        lab.ok(&["inject", "promote", "--on", new.as_str(), "--name", "new", "--for", "2m"]);
        lab.ok(&["heal", "new"]);
        lab.ok(&["delete", "fault", "new"]);
    }

    fn take_back(&self, lab: &Lab, old: &NodeName) {
        lab.ok(&["wipe", old.as_str()]);
    }
}

pub(crate) fn lives_through_the_list() {
    let lab = Lab::new("postgres");
    // Run by root, the server runs as its own user, who must get in.
    fs::set_permissions(lab.home(), fs::Permissions::from_mode(0o711)).expect("open the directory");
    let file = lab.write("lab.toml", FILE);
    lab.ok(&["up", "-d", &file.display().to_string()]);
    life::live(&lab, &Postgres);
}

pub(crate) fn a_directory_that_the_server_cannot_enter_is_named_before_anything_starts() {
    if !rustix::process::geteuid().is_root() {
        // Everybody else runs the server as himself, who can.
        return;
    }
    let lab = Lab::new("closed");
    fs::set_permissions(lab.home(), fs::Permissions::from_mode(0o700))
        .expect("close the directory");
    let file = lab.write("lab.toml", FILE);
    let ran = lab.run(&["up", "-d", &file.display().to_string(), "--wait=10s"]);
    assert_ne!(ran.code, 0);
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(said.contains("user postgres cannot enter") && said.contains("--dir"), "{said}");
}

pub(crate) fn standbys_follow_over_tls() {
    let lab = Lab::new("postgres-tls");
    fs::set_permissions(lab.home(), fs::Permissions::from_mode(0o711)).expect("open the directory");
    let file = lab.write(
        "lab.toml",
        "[lab]\nhosts = 2\n[cluster.db]\nblueprint = \"postgres\"\ntls = true\npostgres.count = 2\n",
    );
    lab.ok(&["up", "-d", &file.display().to_string()]);
    let primary = lab.wait_ready();
    let at = lab.node(primary.as_str()).endpoints["sql"].clone();
    let at = at.rsplit('/').next().unwrap_or_default();
    let asked = "select bool_and(ssl) from pg_stat_replication join pg_stat_ssl using (pid)";
    wait_for("the standby follows over TLS", PATIENCE, || match psql(at, asked).as_deref() {
        Some("t") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let (host, port) = host_port(at);
    let whole = format!("host={host} port={port} user=postgres dbname=postgres");

    // Nobody gets in without, on any node, and a client can verify which node it speaks to.
    let ca = lab.dir().join("hosts/h1/nodes/db-1/tls/ca.pem").display().to_string();
    for node in lab.status().nodes {
        for at in [&node.endpoints["sql"], &node.private["sql"]] {
            let (host, port) = host_port(at.rsplit('/').next().unwrap_or_default());
            let with = |mode: &str| {
                let to =
                    format!("host={host} port={port} user=postgres dbname=postgres sslmode={mode}");
                life::client(
                    "psql",
                    &["-XAtq", &format!("{to} sslrootcert={ca}"), "-c", "select 1"],
                )
            };
            let refused = String::from_utf8_lossy(&with("disable").stderr).into_owned();
            assert!(
                refused.contains("no pg_hba.conf entry") && refused.contains("no encryption"),
                "{refused}"
            );
            let verified = with("verify-full");
            assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
        }
    }

    // A checkpoint that stands still goes on when its time is up, with nobody left but the agent.
    let bounded = format!("{whole} options='-c statement_timeout=2s'");
    let checkpoint = || said("psql", &["-XAtq", &bounded, "-c", "checkpoint"]);
    wait_for("a checkpoint", PATIENCE, || checkpoint().ok_or_else(|| "not yet".to_owned()));
    let on = ["--on", primary.as_str(), "--for", "10s"];
    lab.ok(&[&["inject", "checkpoint-stall"], &on[..]].concat());
    signal(lab.daemon_pid("coordinator/coordinator.pid"), rustix::process::Signal::KILL);
    assert_eq!(checkpoint(), None, "it ended although it stands still");
    wait_for("a checkpoint", PATIENCE, || checkpoint().ok_or_else(|| "not yet".to_owned()));
    lab.ok(&["up", "-d"]);
}
