//! ZooKeeper, whose servers bind what they advertise.

use faultbed_tests::lab::Lab;

use crate::life::{self, Database, said};

const FILE: &str = "[lab]\nhosts = 3\n\n[cluster.zk]\nblueprint = \"zookeeper\"\n";

/// Debian's jars; without any logging that would be in the answers.
const JARS: &str = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-nop.jar";

struct ZooKeeper;

fn ask(at: &str, words: &[&str]) -> Option<String> {
    let quick = ["-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", JARS];
    let main = ["org.apache.zookeeper.ZooKeeperMain", "-server", at];
    let client = [&quick[..], &main].concat();
    said("java", &[&client[..], words].concat())
}

impl Database for ZooKeeper {
    fn role(&self) -> &'static str {
        "zk"
    }

    fn port(&self) -> &'static str {
        "client"
    }

    fn question(&self) -> &'static [u8] {
        b"srvr"
    }

    fn put(&self, at: &str, key: &str) -> bool {
        let path = format!("/{key}");
        ask(at, &["create", &path, "1"]).is_some() || self.has(at, key)
    }

    fn has(&self, at: &str, key: &str) -> bool {
        let answer = ask(at, &["get", &format!("/{key}")]).unwrap_or_default();
        answer.lines().last() == Some("1")
    }
}

pub(crate) fn lives_through_the_list() {
    life::live(&Lab::up("zookeeper", FILE), &ZooKeeper);
}
