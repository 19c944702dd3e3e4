//! `faultbed doctor`: whether this machine can run a lab, what it can do to it, and what to change.
//!
//! What concerns any host of a lab the agent's own program says, so that there is one set of checks;
//! here is added what only the command line needs.

use std::{path::Path, process::Command};

use faultbed_common::check::{Check, CheckVerdict, tally};

use crate::cli::{
    Session, claim,
    failure::{Exit, Failure, Outcome},
    output::{self, Format, OutputArgs},
    paths,
    table::{Tone, tone},
    up::daemons,
};

/// Runs `doctor`.
///
/// # Errors
/// Standard output cannot be written. Something that fails is exit 1.
pub fn run(session: &Session, args: OutputArgs) -> Outcome {
    let checks = checks(session);
    match args.output {
        Format::Json => output::json(&checks)?,
        Format::Table => output::data(listing(&checks))?,
    }
    let Some(first) = checks.iter().find(|check| check.verdict == CheckVerdict::Fail) else {
        return Ok(Exit::DONE);
    };
    let next = first.advice.clone().or_else(|| first.as_root.clone()).unwrap_or_default();
    Err(Failure::no(format!("a lab cannot run well on this machine: {}", first.what)).next(next))
}

/// A line for each check with what there is to say below it, and how many there were of each kind.
#[must_use]
pub fn listing(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.what.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for check in checks {
        let mood = match check.verdict {
            CheckVerdict::Ok => Tone::Good,
            CheckVerdict::Warn => Tone::Warn,
            CheckVerdict::Fail => Tone::Bad,
        };
        let word = tone(format!("{:4}", check.verdict.word()), mood);
        let what = tone(format!("{:width$}", check.what), Tone::Strong);
        lines.push(format!("{word}  {what}  {}", check.found).trim_end().to_owned());
        let details = check.details();
        lines.extend(details.iter().map(|detail| format!("{:width$}        {detail}", "")));
    }
    lines.push(String::new());
    lines.push(tally(checks));
    lines.join("\n")
}

fn checks(session: &Session) -> Vec<Check> {
    let mut checks = match daemons::Programs::find() {
        Ok(programs) => of_agent(&programs.agent, &session.places.state),
        Err(failure) => {
            let missing = failure.message.unwrap_or_default();
            vec![
                Check::fail("daemons", missing, "`faultbed up` has nothing to start")
                    .advise(&failure.next.join("; ")),
            ]
        }
    };
    checks.extend([runtime(session), claims(), etcd()]);
    checks
}

/// What the agent says of this machine.
fn of_agent(agent: &Path, dir: &Path) -> Vec<Check> {
    let shown = agent.display();
    let ran = Command::new(agent).args(["doctor", "-o", "json", "--dir"]).arg(dir).output();
    let failed = |why: String| {
        let costs = "nobody knows what this machine can do";
        vec![
            Check::fail("daemons", why, costs)
                .advise("all programs of one version belong into one directory"),
        ]
    };
    let out = match ran {
        Ok(ran) => ran,
        Err(error) => return failed(format!("run {shown} doctor: {error}")),
    };
    match serde_json::from_slice::<Vec<Check>>(&out.stdout) {
        Ok(checks) => {
            let mut all = vec![Check::ok("daemons", shown)];
            all.extend(checks);
            all
        }
        Err(error) => {
            let said = String::from_utf8_lossy(&out.stderr);
            let said = said.lines().next_back().unwrap_or_default();
            failed(format!("read what {shown} doctor says: {error} {said}").trim_end().to_owned())
        }
    }
}

fn runtime(session: &Session) -> Check {
    Check::ok("runtime directory", session.places.runtime.display())
}

fn claims() -> Check {
    let dir = Path::new(claim::CLAIMS_DIR);
    match claim::Claims::lock(dir) {
        Ok(claims) => Check::ok("lab addresses", format!("{} of 254 taken", claims.count())),
        Err(failure) => {
            let why = failure.message.unwrap_or_default();
            Check::fail("lab addresses", why, "no local lab can choose its addresses")
                .advise(&failure.next.join("; "))
        }
    }
}

fn etcd() -> Check {
    match paths::in_path("etcd") {
        Some(path) => Check::ok("etcd", path.display()),
        None => Check::warn("etcd", "not in PATH", "no etcd clusters, and not the tour")
            .root("apt-get install etcd-server etcd-client"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn script(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faultbed-agent");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    #[test]
    fn what_the_agent_says_is_shown_with_what_it_costs_and_what_root_adds() {
        let check = Check::warn("clock", "not kept", "times cannot be compared").root("chronyd");
        let json = serde_json::to_string(&[check]).unwrap();
        // It also ends with 1 where something fails, which is no failure to say so.
        let (_dir, agent) = script(&format!("echo '{json}'; exit 1"));
        let checks = of_agent(&agent, Path::new("/"));
        let text = anstream::adapter::strip_str(&listing(&checks)).to_string();
        assert!(text.contains("warn  clock    not kept\n"), "{text}");
        assert!(text.contains("costs: times cannot be compared\n"), "{text}");
        assert!(text.ends_with("as root: chronyd\n\n1 ok, 1 warning"), "{text:?}");
    }

    #[test]
    fn an_agent_that_does_not_know_the_word_is_a_failure_with_a_reason() {
        let (_dir, agent) = script("echo 'unrecognized subcommand' >&2; exit 2");
        let checks = of_agent(&agent, Path::new("/"));
        assert_eq!(checks[0].verdict, CheckVerdict::Fail);
        assert!(checks[0].found.contains("unrecognized subcommand"), "{checks:?}");
    }
}
