//! Redis with Sentinel.

use faultbed_tests::lab::Lab;

use crate::life::{self, Database, host_port, said};

const FILE: &str = "[lab]\nhosts = 3\n\n[cluster.r]\nblueprint = \"redis\"\n";

pub(crate) struct Redis;

impl Database for Redis {
    fn role(&self) -> &'static str {
        "r/redis"
    }

    fn port(&self) -> &'static str {
        "client"
    }

    fn question(&self) -> &'static [u8] {
        b"PING\r\n"
    }

    /// Redis acknowledges before its replicas have it; WAIT says how many do.
    fn put(&self, at: &str, key: &str) -> bool {
        let (host, port) = host_port(at);
        let script = format!("redis.call('set', '{key}', '1') return 1");
        let wrote = said("redis-cli", &["-h", host, "-p", port, "eval", &script, "0"]);
        if wrote.as_deref() != Some("1") {
            return false;
        }
        let held = said("redis-cli", &["-h", host, "-p", port, "wait", "1", "1000"]);
        held.and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count >= 1)
    }

    fn has(&self, at: &str, key: &str) -> bool {
        let (host, port) = host_port(at);
        said("redis-cli", &["-h", host, "-p", port, "get", key]).as_deref() == Some("1")
    }
}

pub(crate) fn sentinel_fails_over_and_nothing_that_replicas_have_is_lost() {
    let lab = Lab::up("redis", FILE);
    life::live(&lab, &Redis);
}
