//! `faultbed wait CONDITION…`: parses what is waited for, and waits.

use std::time::Duration;

use faultbed_common::{
    duration::Span, edit::WatchQuery, name::ClusterName, report::NodeState, status::Status,
};

use super::{Goal, follow, leaders, met::met};
use crate::cli::{
    Session,
    failure::{Exit, Failure, Outcome},
    output, status,
};

/// Words of conditions, for the error that lists them.
const PATTERNS: &str = "ready CLUSTER | leader CLUSTER [changed] | NODE STATE | fault NAME active|confirmed|ended | converged";

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// `ready kv`, `leader kv [changed]`, `kv-1 crashed`, `fault NAME active|confirmed|ended`, `converged`; several are separated by `and`
    #[arg(required = true, value_name = "CONDITION", add = clap_complete::ArgValueCandidates::new(crate::cli::completion::condition_words))]
    condition: Vec<String>,
    /// Give up after this long (exit 3)
    #[arg(
        long,
        allow_hyphen_values = true,
        value_name = "DURATION",
        default_value = "60s",
        env = "FAULTBED_WAIT",
        hide_env_values = true
    )]
    timeout: Span,
    #[command(flatten)]
    output: output::OutputArgs,
}

/// Runs `wait`.
///
/// # Errors
/// A condition makes no sense, cannot come true any more, or did not in time.
pub async fn run(session: &Session, args: &WaitArgs) -> Outcome {
    let words: Vec<&str> = args.condition.iter().flat_map(|text| text.split_whitespace()).collect();
    let client = session.client().await?;
    let now = client.status().await?;
    let goals = words
        .split(|word| *word == "and")
        .map(|words| parse(words, &now))
        .collect::<Result<Vec<Goal>, Failure>>()?;
    // What is printed whole is awaited whole.
    let waited = match args.output.output {
        output::Format::Json => {
            let all = WatchQuery::default();
            follow::until_as(&client, goals.clone(), args.timeout.0, all).await?
        }
        output::Format::Table => follow::until(&client, goals.clone(), args.timeout.0).await?,
    };
    match args.output.output {
        output::Format::Json => output::json(&waited.status)?,
        output::Format::Table => {
            for goal in &goals {
                output::data(met(&waited.status, goal))?;
            }
        }
    }
    Ok(Exit::DONE)
}

/// Parses one condition. `leader kv changed` compares with the leader of `now`.
fn parse(words: &[&str], now: &Status) -> Result<Goal, Failure> {
    let goal = match words {
        ["converged"] => Goal::Converged,
        ["ready", cluster] => Goal::ClusterReady(known_cluster(cluster, now)?),
        ["leader", cluster] => Goal::Leader(known_cluster(cluster, now)?, None),
        ["leader", cluster, "changed"] => {
            let cluster = known_cluster(cluster, now)?;
            let old = leaders(now, &cluster).max_by_key(|node| node.term).map(|n| n.name.clone());
            Goal::Leader(cluster, old)
        }
        ["fault", name, state] => {
            let name = name.parse().map_err(|e| refuse(format!("{e}")))?;
            match *state {
                "active" => Goal::InForce(name),
                "confirmed" => Goal::Confirmed(name),
                "ended" => Goal::Ended(name),
                other => {
                    return Err(refuse(format!(
                        "{other:?} is nothing a fault can be waited for; it is active, confirmed or ended"
                    )));
                }
            }
        }
        [node, state] => match (status::known_node(node, now), parse_state(state)) {
            // Neither is known: it is the condition that is misspelt.
            (Err(_), Err(_)) => {
                return Err(refuse(format!("{:?} is no condition", words.join(" "))));
            }
            (node, state) => Goal::Is(node?, state?),
        },
        _ => return Err(refuse(format!("{:?} is no condition", words.join(" ")))),
    };
    Ok(goal)
}

fn refuse(message: String) -> Failure {
    Failure::refused(format!("{message}; conditions are: {PATTERNS}")).next("faultbed wait --help")
}

fn known_cluster(text: &str, now: &Status) -> Result<ClusterName, Failure> {
    if let Some(cluster) = now.clusters.iter().find(|cluster| cluster.name.as_str() == text) {
        return Ok(cluster.name.clone());
    }
    let known: Vec<&str> = now.clusters.iter().map(|c| c.name.as_str()).collect();
    Err(status::unknown("cluster", text, &known))
}

fn parse_state(text: &str) -> Result<NodeState, Failure> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| {
        Failure::refused(format!(
            "{text:?} is no state of a node; states are: {}",
            crate::cli::status::words::STATES.join(", ")
        ))
        .next("faultbed status")
    })
}

/// Where nobody says how long.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing;

    fn check(text: &str) -> Result<Goal, String> {
        let words: Vec<&str> = text.split(' ').collect();
        parse(&words, &testing::three_nodes()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn conditions_read_as_people_say_them() {
        let kv = "kv".parse().unwrap();
        assert_eq!(check("ready kv"), Ok(Goal::ClusterReady("kv".parse().unwrap())));
        assert_eq!(check("leader kv"), Ok(Goal::Leader("kv".parse().unwrap(), None)));
        assert_eq!(check("leader kv changed"), Ok(Goal::Leader(kv, Some("kv-1".parse().unwrap()))));
        assert_eq!(
            check("kv-1 crashed"),
            Ok(Goal::Is("kv-1".parse().unwrap(), NodeState::Crashed))
        );
        assert_eq!(check("fault split ended"), Ok(Goal::Ended("split".parse().unwrap())));
        assert_eq!(check("converged"), Ok(Goal::Converged));
    }

    #[test]
    fn wrong_conditions_name_what_is_allowed() {
        assert!(
            check("redy kv").unwrap_err().contains("no condition; conditions are: ready CLUSTER")
        );
        assert!(check("kv-1 happy").unwrap_err().contains("states are: absent"));
        assert!(check("ready kw").unwrap_err().contains("nearest is kv"));
        assert!(check("fault x gone").unwrap_err().contains("active, confirmed or ended"));
        assert!(check("soon").unwrap_err().contains("conditions are: ready CLUSTER"));
    }
}
