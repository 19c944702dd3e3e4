//! `host join --ssh` with a real sshd, whose machine is this one with directories of its own.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use faultbed_common::status::HostState;
use faultbed_tests::{bins, lab::PATIENCE, wait::wait_for};
use serde_json::Value;
use tempfile::TempDir;

use super::site::{Site, User};

/// What makes the directories that a host writes to those of the machine, and becomes its sshd. `D` is its
/// directory. An ordinary user is root for as long as that takes, and nobody's root afterwards.
const BOOT: &str = r#"
set -eu
mkdir -p "$D/home" "$D/run" "$D/lib" "$D/etc" "$D/bin"
if [ "$AS" = 0 ]; then
    for file in passwd group hosts ld.so.cache; do
        [ ! -e "/etc/$file" ] || cp "/etc/$file" "$D/etc/"
    done
    # Others would say that root's account is locked, which sshd heeds.
    printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files\n' > "$D/etc/nsswitch.conf"
    mount --bind "$D/etc" /etc
    mount --bind "$D/lib" /var/lib
    mount --bind "$D/bin" /usr/local/bin
fi
mount --bind "$D/home" "$HOME"
mount -t tmpfs tmpfs /run
mkdir -m 755 /run/sshd
set -- /usr/sbin/sshd -D -e -f "$D/sshd_config"
[ "$AS" = 0 ] || set -- unshare --user --map-user="$AS" --map-group="$GROUP" -- "$@"
exec "$@"
"#;

/// A machine that can be reached by ssh alone. Everything of it ends with it.
struct Machine {
    dir: TempDir,
    sshd: Child,
}

impl Machine {
    fn boot() -> Self {
        let dir = tempfile::Builder::new().prefix("fbm").tempdir().expect("make directory");
        let at = |name: &str| dir.path().join(name);
        let shown = dir.path().display();
        for key in ["host_key", "user_key"] {
            ran(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(at(key)));
        }
        fs::copy(at("user_key.pub"), at("authorized_keys")).expect("copy key");
        let port = TcpListener::bind("127.0.0.1:0").expect("find a port");
        let port = port.local_addr().expect("its address").port();
        let host_key = fs::read_to_string(at("host_key.pub")).expect("read key");
        write(&at("known_hosts"), &format!("[127.0.0.1]:{port} {host_key}"));
        write(
            &at("sshd_config"),
            &format!(
                "ListenAddress 127.0.0.1:{port}\nHostKey {shown}/host_key\nPidFile none\n\
                 AuthorizedKeysFile {shown}/authorized_keys\nStrictModes no\nUsePAM no\n\
                 PermitRootLogin prohibit-password\nPasswordAuthentication no\n\
                 SetEnv XDG_RUNTIME_DIR={shown}/run\nSubsystem sftp internal-sftp\n"
            ),
        );
        write(
            &at("ssh_config"),
            &format!(
                "Host m1\nHostName 127.0.0.1\nPort {port}\nIdentityFile {shown}/user_key\n\
                 IdentitiesOnly yes\nUserKnownHostsFile {shown}/known_hosts\n\
                 StrictHostKeyChecking yes\n"
            ),
        );
        for program in ["ssh", "scp"] {
            let text = format!("#!/bin/sh\nexec {program} -F {shown}/ssh_config \"$@\"\n");
            write(&at(program), &text);
            fs::set_permissions(at(program), fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        let mut sshd = Command::new("unshare");
        sshd.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        if !uid.is_root() {
            sshd.args(["--user", "--map-root-user"]);
        }
        let sshd = sshd
            .args(["sh", "-c", BOOT])
            .env("D", dir.path())
            .env("AS", uid.as_raw().to_string())
            .env("GROUP", gid.as_raw().to_string())
            .stdin(Stdio::null())
            .stderr(fs::File::create(at("sshd.log")).expect("make log"))
            .spawn()
            .expect("run unshare");
        let machine = Self { dir, sshd };
        wait_for("its sshd answers", PATIENCE, || {
            TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|_| machine.log())
        });
        machine
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("sshd.log")).unwrap_or_default()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where its agent is to be: of root for the machine, of others in their home.
    fn of_agent(&self, name: &str) -> PathBuf {
        match rustix::process::getuid().is_root() {
            true => self.at("lib/faultbed").join(name),
            false => self.at("home/.local/state/faultbed/agent").join(name),
        }
    }

    fn agent_pid(&self) -> String {
        fs::read_to_string(self.of_agent("agent.pid")).expect("its agent's pid")
    }

    /// Brings it in as `h1`, with this agent, and gives what was said of it.
    fn join(&self, user: &User<'_>, agent: &Path) -> Value {
        let [file, ssh, scp] =
            ["hosts", "ssh", "scp"].map(|name| self.at(name).display().to_string());
        write(&self.at("hosts"), "m1  name=h1  address=127.77.247.1  label=dc=east\n");
        let agent = agent.display().to_string();
        let words = ["host", "join", "--hosts-file", &file, "--agent", &agent, "-o", "json"];
        let ran = user.run(&[&words[..], &["--ssh-program", &ssh, "--scp-program", &scp]].concat());
        assert_eq!(ran.code, 0, "{}\n{}\n{}", ran.stdout, ran.stderr, self.log());
        let said: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        said[0].clone()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It is the parent of the first process of the machine, with which all others end.
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("write file");
}

fn ran(command: &mut Command) {
    let ran = command.output().expect("run: deploy/setup.sh test installs it");
    assert!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn a_machine_is_brought_in_over_ssh_and_a_repeat_says_what_it_changed() {
    let site = Site::start("overssh", &[]);
    let admin = site.admin();
    let machine = Machine::boot();
    let agent = bins::path("faultbed-agent");

    let first = machine.join(&admin, &agent);
    assert_eq!((&first["at"], &first["host"]), (&"m1".into(), &"h1".into()), "{first}");
    assert_eq!((&first["did"], &first["changed"]), (&"joined".into(), &true.into()), "{first}");
    assert!(first["agent"].to_string().contains("installed"), "{first}");
    assert!(first["unit"].is_null(), "nothing of it is run by systemd: {first}");
    let checks: Vec<&str> = first["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .filter_map(|c| c["what"].as_str())
        .collect();
    assert!(checks.contains(&"kernel") && checks.contains(&"disk"), "{checks:?}");
    wait_for("the host is up", PATIENCE, || {
        let status = admin.status();
        let host = status.hosts.iter().find(|host| host.name.as_str() == "h1");
        let is_up = host.is_some_and(|h| h.state == HostState::Up && h.labels["dc"] == "east");
        is_up.then_some(()).ok_or_else(|| format!("{:?}", status.hosts))
    });
    let pid = machine.agent_pid();

    let again = machine.join(&admin, &agent);
    assert_eq!((&again["did"], &again["changed"]), (&"unchanged".into(), &false.into()), "{again}");
    assert!(again["agent"].to_string().contains("unchanged"), "{again}");
    assert_eq!(again["checks"].as_array().map(Vec::len), Some(checks.len()));
    assert_eq!(machine.agent_pid(), pid);

    // Another build: the same process becomes it.
    let next = machine.at("agent-next");
    let mut bytes = fs::read(&agent).expect("read agent");
    bytes.push(b'\n');
    fs::write(&next, bytes).expect("write agent");
    let newer = machine.join(&admin, &next);
    assert_eq!((&newer["did"], &newer["changed"]), (&"reloaded".into(), &true.into()), "{newer}");
    assert!(newer["agent"].to_string().contains("replaced"), "{newer}");
    assert_eq!(machine.agent_pid(), pid);
    wait_for("it goes on as the new program", PATIENCE, || {
        let log = fs::read_to_string(machine.of_agent("agent.log")).unwrap_or_default();
        (log.matches("session begun").count() == 2).then_some(()).ok_or(log)
    });
    assert_eq!(machine.join(&admin, &next)["did"], "unchanged");
}
