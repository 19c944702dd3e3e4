//! Completion that knows names: nodes, clusters, faults and labs, asked of the running lab.

use std::time::Duration;

use clap_complete::{CompletionCandidate, env::Shells};
use faultbed_common::status::Status;

use crate::cli::{
    Session,
    context::Places,
    failure::{Exit, Failure, Outcome},
    fault::effect,
    output, show,
    status::words,
};

/// A completion must be there at once or not at all.
const ANSWER_MAX: Duration = Duration::from_millis(400);

/// Arguments of `completion`.
#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    /// Which shell
    #[arg(value_parser = ["bash", "zsh", "fish", "elvish", "powershell"])]
    shell: String,
}

/// Runs `completion SHELL`: prints what a shell sources at its start.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &CompletionArgs) -> Outcome {
    let shells = Shells::builtins();
    let Some(shell) = shells.completer(&args.shell) else {
        return Err(Failure::refused(format!("no completion for {:?}", args.shell)));
    };
    let mut script = Vec::new();
    let path = std::env::current_exe().ok();
    let path = path.as_deref().and_then(|path| path.to_str()).unwrap_or("faultbed");
    shell
        .write_registration("COMPLETE", "faultbed", "faultbed", path, &mut script)
        .map_err(|e| Failure::io("write the completion script", &e))?;
    output::data(String::from_utf8_lossy(&script).trim_end())?;
    let line = match args.shell.as_str() {
        "fish" => "faultbed completion fish | source",
        "bash" => "source <(faultbed completion bash)",
        "zsh" => "source <(faultbed completion zsh)",
        _ => return Ok(Exit::DONE),
    };
    if output::is_watched() {
        output::say(format!("# in your shell's start-up file: {line}"));
    }
    Ok(Exit::DONE)
}

/// The status of the lab a command line being completed means; `None` where it does not answer.
fn status() -> Option<Status> {
    let session = Session { lab: asked_lab(std::env::args()), places: Places::from_env().ok()? };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let ask = async { session.client().await.ok()?.status().await.ok() };
        tokio::time::timeout(ANSWER_MAX, ask).await.ok().flatten()
    })
}

/// `--lab` of the line being completed, else the environment's.
fn asked_lab(words: impl Iterator<Item = String>) -> Option<String> {
    let words: Vec<String> = words.collect();
    let typed = words.windows(2).find(|pair| pair[0] == "--lab").map(|pair| pair[1].clone());
    let joined = words.iter().find_map(|word| word.strip_prefix("--lab=").map(str::to_owned));
    typed.or(joined).or_else(|| std::env::var("FAULTBED_LAB").ok())
}

fn candidates(words: impl IntoIterator<Item = impl Into<String>>) -> Vec<CompletionCandidate> {
    words.into_iter().map(|word| CompletionCandidate::new(word.into())).collect()
}

/// What can be a target: nodes, clusters, leaders, hosts.
pub fn targets() -> Vec<CompletionCandidate> {
    let Some(status) = status() else { return Vec::new() };
    let mut words: Vec<String> = status.nodes.iter().map(|n| n.name.to_string()).collect();
    for cluster in &status.clusters {
        words.push(cluster.name.to_string());
        words.push(format!("leader:{}", cluster.name));
        words.push(format!("follower:{}", cluster.name));
    }
    words.extend(status.hosts.iter().map(|host| format!("host:{}", host.name)));
    words.push("clients".to_owned());
    candidates(words)
}

/// Faults.
pub fn faults() -> Vec<CompletionCandidate> {
    candidates(status().into_iter().flat_map(|s| s.faults).map(|fault| fault.name.to_string()))
}

/// Clusters.
pub fn clusters() -> Vec<CompletionCandidate> {
    candidates(status().into_iter().flat_map(|s| s.clusters).map(|c| c.name.to_string()))
}

/// Hosts.
pub fn hosts() -> Vec<CompletionCandidate> {
    candidates(status().into_iter().flat_map(|s| s.hosts).map(|host| host.name.to_string()))
}

/// Clusters and faults.
pub fn objects() -> Vec<CompletionCandidate> {
    let mut words = clusters();
    words.extend(faults());
    words
}

/// Everything `show` takes.
pub fn anything() -> Vec<CompletionCandidate> {
    candidates(status().iter().flat_map(show::names))
}

/// Labs.
pub fn labs() -> Vec<CompletionCandidate> {
    let labs = Places::from_env().map(|places| places.labs()).unwrap_or_default();
    candidates(labs.iter().map(|lab| lab.name.to_string()))
}

/// Effects: those of every lab, presets, and the blueprints' own.
pub fn effects() -> Vec<CompletionCandidate> {
    candidates(effect::words())
}

/// How jitter can be distributed.
pub fn distributions() -> Vec<CompletionCandidate> {
    candidates(["uniform", "normal", "pareto"])
}

/// Fields of `set`.
pub fn fields() -> Vec<CompletionCandidate> {
    candidates([
        "path=",
        "config=",
        "args=",
        "env.",
        "on_crash=stay",
        "on_crash=restart",
        "lease=",
        "count=",
    ])
}

/// Words of conditions.
pub fn condition_words() -> Vec<CompletionCandidate> {
    let mut all =
        candidates(["ready", "leader", "fault", "converged", "changed", "confirmed", "ended"]);
    all.extend(candidates(words::STATES));
    all.extend(anything());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_of_the_line_being_completed_is_asked() {
        let words = |text: &str| {
            asked_lab(text.split(' ').map(str::to_owned).collect::<Vec<_>>().into_iter())
        };
        assert_eq!(words("faultbed -- faultbed --lab mine stop").as_deref(), Some("mine"));
        assert_eq!(words("faultbed -- faultbed --lab=mine stop").as_deref(), Some("mine"));
    }
}
