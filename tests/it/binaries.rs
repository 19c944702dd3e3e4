//! Programs of the command line's machine on a host that cannot read them: pushed, fetched, pinned.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use faultbed_common::status::{HostState, NodeStatus};
use faultbed_tests::{
    bins,
    lab::{Lab, PATIENCE},
    wait::wait_for,
};
use rustix::process::Signal;

/// A host that is no simulated one: its address is not of 127.0.0.0/8, though it is this machine.
const ADDRESS: &str = "::1";

/// One etcd on that host.
const FAR: &str = "
[cluster.far]
blueprint = \"etcd\"
[cluster.far.etcd]
count = 1
path = \"bin/etcd\"
hosts = [\"far\"]
";

/// The agent of the host `far`, with a directory of its own.
struct Far {
    dir: PathBuf,
    agent: Child,
}

impl Far {
    fn join(lab: &Lab) -> Self {
        let dir = lab.home().join("far");
        fs::create_dir_all(&dir).expect("make directory");
        let log = File::create(lab.home().join("far.log")).expect("make log");
        let name = lab.ok(&["context", "list", "-o", "json"]);
        assert!(name.contains("pushes"), "{name}");
        let agent = Command::new(bins::path("faultbed-agent"))
            .args(["agent", "--lab", "pushes", "--host", "far", "--address", ADDRESS])
            .arg("--dir")
            .arg(&dir)
            .arg("--runtime")
            .arg(lab.home().join("far-run"))
            .arg("--coordinator")
            .arg(format!("unix:{}", lab.runtime().join("api.sock").display()))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start agent");
        let far = Self { dir, agent };
        lab.wait("far is up", |status| {
            let host = status.hosts.iter().find(|host| host.name.as_str() == "far")?;
            (host.state == HostState::Up).then_some(())
        });
        far
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        faultbed_tests::lab::signal(self.agent.id().cast_signed(), Signal::TERM);
        self.agent.wait().expect("wait for the agent");
        let down = Command::new(bins::path("faultbed-agent"))
            .args(["down", "--wipe", "--dir"])
            .arg(&self.dir)
            .output()
            .expect("take the host down");
        assert!(down.status.success() || std::thread::panicking(), "{down:?}");
    }
}

/// The node once it is ready in another process than `before`.
fn ready(lab: &Lab, before: Option<u32>) -> NodeStatus {
    lab.wait("far-1 is ready and its program is known", |status| {
        let node = status.nodes.iter().find(|node| node.name.as_str() == "far-1")?;
        let is_known = node.binary.as_ref().is_some_and(|binary| !binary.sha256.is_empty());
        let is_ready = node.observed == faultbed_common::report::NodeState::Ready;
        (is_ready && is_known && node.pid != before).then(|| node.clone())
    })
}

fn sha256(node: &NodeStatus) -> String {
    node.binary.as_ref().expect("binary").sha256.clone()
}

fn sha256_of(path: &Path) -> String {
    let ran = Command::new("sha256sum").arg(path).output().expect("run sha256sum");
    String::from_utf8(ran.stdout).expect("text").split(' ').next().expect("hash").to_owned()
}

/// The same program with another hash.
fn build(lab: &Lab, mark: &str) -> PathBuf {
    let path = lab.home().join("bin/etcd");
    fs::create_dir_all(lab.home().join("bin")).expect("make directory");
    // A new file, as a compiler makes one: the old one may be running.
    fs::remove_file(&path).ok();
    fs::copy("/usr/bin/etcd", &path).expect("copy etcd (deploy/setup.sh installs it)");
    let mut bytes = fs::read(&path).expect("read");
    bytes.extend_from_slice(mark.as_bytes());
    fs::write(&path, bytes).expect("write");
    path
}

#[test]
fn a_program_is_pushed_once_and_its_node_runs_a_copy_of_its_own() {
    let lab = Lab::new("pushes");
    lab.ok(&["up", "-d", "--hosts", "1"]);
    let far = Far::join(&lab);
    let file = lab.write("far.toml", FAR).display().to_string();
    let source = build(&lab, "one");
    let one = sha256_of(&source);

    // Half of it came before; the push goes on there.
    let store = lab.dir().join("coordinator/content");
    fs::create_dir_all(&store).expect("make directory");
    let bytes = fs::read(&source).expect("read");
    fs::write(store.join(&one).with_extension("part"), &bytes[..bytes.len() / 2]).expect("write");
    let applied = lab.run(&["apply", "-f", &file]);
    assert_eq!(applied.code, 0, "{}\n{}", applied.stdout, applied.stderr);
    assert!(
        applied.stderr.contains("pushed") && applied.stderr.contains("of it before"),
        "{}",
        applied.stderr
    );
    let node = ready(&lab, None);
    let pid = node.pid.expect("pid");
    assert_eq!(sha256(&node), one);
    assert_eq!(node.binary.expect("binary").path, source.display().to_string());
    fs::remove_file(&source).expect("delete the source");
    let exe = fs::read_link(format!("/proc/{pid}/exe")).expect("exe");
    assert_eq!(exe, far.dir.join("bins").join(&one).join("etcd"));

    // A crash, and a restart by somebody without the file, run what was pushed.
    let restarted = lab.run(&["restart", "far-1"]);
    assert_eq!(restarted.code, 0, "{}\n{}", restarted.stdout, restarted.stderr);
    assert!(restarted.stdout.contains("pushed before"), "{}", restarted.stdout);
    let node = ready(&lab, Some(pid));
    assert_eq!(sha256(&node), one);

    // Another build at the same path: told, and taken by a restart.
    let two = sha256_of(&build(&lab, "two"));
    let pid = node.pid;
    for verb in ["plan", "apply"] {
        let told = lab.ok(&[verb, "-f", &file]);
        assert!(told.contains("has changed since far-1 took it"), "{verb}: {told}");
        assert!(told.contains(&one[..12]) && told.contains(&two[..12]), "{verb}: {told}");
    }
    assert_eq!(lab.node("far-1").pid, pid, "an apply restarts nobody for it");
    let restarted = lab.ok(&["restart", "far-1"]);
    assert!(restarted.contains(&one[..8]) && restarted.contains(&two[..8]), "{restarted}");
    assert_eq!(sha256(&ready(&lab, pid)), two);
    let again = lab.run(&["restart", "far-1"]);
    assert!(!again.stderr.contains("pushed"), "it is there: {}", again.stderr);
}

#[test]
fn a_changed_file_of_a_simulated_lab_is_told_by_plan_and_nothing_is_copied() {
    let lab = Lab::new("near");
    let source = build(&lab, "one");
    let text = FAR.replace("hosts = [\"far\"]\n", "");
    let file = lab.write("near.toml", &text).display().to_string();
    lab.ok(&["up", "-d", "--hosts", "1"]);
    let applied = lab.run(&["apply", "-f", &file]);
    assert!(applied.code == 0 && !applied.stderr.contains("pushed"), "{}", applied.stderr);
    let one = sha256(&ready(&lab, None));
    assert!(!lab.dir().join("coordinator/content").exists());
    assert!(!lab.ok(&["plan", "-f", &file]).contains("has changed"));
    let two = sha256_of(&build(&lab, "two"));
    let told = lab.ok(&["plan", "-f", &file]);
    assert!(told.contains(&one[..12]) && told.contains(&two[..12]), "{told}");
    assert!(told.contains(&source.display().to_string()), "{told}");
    let pid = lab.node("far-1").pid;
    lab.ok(&["restart", "far-1"]);
    let is_new = || match sha256(&ready(&lab, pid)) {
        sha256 if sha256 == two => Ok(()),
        other => Err(other),
    };
    wait_for("the restart took the new build", PATIENCE, is_new);
}
