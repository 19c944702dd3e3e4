//! etcd, as Debian has it.

use faultbed_tests::lab::{ETCD, Lab};

use crate::life::{self, Database, said};

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
