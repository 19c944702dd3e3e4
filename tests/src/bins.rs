//! The binaries under test, built once: `cargo test` alone would leave stale ones behind.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

/// How the names of variables begin that describe the package of a test.
const OF_PACKAGE: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut build = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    build.args(["build", "--quiet", "--bins"]);
    for package in ["faultbed-agent", "faultbed-coordinator", "faultbed-tests"] {
        build.args(["-p", package]);
    }
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    // What cargo says of a test to the test: to a build script that asks for it (ring's), all has changed.
    for (name, _) in std::env::vars_os() {
        if OF_PACKAGE.iter().any(|begin| name.to_string_lossy().starts_with(begin)) {
            build.env_remove(name);
        }
    }
    let own = std::env::current_exe().expect("find own binary");
    let directory = own.parent().expect("target directory");
    // Tests are in `deps`, one below; a benchmark is a binary like the others, already built.
    if directory.ends_with("deps") {
        assert!(build.status().expect("run cargo").success(), "cargo build failed");
        return directory.parent().unwrap_or(Path::new(".")).to_owned();
    }
    directory.to_owned()
});

/// The path of one of our binaries: `faultbed`, `faultbed-agent`, `faultbed-coordinator` or `mini-node`.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    DIRECTORY.join(name)
}
