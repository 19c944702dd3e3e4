//! `host join --ssh`: brings machines into the lab over the user's own ssh, again and again where wanted.

pub mod hosts_file;
pub mod remote;
mod ssh;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
    process::Stdio,
};

use faultbed_common::{
    check::{Check, CheckVerdict, tally},
    name::HostName,
    program::{Content, Sha256},
};
use futures::{StreamExt as _, stream};
use serde::Serialize;

use self::{
    hosts_file::{HOSTS_MAX, Target},
    remote::{Found, LOOK, Plan, Step, Then, UPLOAD, Wanted},
    ssh::Ssh,
};
use crate::cli::{
    Session,
    failure::{Exit, Failure, Outcome},
    output::{self, Format, OutputArgs},
    table::{self, Tone, cell, plain, tone},
    up::daemons,
};

/// Machines that are worked on at a time.
const AT_ONCE: usize = 8;

/// How long a token lives that is used at once.
const TOKEN_FOR: &str = "10m";

/// Arguments of `host join`.
#[derive(Debug, clap::Args)]
pub struct JoinArgs {
    /// Machines as your ssh knows them
    #[arg(long, num_args = 1.., value_name = "USER@HOST", required_unless_present = "hosts_file")]
    ssh: Vec<String>,
    /// Machines of a file: a line each, `user@host [name=h1] [address=A] [label=K=V]…`
    #[arg(long, value_name = "FILE")]
    hosts_file: Option<PathBuf>,
    /// The agent to install [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// What to run as ssh
    #[arg(long, env = "FAULTBED_SSH", default_value = "ssh", hide_env = true, value_name = "CMD")]
    ssh_program: OsString,
    /// What to run as scp
    #[arg(long, env = "FAULTBED_SCP", default_value = "scp", hide_env = true, value_name = "CMD")]
    scp_program: OsString,
    #[command(flatten)]
    output: OutputArgs,
}

/// The agent to install.
#[derive(Debug)]
struct Agent {
    path: PathBuf,
    sha256: String,
    machine: &'static str,
}

/// What came of one machine.
#[derive(Debug, Serialize)]
struct Joined {
    /// As ssh knows it.
    at: String,
    /// Its name in the lab; empty where it has none.
    host: String,
    /// Whether anything was changed there.
    changed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<Step>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<Step>,
    /// `joined`, `reloaded`, `started` or `unchanged`.
    did: &'static str,
    /// What its own doctor says.
    checks: Vec<Check>,
    /// Why it is no host of the lab.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Runs `host join`.
///
/// # Errors
/// A line of the file is wrong, the lab cannot be reached, or a machine did not become a host.
pub async fn run(session: &Session, args: &JoinArgs) -> Outcome {
    let targets = targets(args)?;
    let agent = agent(args.agent.as_deref())?;
    let client = session.client().await?;
    let lab = client.lab().await?;
    let known: BTreeSet<String> = lab.hosts.keys().map(HostName::to_string).collect();
    let ssh = Ssh { ssh: args.ssh_program.clone(), scp: args.scp_program.clone() };
    let work = Work { ssh, agent, lab: lab.name.to_string(), known };
    let token = |target: Target| async move { token(session, &target).await };
    let mut done: Vec<(usize, Joined)> = stream::iter(targets.into_iter().enumerate())
        .map(|(number, target)| {
            let work = &work;
            async move { (number, work.bring_in(target, &token).await) }
        })
        .buffer_unordered(AT_ONCE)
        .inspect(|(_, joined)| output::say(progress(joined)))
        .collect()
        .await;
    done.sort_by_key(|(number, _)| *number);
    let done: Vec<Joined> = done.into_iter().map(|(_, joined)| joined).collect();
    match args.output.output {
        Format::Json => output::json(&done)?,
        Format::Table => output::data(listing(&done))?,
    }
    let failed = done.iter().filter(|joined| joined.error.is_some()).count();
    if failed == 0 {
        return Ok(Exit::DONE);
    }
    let all = done.len();
    Err(Failure::no(format!("{failed} of {all} machines did not become hosts of the lab"))
        .next("faultbed host join …   # again: what is done already stays"))
}

fn targets(args: &JoinArgs) -> Result<Vec<Target>, Failure> {
    let refuse = |why: String| Failure::refused(why).next("faultbed host join --help");
    let mut targets = match &args.hosts_file {
        Some(path) => {
            let text = fs::read_to_string(path)
                .map_err(|e| Failure::io(format!("read {}", path.display()), &e))?;
            hosts_file::read(&path.display().to_string(), &text)
                .map_err(|wrong| refuse(wrong.join("\n")))?
        }
        None => Vec::new(),
    };
    for at in &args.ssh {
        if !targets.iter().any(|target| target.at == *at) {
            targets.push(Target::new(at).map_err(refuse)?);
        }
    }
    if targets.is_empty() || targets.len() > HOSTS_MAX {
        return Err(refuse(format!("{} hosts are named; from 1 to {HOSTS_MAX}", targets.len())));
    }
    Ok(targets)
}

fn agent(path: Option<&Path>) -> Result<Agent, Failure> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => daemons::Programs::find()?.agent,
    };
    let read = || -> io::Result<(String, [u8; 20])> {
        let mut file = File::open(&path)?;
        let mut head = [0; 20];
        file.read_exact(&mut head)?;
        file.rewind()?;
        Ok((Content::read(&mut file)?.sha256.to_string(), head))
    };
    let (sha256, head) =
        read().map_err(|e| Failure::io(format!("read the agent {}", path.display()), &e))?;
    let Some(machine) = machine(&head) else {
        return Err(Failure::refused(format!(
            "{} is no program for Linux on x86_64 or aarch64",
            path.display()
        ))
        .next("faultbed host join … --agent PATH"));
    };
    Ok(Agent { path, sha256, machine })
}

/// What an ELF file runs on, by its `e_machine`; `None` where it is no such file.
fn machine(head: &[u8; 20]) -> Option<&'static str> {
    let is_elf = head.starts_with(b"\x7fELF");
    match (is_elf, u16::from_le_bytes([head[18], head[19]])) {
        (true, 62) => Some("x86_64"),
        (true, 183) => Some("aarch64"),
        _ => None,
    }
}

/// A fresh token for one machine, by the command that people use.
async fn token(session: &Session, target: &Target) -> Result<String, String> {
    let own = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    let mut command = tokio::process::Command::new(own);
    if let Some(lab) = &session.lab {
        command.args(["--lab", lab]);
    }
    command.args(["host", "token", "--for", TOKEN_FOR]);
    if let Some(name) = &target.name {
        command.args(["--name", name.as_str()]);
    }
    for (key, value) in &target.labels {
        command.arg("--label").arg(format!("{key}={value}"));
    }
    let ran = command.stdin(Stdio::null()).output().await;
    let ran = ran.map_err(|error| format!("ask for a token: {error}"))?;
    let said = String::from_utf8_lossy(&ran.stdout);
    match said.split_whitespace().find(|word| word.starts_with("fb1.")) {
        Some(token) => Ok(token.to_owned()),
        None => {
            let why = String::from_utf8_lossy(&ran.stderr);
            Err(format!("ask for a token: {}", why.lines().next().unwrap_or("no answer")))
        }
    }
}

/// What all machines have in common.
#[derive(Debug)]
struct Work {
    ssh: Ssh,
    agent: Agent,
    lab: String,
    known: BTreeSet<String>,
}

impl Work {
    /// Makes one machine a host of the lab, and says what that took.
    async fn bring_in<F>(&self, target: Target, token: &impl Fn(Target) -> F) -> Joined
    where
        F: Future<Output = Result<String, String>>,
    {
        let mut joined = Joined {
            at: target.at.clone(),
            host: String::new(),
            changed: false,
            agent: None,
            unit: None,
            did: "unchanged",
            checks: Vec::new(),
            error: None,
        };
        if let Err(why) = self.try_bring_in(target, token, &mut joined).await {
            joined.error = Some(why);
        }
        joined
    }

    async fn try_bring_in<F>(
        &self,
        target: Target,
        token: &impl Fn(Target) -> F,
        joined: &mut Joined,
    ) -> Result<(), String>
    where
        F: Future<Output = Result<String, String>>,
    {
        let at = target.at.clone();
        let found = Found::read(&self.ssh.run(&at, LOOK).await?)?;
        joined.host.clone_from(&found.host);
        let said = target.name.as_ref().map(HostName::to_string);
        let wanted = Wanted {
            lab: &self.lab,
            agent: &self.agent.sha256,
            machine: self.agent.machine,
            is_known: self.known.contains(&found.host),
            name: said.as_deref(),
        };
        let unit_hash = Sha256::of(found.unit_text().as_bytes());
        let plan = remote::plan(&found, wanted, unit_hash.as_str())?;
        if plan.agent != Step::Unchanged {
            self.ssh.copy(&self.agent.path, &at, UPLOAD).await?;
        }
        let join = match plan.then {
            Then::Join => {
                // One that comes back has the name that it had.
                let before = || found.host.parse().ok();
                let target = Target { name: target.name.clone().or_else(before), ..target };
                join_words(token(target.clone()).await?, &target)
            }
            Then::Nothing | Then::Reload | Then::Start => Vec::new(),
        };
        self.ssh.run(&at, &remote::script(&found, &plan, &join)).await?;
        note(joined, &plan);
        let after = Found::read(&self.ssh.run(&at, LOOK).await?)?;
        joined.host.clone_from(&after.host);
        let checks = self.ssh.run(&at, &after.doctor()).await?;
        joined.checks = serde_json::from_str(&checks)
            .map_err(|error| format!("read what its doctor says: {error}"))?;
        Ok(())
    }
}

/// The words of the agent after `join`.
fn join_words(token: String, target: &Target) -> Vec<String> {
    let mut words = vec![token];
    for (option, value) in [
        ("--name", target.name.as_ref().map(HostName::to_string)),
        ("--address", target.address.map(|address| address.to_string())),
    ] {
        words.extend(value.into_iter().flat_map(|value| [option.to_owned(), value]));
    }
    for (key, value) in &target.labels {
        words.extend(["--label".to_owned(), format!("{key}={value}")]);
    }
    words
}

fn note(joined: &mut Joined, plan: &Plan) {
    joined.did = match plan.then {
        Then::Nothing => "unchanged",
        Then::Reload => "reloaded",
        Then::Start => "started",
        Then::Join => "joined",
    };
    let is_new = |step: &Step| *step != Step::Unchanged;
    joined.changed =
        plan.then != Then::Nothing || is_new(&plan.agent) || plan.unit.as_ref().is_some_and(is_new);
    joined.agent = Some(plan.agent.clone());
    joined.unit.clone_from(&plan.unit);
}

/// One line when a machine is done.
fn progress(joined: &Joined) -> String {
    match &joined.error {
        Some(why) => format!("{}: {}", joined.at, tone(why, Tone::Bad)),
        None if joined.changed => format!("{}: {} is {}", joined.at, joined.host, joined.did),
        None => format!("{}: {} is unchanged", joined.at, joined.host),
    }
}

/// All machines, and below them what is not well on which.
fn listing(done: &[Joined]) -> String {
    let step = |step: &Option<Step>| step.as_ref().map_or("-".to_owned(), Step::to_string);
    let rows = done
        .iter()
        .map(|joined| {
            let (did, mood) = match joined.error {
                Some(_) => ("failed", Tone::Bad),
                None if joined.changed => (joined.did, Tone::Good),
                None => ("unchanged", Tone::Faint),
            };
            let checks =
                if joined.checks.is_empty() { "-".to_owned() } else { tally(&joined.checks) };
            vec![
                cell(if joined.host.is_empty() { "-" } else { &joined.host }, Tone::Strong),
                plain(&joined.at),
                cell(did, mood),
                plain(step(&joined.agent)),
                plain(step(&joined.unit)),
                plain(checks),
            ]
        })
        .collect();
    let mut lines = vec![table::render(&["HOST", "AT", "DID", "AGENT", "UNIT", "CHECKS"], rows)];
    for joined in done {
        let mut said: Vec<String> =
            joined.error.iter().map(|why| tone(format!("failed  {why}"), Tone::Bad)).collect();
        for check in joined.checks.iter().filter(|check| check.verdict != CheckVerdict::Ok) {
            said.push(format!("{}  {}: {}", check.verdict.word(), check.what, check.found));
            said.extend(check.details().iter().map(|detail| format!("      {detail}")));
        }
        if !said.is_empty() {
            let name = if joined.host.is_empty() { &joined.at } else { &joined.host };
            lines.push(format!("\n{}", tone(name, Tone::Strong)));
            lines.extend(said.iter().map(|line| format!("  {line}")));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests;
