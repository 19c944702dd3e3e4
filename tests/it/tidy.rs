//! The house rules and the arrows of ARCHITECTURE.md, as tests.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Most lines of a file. Giants of the past may shrink, not grow: they are listed with their size.
const LINES_MAX: usize = 500;
const GIANTS: [(&str, usize); 0] = [];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every source file of the workspace: path from the root, and text.
fn sources() -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(dir).expect("read directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(root, &path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).expect("below root").display().to_string();
                found.insert(name, std::fs::read_to_string(&path).expect("read source"));
            }
        }
    }
    let mut found = BTreeMap::new();
    for member in ["proto", "common", "trust", "agent", "coordinator", "tests"] {
        walk(&root(), &root().join(member), &mut found);
    }
    found
}

/// Fails with every place where one of `words` stands in the code of a file that `applies` picks.
fn forbid(why: &str, words: &[&str], applies: impl Fn(&str) -> bool) {
    let mut places = Vec::new();
    for (name, text) in sources().iter().filter(|(name, _)| applies(name)) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(word) = words.iter().find(|word| code.contains(*word)) {
                places.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    assert!(places.is_empty(), "{why}:\n{}", places.join("\n"));
}

fn is_test(name: &str) -> bool {
    name.starts_with("tests/") || name.contains("/tests/") || name.ends_with("/tests.rs")
}

#[test]
fn every_file_says_first_what_it_is_for() {
    for (name, text) in sources() {
        assert!(text.starts_with("//! "), "{name}: the first line must be `//! what it is for`");
    }
}

#[test]
fn files_stay_small() {
    let giants: BTreeMap<_, _> = GIANTS.into();
    for (name, text) in sources() {
        let lines = text.lines().count();
        let max = giants.get(name.as_str()).copied().unwrap_or(LINES_MAX);
        assert!(lines <= max, "{name} has {lines} lines of {max}: is there a second idea inside?");
    }
}

#[test]
fn common_is_pure() {
    forbid(
        "common takes time, files and dice as arguments",
        &[
            "std::fs",
            "SystemTime",
            "Instant::now",
            "std::env",
            "std::process",
            "TcpStream",
            "rand::",
        ],
        |name| name.starts_with("common/src") && !is_test(name),
    );
}

#[test]
fn decisions_are_pure() {
    forbid(
        "decisions take time and dice as arguments, and do nothing",
        &["std::fs", "SystemTime", "Instant::now", "tokio", "rand::", "async fn"],
        |name| {
            (name.starts_with("coordinator/src/decide") || name.ends_with("reconcile/plan.rs"))
                && !is_test(name)
        },
    );
}

#[test]
fn only_the_etcd_back_end_knows_etcd() {
    forbid("the store trait is the only way to etcd", &["etcd_client"], |name| {
        !name.starts_with("coordinator/src/store/etcd") && name != "tests/it/tidy.rs"
    });
}

#[test]
fn the_command_line_sees_only_itself() {
    let sources = sources();
    let cli = sources.iter().filter(|(name, _)| {
        (name.starts_with("coordinator/src/cli") || name.ends_with("bin/faultbed.rs"))
            && !is_test(name)
    });
    for (name, text) in cli {
        for (number, line) in text.lines().enumerate() {
            let foreign = line.split("crate::").nth(1).filter(|rest| !rest.starts_with("cli"));
            assert!(foreign.is_none(), "{name}:{}: the command line speaks gRPC only", number + 1);
        }
    }
}

#[test]
fn nothing_is_left_open() {
    forbid(
        "finish it, or say in an issue what is missing",
        &["todo!(", "unimplemented!(", "#[ignore", "dbg!("],
        |name| name != "tests/it/tidy.rs",
    );
}

#[test]
fn agent_and_coordinator_never_see_each_other() {
    for (one, other) in [("agent", "faultbed-coordinator"), ("coordinator", "faultbed-agent")] {
        let manifest = std::fs::read_to_string(root().join(one).join("Cargo.toml")).expect("read");
        assert!(!manifest.contains(other), "{one} must not depend on {other}");
    }
}

#[test]
fn banned_crates_stay_out() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).expect("read Cargo.lock");
    for banned in ["openssl-sys", "native-tls", "aws-lc-rs", "aws-lc-sys", "async-std"] {
        assert!(
            !lock.contains(&format!("name = \"{banned}\"")),
            "{banned} is banned: see deny.toml"
        );
    }
}

#[test]
fn tests_wait_for_predicates_not_for_time() {
    forbid(
        "poll a predicate with a deadline instead",
        &["thread::sleep(", "time::sleep("],
        |name| name.starts_with("tests/it/") && name != "tests/it/tidy.rs",
    );
}
