//! PostgreSQL with streaming replicas, which are promoted by hand.

use std::{fs, os::unix::fs::PermissionsExt as _};

use faultbed_common::name::NodeName;
use faultbed_tests::lab::Lab;

use crate::life::{self, Database, host_port, said};

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

    fn elect(&self, lab: &Lab, new: &NodeName) {
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
