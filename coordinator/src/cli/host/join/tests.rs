//! Machines that are brought in through an ssh that only stands for one: it runs here, in a home
//! directory for each machine.

use std::{cell::Cell, os::unix::fs::PermissionsExt as _};

use tempfile::TempDir;

use super::*;

/// An agent that is a script: it joins by writing what the real one writes.
const AGENT: &str = r#"#!/bin/sh
case $1 in
join)
    [ "$2" = fb1.good ] || { echo "the token is used up" >&2; exit 2; }
    while [ $# -gt 0 ]; do
        case $1 in --name) name=$2 ;; --dir) dir=$2 ;; esac
        shift
    done
    mkdir -p "$dir"
    printf 'lab = "dev"\nhost = "%s"\n' "$name" > "$dir/agent.toml"
    sleep 1000 >/dev/null 2>&1 & echo $! > "$dir/agent.pid" ;;
doctor) echo '[{"what":"clock","verdict":"warn","found":"not kept","costs":"times"}]' ;;
esac
"#;

struct Machines {
    dir: TempDir,
    work: Work,
    tokens: Cell<usize>,
}

impl Machines {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let root = dir.path().display();
        fs::create_dir(at("bin")).unwrap();
        // Whoever logs in there is an ordinary user without sudo.
        script(&at("bin/id"), "echo 1000");
        script(&at("bin/sudo"), "exit 1");
        script(
            &at("ssh"),
            &format!(
                "while [ \"$1\" != -- ]; do shift; done\nhome={root}/$2\nshift 2\n\
                 [ -d \"$home\" ] || {{ echo 'ssh: no route to host' >&2; exit 255; }}\n\
                 cd \"$home\"\nHOME=$home PATH={root}/bin:$PATH exec \"$@\""
            ),
        );
        script(
            &at("scp"),
            &format!(
                "while [ \"$1\" != -- ]; do shift; done\nto=$3\n\
                 cp \"$2\" \"{root}/${{to%%:*}}/${{to#*:}}\""
            ),
        );
        let agent = Agent { path: at("agent"), sha256: String::new(), machine: here() };
        let ssh = Ssh { ssh: at("ssh").into(), scp: at("scp").into() };
        let known = BTreeSet::from(["h1".to_owned(), "h2".to_owned()]);
        let work = Work { ssh, agent, lab: "dev".to_owned(), known };
        let mut machines = Self { dir, work, tokens: Cell::new(0) };
        machines.build(AGENT);
        machines
    }

    /// Another build of the agent.
    fn build(&mut self, text: &str) {
        fs::write(&self.work.agent.path, text).unwrap();
        self.work.agent.sha256 = Sha256::of(text.as_bytes()).to_string();
    }

    fn add(&self, at: &str) {
        fs::create_dir(self.dir.path().join(at)).unwrap();
    }

    async fn join(&self, line: &str) -> Joined {
        let target = hosts_file::read("hosts", line).unwrap().remove(0);
        let token = |_: Target| {
            self.tokens.set(self.tokens.get() + 1);
            async { Ok("fb1.good".to_owned()) }
        };
        self.work.bring_in(target, &token).await
    }

    fn pid(&self, at: &str) -> PathBuf {
        self.dir.path().join(at).join(".local/state/faultbed/agent/agent.pid")
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for at in ["a@m1", "a@m2"] {
            let pid = fs::read_to_string(self.pid(at)).ok().and_then(|pid| pid.trim().parse().ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn here() -> &'static str {
    if cfg!(target_arch = "x86_64") { "x86_64" } else { "aarch64" }
}

#[tokio::test]
async fn a_machine_joins_once_and_then_is_unchanged_until_the_agent_is_another() {
    let mut machines = Machines::new();
    machines.add("a@m1");
    let first = machines.join("a@m1 name=h1").await;
    assert_eq!(first.error, None);
    assert_eq!((first.host.as_str(), first.did, first.changed), ("h1", "joined", true));
    assert!(matches!(first.agent, Some(Step::Installed(_))), "{first:?}");
    assert_eq!(first.checks[0].what, "clock");
    let again = machines.join("a@m1 name=h1").await;
    assert_eq!((again.did, again.changed, again.error), ("unchanged", false, None));
    assert_eq!(machines.tokens.get(), 1, "no token is made that nobody needs");
    machines.build(&format!("{AGENT}# the next one\n"));
    let next = machines.join("a@m1 name=h1").await;
    assert_eq!((next.did, next.changed), ("reloaded", true), "{next:?}");
    assert!(matches!(next.agent, Some(Step::Replaced(..))), "{next:?}");
    let text = anstream::adapter::strip_str(&listing(&[next])).to_string();
    assert!(text.contains("h1    a@m1  reloaded  replaced "), "{text}");
    assert!(text.contains("  warn  clock: not kept\n        costs: times"), "{text}");
}

#[tokio::test]
async fn a_machine_that_cannot_be_reached_fails_alone_with_the_words_of_ssh() {
    let machines = Machines::new();
    machines.add("a@m2");
    let gone = machines.join("a@gone name=h1").await;
    assert_eq!(gone.error.as_deref(), Some("ssh: no route to host"));
    let text = anstream::adapter::strip_str(&listing(&[gone])).to_string();
    assert!(text.contains("failed  ssh: no route to host"), "{text}");
    assert_eq!(machines.join("a@m2 name=h2").await.error, None);
}

#[tokio::test]
async fn what_the_agent_says_when_it_may_not_join_is_shown() {
    let machines = Machines::new();
    machines.add("a@m1");
    let target = Target::new("a@m1").unwrap();
    let used_up = |_: Target| async { Ok("fb1.old".to_owned()) };
    let joined = machines.work.bring_in(target, &used_up).await;
    assert_eq!(joined.error.as_deref(), Some("the token is used up"));
}

#[test]
fn programs_of_other_systems_are_no_agents() {
    let mut head = [0_u8; 20];
    head[..4].copy_from_slice(b"\x7fELF");
    head[18] = 62;
    assert_eq!(machine(&head), Some("x86_64"));
    head[18] = 8;
    assert_eq!(machine(&head), None);
    head[..4].copy_from_slice(b"MZ\0\0");
    assert_eq!(machine(&head), None);
}
