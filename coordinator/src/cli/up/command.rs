//! `up … -- CMD`: one command in a lab, once or again and again, ending with the command's own exit code.

use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    time::{Duration, Instant},
};

use faultbed_common::status::Status;
use rustix::process::{Pid, Signal};

use super::{
    Plan, Told, bring, bundle,
    daemons::Programs,
    finish, guard,
    prepare::{self, Lab},
    signals::Signals,
};
use crate::cli::{
    Session,
    client::Client,
    endpoints,
    failure::{Exit, Failure, Outcome},
    output,
    table::{Tone, tone},
};

/// How long a command may take to end after it was told to.
const END_MAX: Duration = Duration::from_secs(10);

/// In the environment of the command and all it starts: the token of its lab, for the guard.
pub const RUN_TAG: &str = "FAULTBED_RUN";

/// Added to a signal's number, as shells do.
const SIGNAL_BASE: i32 = 128;

/// How one run ended.
struct Run {
    code: u8,
    /// A signal to this command ended it: no more runs.
    interrupted: bool,
}

/// Runs the command once.
///
/// # Errors
/// The lab does not come up, the command cannot be started, or something is left.
pub async fn once(
    session: &Session,
    plan: &Plan,
    programs: &Programs,
    signals: &mut Signals,
) -> Outcome {
    let seed = super::prepare::dice();
    let run = in_lab(session, plan, programs, signals, seed).await?;
    Ok(Exit(run.code))
}

/// Runs the command again and again, each time in a lab of its own.
///
/// # Errors
/// As [`once`].
pub async fn repeat(
    session: &Session,
    plan: &Plan,
    programs: &Programs,
    signals: &mut Signals,
    times: u32,
) -> Outcome {
    let mut failed: Vec<(u32, u32, u8)> = Vec::new();
    let mut done = 0;
    for number in 1..=times {
        let seed = super::prepare::dice();
        let begun = Instant::now();
        let run = in_lab(session, plan, programs, signals, seed).await?;
        done = number;
        let verdict = match run.code {
            0 => tone("pass", Tone::Good),
            code => tone(format!("FAIL (exit {code})"), Tone::Bad),
        };
        let seconds = begun.elapsed().as_secs_f32();
        output::data(format!("run {number}/{times}  {verdict}  {seconds:.1} s  seed {seed}"))?;
        if run.code != 0 {
            failed.push((number, seed, run.code));
        }
        if run.interrupted || (run.code != 0 && plan.args.until_failure) {
            break;
        }
    }
    output::data(format!("{} of {done} passed", done as usize - failed.len()))?;
    match failed.last() {
        None => Ok(Exit::DONE),
        Some((number, seed, code)) => {
            output::say(format!("run {number} failed; the same seed again: FAULTBED_SEED={seed}"));
            Ok(Exit(*code))
        }
    }
}

/// Brings a lab up, runs the command in it, bundles on failure, takes the lab down.
async fn in_lab(
    session: &Session,
    plan: &Plan,
    programs: &Programs,
    signals: &mut Signals,
    seed: u32,
) -> Result<Run, Failure> {
    let lab = prepare::prepare(session, plan)?;
    guard(plan, &lab, programs)?;
    let brought = tokio::select! {
        brought = bring::bring_up(&lab, plan, programs) => brought,
        name = signals.next() => {
            output::say(format!("{name} while the lab was coming up"));
            finish(session, &lab, signals, Told::InBrief).await?;
            return Ok(Run { code: 1, interrupted: true });
        }
    };
    let run = match brought {
        Ok((client, now)) => supervise(&client, &now, plan, signals, seed).await,
        Err(failure) => Err(failure),
    };
    if !matches!(run, Ok(Run { code: 0, .. })) {
        let said = match &run {
            Ok(run) => format!("the command ended with exit code {}", run.code),
            Err(failure) => failure.to_string(),
        };
        bundle::write(&lab.context, &said).await;
    }
    leave(session, &lab, signals).await?;
    run
}

/// Takes the lab down, unless it was running before.
async fn leave(session: &Session, lab: &Lab, signals: &mut Signals) -> Result<(), Failure> {
    if lab.was_running {
        output::say(format!("lab `{}` was running before; it goes on", lab.context.name));
        return Ok(());
    }
    finish(session, lab, signals, Told::InBrief).await.map(drop)
}

async fn supervise(
    client: &Client,
    now: &Status,
    plan: &Plan,
    signals: &mut Signals,
    seed: u32,
) -> Result<Run, Failure> {
    let [program, args @ ..] = plan.args.command.as_slice() else {
        return Err(Failure::refused("there is no command after --"));
    };
    let mut child = spawn(program, args, (now, &client.context.token), seed)?;
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    output::say(tone(
        format!("running {} in lab {}", program.display(), client.context.name),
        Tone::Faint,
    ));
    let lifetime = plan.lifetime();
    let interrupted = tokio::select! {
        status = child.wait() => {
            let status = status.map_err(|e| Failure::io("wait for the command", &e))?;
            return Ok(Run { code: code_of(status), interrupted: false });
        }
        name = signals.next() => {
            // A terminal's Ctrl-C has reached the command already.
            let signal = if name == "SIGHUP" { Signal::HUP } else { Signal::TERM };
            if name != "SIGINT" || !output::is_watched() {
                forward(pid, signal);
            }
            true
        }
        () = expire(lifetime) => {
            output::say("its time is up");
            forward(pid, Signal::TERM);
            false
        }
    };
    let status = match tokio::time::timeout(END_MAX, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            forward(pid, Signal::KILL);
            child.wait().await
        }
    };
    let status = status.map_err(|e| Failure::io("wait for the command", &e))?;
    if !interrupted {
        return Err(Failure::late("the command did not end within --for"));
    }
    Ok(Run { code: code_of(status), interrupted })
}

async fn expire(lifetime: Option<Duration>) {
    match lifetime {
        Some(lifetime) => tokio::time::sleep(lifetime).await,
        None => std::future::pending().await,
    }
}

fn forward(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Starts the command with the lab in its environment; it gets SIGTERM should this process be killed.
#[allow(unsafe_code, reason = "the death signal can only be set between fork and exec")]
fn spawn(
    program: &OsString,
    args: &[OsString],
    (now, token): (&Status, &str),
    seed: u32,
) -> Result<tokio::process::Child, Failure> {
    let mut command = tokio::process::Command::new(program);
    command.args(args).envs(endpoints::environment(now));
    command.env(RUN_TAG, token);
    if std::env::var_os("FAULTBED_SEED").is_none() {
        command.env("FAULTBED_SEED", seed.to_string());
    }
    let die_with_us =
        || rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).map_err(Into::into);
    // SAFETY: prctl is async-signal-safe, and the closure touches no memory of ours.
    unsafe { command.pre_exec(die_with_us) };
    command.spawn().map_err(|e| {
        Failure::refused(format!("start {}: {e}", program.display()))
            .next(format!("ls -l {}", program.display()))
    })
}

/// The exit code as a shell would tell it.
fn code_of(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => SIGNAL_BASE + signal,
        (None, None) => 1,
    };
    u8::try_from(code & 0xff).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_commands_own() {
        assert_eq!(code_of(ExitStatus::from_raw(0)), 0);
        assert_eq!(code_of(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(code_of(ExitStatus::from_raw(9)), 137);
    }
}
