//! What is installed on machines: systemd takes the units without a word, and packages run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use faultbed_common::check::Check;
use faultbed_tests::bins;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Whatever systemd has to say of a unit, with `over` put over it. Its programs are those of this
/// build, since it says which are not there.
fn verify(unit: &str, over: Option<&str>) -> String {
    let dir = tempfile::tempdir().expect("make directory");
    let text = fs::read_to_string(deploy().join("systemd").join(unit)).expect("read unit");
    let beside = bins::path("faultbed-agent");
    let beside = beside.parent().expect("its directory").display();
    let path = dir.path().join(unit);
    fs::write(&path, text.replace("/usr/bin/", &format!("{beside}/"))).expect("write unit");
    if let Some(over) = over {
        let text = fs::read_to_string(deploy().join("systemd").join(over)).expect("read drop-in");
        let into = dir.path().join(format!("{unit}.d"));
        fs::create_dir(&into).expect("make directory");
        fs::write(into.join(over), text).expect("write drop-in");
    }
    let ran = Command::new("systemd-analyze").arg("verify").arg(&path).output();
    let ran = ran.expect("run systemd-analyze: deploy/setup.sh test installs it");
    let said = [ran.stdout, ran.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(ran.status.success() || !said.is_empty(), "systemd-analyze: {}", ran.status);
    said
}

#[test]
fn systemd_takes_the_units_without_a_word() {
    assert_eq!(verify("faultbed-coordinator.service", None), "");
    assert_eq!(verify("faultbed-agent.service", None), "");
    assert_eq!(verify("faultbed-agent.service", Some("unprivileged.conf")), "");
}

#[test]
fn systemd_would_say_what_is_wrong_in_a_unit() {
    let dir = tempfile::tempdir().expect("make directory");
    let path = dir.path().join("wrong.service");
    fs::write(&path, "[Service]\nExecStart=/bin/true\nKillMood=process\n").expect("write unit");
    let ran = Command::new("systemd-analyze").arg("verify").arg(&path).output().expect("run");
    assert!(String::from_utf8_lossy(&ran.stderr).contains("KillMood"));
}

/// Runs a program to its end, and gives what it printed.
fn ran(command: &mut Command) -> String {
    let ran = command.output().expect("run");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

/// `dpkg` in a root of its own, where nothing of this machine counts or changes.
fn dpkg(root: &Path, words: &[&str], package: &Path) -> String {
    let mut command = Command::new("dpkg");
    command.arg(format!("--root={}", root.display()));
    // The C library is there, though not in that root.
    command.args(["--force-script-chrootless", "--force-depends", "--force-not-root"]);
    command.args(["--force-confold", "--log=/dev/null"]).args(words).arg(package);
    ran(command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))
}

#[test]
fn a_package_is_installed_kept_over_an_upgrade_removed_and_purged() {
    let dir = tempfile::tempdir().expect("make directory");
    let root = dir.path().join("root");
    let admin = root.join("var/lib/dpkg");
    for part in ["updates", "info", "triggers"] {
        fs::create_dir_all(admin.join(part)).expect("make directory");
    }
    fs::write(admin.join("status"), "").expect("write status");
    let beside = bins::path("faultbed-agent");
    let out = dir.path().join("out");
    let packed = ran(Command::new(deploy().join("package.sh"))
        .arg("--bins")
        .arg(beside.parent().expect("its directory"))
        .arg("--out")
        .arg(&out)
        .env("PACKAGE_COMPRESS", "none"));
    let deb = PathBuf::from(packed.lines().next().expect("the package's path"));
    dpkg(&root, &["-i"], &deb);

    let program = |name: &str| Command::new(root.join("usr/bin").join(name));
    let said = ran(program("faultbed").arg("version"));
    assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    assert!(ran(program("faultbed-coordinator").arg("--help")).contains("--store"));
    let checks = program("faultbed-agent").args(["doctor", "-o", "json"]).output().expect("run");
    let checks: Vec<Check> = serde_json::from_slice(&checks.stdout).expect("checks");
    assert!(checks.len() > 10);
    for unit in ["faultbed-agent", "faultbed-coordinator"] {
        assert!(root.join(format!("lib/systemd/system/{unit}.service")).exists());
    }

    // What an administrator wrote survives an upgrade and a removal, and a purge takes all of it.
    let settings = root.join("etc/faultbed/coordinator.conf");
    fs::write(&settings, "FAULTBED_LAB=mine\n").expect("write settings");
    let data = root.join("var/lib/faultbed/nodes/kv-1/data");
    fs::create_dir_all(&data).expect("make directory");
    dpkg(&root, &["-i"], &deb);
    assert_eq!(fs::read_to_string(&settings).expect("settings"), "FAULTBED_LAB=mine\n");
    dpkg(&root, &["-r"], Path::new("faultbed"));
    assert!(settings.exists() && data.exists());
    assert!(!root.join("usr/bin/faultbed-agent").exists());
    dpkg(&root, &["-P"], Path::new("faultbed"));
    assert!(!settings.exists() && !root.join("var/lib/faultbed").exists());
}
