//! The words of the command line, and what a newcomer is shown.

use std::{collections::BTreeMap, ffi::OsString};

use clap::{ArgMatches, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::ArgValueCandidates;
use faultbed_common::duration::Span;

use crate::cli::{
    apply, blueprint, ca, completion, contexts, down, endpoints, events, exec, failure::Failure,
    fault, guard, heal, host, logs, node, object, output, scale, show, start, status, up, user,
    wait,
};

/// Shown where nothing is asked: the way of the first five minutes.
pub const WELCOME: &str = "\
faultbed: start, restart and partition real database clusters, on one machine or many

The first five minutes:
  faultbed up -d                        a lab of three simulated hosts, in the background
  faultbed start cluster --etcd.count 3 a real cluster behind proxies, and how to connect
  faultbed isolate leader:etcd --for 30s
                                        a real cut; the others elect a new leader
  faultbed status -w                    watch it; every fault shows that it acted
  faultbed down --wipe                  nothing is left

Then: put it in a file (faultbed get lab > lab.toml), and run your tests in it:
  faultbed up lab.toml --ephemeral -- ./test.sh

All commands: faultbed --help      Is this machine fit: faultbed doctor";

/// `--help` of the whole program. A test holds that every command is in it.
const HELP: &str = "\
{about}

{usage-heading} {usage}

Lab:
  up [FILE] [-- CMD…]       Bring a local lab up; with CMD run it in the lab, then take the lab down
  down                      Take it down, and show that nothing is left
  status, show NAME         The lab at a glance; everything about one thing in it
  events, history           What happened; which changes were accepted
  wait CONDITION            Until something is true: `ready kv`, `kv-1 crashed`, `fault split confirmed`
  doctor                    Whether this machine can run a lab

Clusters and nodes:
  start cluster             A new cluster: --etcd.count 3, --etcd.path ./bin/etcd
  start, stop, restart      Nodes by target: `kv-1`, `kv`, `leader:kv`, `host:h1`
  kill, pause, resume       As a failure would
  scale, remove             More or fewer nodes; one of them for good
  wipe, set, upgrade        Delete data; change a field; another program, node by node
  endpoints, logs           Where clients connect; what nodes say
  exec, cp                  A program beside a node; a file from or to it

Faults:
  partition A B             Cut groups from each other: `partition kv-1 kv-2,kv-3`
  isolate TARGET            Cut nodes from their cluster
  inject EFFECT             `latency 50ms loss 1% --between kv-1 kv-2`, `wan-eu-us …`, `reset …`
  heal                      End faults

Files:
  plan, apply FILE          What a file would change; make it so
  get, delete               Objects as they were accepted; remove them

Hosts:
  host token                The one line that brings a machine into the lab
  host join --ssh           Bring machines in over your own ssh
  host list, label          The machines of the lab; words that targets and placement know them by
  user token, remove        Let somebody in from another machine; and no more
  ca show, rotate           The CA of a lab of many machines; let another one take over
  host drain, remove        Let no new node come to one; take one out of the lab

And:
  blueprint                 How databases are run: list, show, check a file of your own
  context                   The labs of this user: list, use, add, remove
  completion SHELL          Completion that knows names
  version                   The version of this program

Options:
{options}
{after-help}";

/// Shown at the end of `--help`.
const AFTER: &str = "Examples:
  faultbed up deploy/examples/etcd.toml
  faultbed restart kv-2
  faultbed partition leader:kv follower:kv --for 30s
  faultbed inject latency 50ms --jitter 5ms --between kv-1 kv-2,kv-3
  faultbed heal --all
Every command has --help with examples. Exit codes: 0 done, 1 the answer is no,
2 usage or refused, 3 not in time, 4 the lab cannot be reached.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "faultbed",
    bin_name = "faultbed",
    version,
    about = "Start, restart and partition real database clusters",
    help_template = HELP,
    after_help = AFTER,
    disable_help_subcommand = true,
    subcommand_required = false,
    max_term_width = 100
)]
pub struct Args {
    /// Which lab [default: the chosen or only running one, else `lab`]
    #[arg(long, global = true, env = "FAULTBED_LAB", hide_env_values = true, value_name = "NAME", add = ArgValueCandidates::new(completion::labs))]
    pub lab: Option<String>,
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Bring a local lab up
    Up(up::UpArgs),
    /// Take a local lab down, and show that nothing is left
    Down(down::DownArgs),
    /// Start nodes, call back those that are still leaving their cluster, or start a new cluster
    Start(start::StartArgs),
    /// Stop nodes on purpose; they stay down until `start`
    Stop(node::VerbArgs),
    /// Start nodes anew, one at a time, with the program now at their path
    #[command(
        after_help = "Examples:\n  faultbed restart kv-2\n  faultbed restart kv\n  faultbed restart kv --parallel 3"
    )]
    Restart(node::rolling::RestartArgs),
    /// End nodes by a signal; they stay down until `start` unless told
    #[command(
        after_help = "Examples:\n  faultbed kill kv-1\n  faultbed kill leader:kv --respawn\n  faultbed kill kv-1,kv-2 --for 30s\n  faultbed kill kv-1 --signal ABRT"
    )]
    Kill(node::KillArgs),
    /// Hold all processes of nodes still; a fault, so it ends by itself
    Pause(node::PauseArgs),
    /// End the pauses that hold nodes
    Resume(node::VerbArgs),
    /// Delete nodes' data; those that ran start again, empty
    Wipe(node::VerbArgs),
    /// Change a field of nodes, a role or a cluster
    #[command(
        after_help = "Examples:\n  faultbed set kv-2 path=./bin/etcd-next\n  faultbed set kv count=5\n  faultbed set kv env.GOMAXPROCS=1\n  faultbed set kv lease=24h          # from now on; none: until stopped"
    )]
    Set(node::SetArgs),
    /// More or fewer nodes of a role, one at a time; each joins or leaves as its database wants it
    #[command(
        after_help = "Examples:\n  faultbed scale kv 5\n  faultbed scale db/tikv 4\n  faultbed scale kv 3 --plan"
    )]
    Scale(scale::ScaleArgs),
    /// Take nodes out of their cluster for good
    #[command(after_help = "Examples:\n  faultbed remove kv-2\n  faultbed remove kv-2 --force")]
    Remove(scale::RemoveArgs),
    /// Another program for nodes, one at a time, each ready before the next, leaders last
    #[command(
        after_help = "Examples:\n  faultbed upgrade kv --path ./bin/etcd-next\n  faultbed upgrade kv-2 --path ./bin/etcd-next --plan"
    )]
    Upgrade(node::upgrade::UpgradeArgs),
    /// Cut groups of nodes from each other
    #[command(
        after_help = "Examples:\n  faultbed partition kv-1 kv-2,kv-3\n  faultbed partition leader:kv follower:kv --for 30s --name split\n  faultbed partition kv-1 kv-2 --one-way\n  faultbed partition --halves kv\n  faultbed partition --ring kv --seed 7 --canary"
    )]
    Partition(fault::PartitionArgs),
    /// Cut nodes from the other nodes of their cluster
    #[command(
        after_help = "Examples:\n  faultbed isolate leader:kv --for 30s\n  faultbed isolate kv-1 --clients"
    )]
    Isolate(fault::IsolateArgs),
    /// Disturb links or nodes
    Inject(fault::InjectArgs),
    /// End faults
    #[command(
        after_help = "Examples:\n  faultbed heal split\n  faultbed heal --all\n  faultbed heal split --require confirmed"
    )]
    Heal(heal::HealArgs),
    /// Make the lab as a file says
    Apply(apply::ApplyArgs),
    /// Show what `apply` would change
    Plan(apply::PlanArgs),
    /// Objects as they were accepted
    #[command(
        after_help = "Examples:\n  faultbed get lab > lab.toml\n  faultbed get cluster kv\n  faultbed get fault split -o json"
    )]
    Get(object::GetArgs),
    /// Remove a cluster or a fault
    Delete(object::DeleteArgs),
    /// The lab at a glance
    Status(status::StatusArgs),
    /// Everything about a node, fault, host or cluster
    Show(show::ShowArgs),
    /// Where a cluster is reached
    #[command(
        after_help = "Examples:\n  etcdctl --endpoints=$(faultbed endpoints kv) get hello\n  faultbed endpoints kv --port peer"
    )]
    Endpoints(endpoints::EndpointsArgs),
    /// Run a program on a node's host, as its user, in its directory, without a shell
    #[command(
        after_help = "Examples:\n  faultbed exec kv-1 -- etcdctl --endpoints=http://127.77.1.1:2379 member list\n  faultbed exec leader:kv -- ls -la data\n  faultbed exec kv-1 -- sha256sum < local.bin\n\nIts environment is the node's, and FAULTBED_LAB, _HOST, _NAME, _CLUSTER, _ROLE, _DATA, _ADDRESS,\n_PRIVATE, _PORT_<PORT> and _ENDPOINT_<PORT>. Ends with the program's exit code, 128 + n for a signal."
    )]
    Exec(exec::ExecArgs),
    /// Copy a file from or to a node's directory
    #[command(
        after_help = "Examples:\n  faultbed cp kv-1:runs/0001/output.log .\n  faultbed cp kv-1:data/member/wal/0.wal wal.bin\n  faultbed cp fixture.json kv-2:data/"
    )]
    Cp(exec::CopyArgs),
    /// Wait until something is true
    #[command(
        after_help = "Examples:\n  faultbed wait ready kv\n  faultbed wait leader kv changed --timeout 10s\n  faultbed wait kv-1 crashed\n  faultbed wait fault split confirmed and ready kv"
    )]
    Wait(wait::condition::WaitArgs),
    /// What nodes say
    #[command(
        after_help = "Examples:\n  faultbed logs kv -f\n  faultbed logs kv-1 --tail all --run 1"
    )]
    Logs(logs::LogsArgs),
    /// What happened
    Events(events::EventsArgs),
    /// Which changes were accepted
    History(events::HistoryArgs),
    /// The hosts of the lab
    Host(host::HostArgs),
    /// Who may come in from other machines
    User(user::UserArgs),
    /// The lab's own CA, and its replacement
    Ca(ca::CaArgs),
    /// How databases are run
    Blueprint(blueprint::BlueprintArgs),
    /// Whether this machine can run a lab
    Doctor(output::OutputArgs),
    /// The labs of this user
    Context(contexts::ContextArgs),
    /// Print a completion script
    Completion(completion::CompletionArgs),
    /// The version of this program
    Version(output::OutputArgs),
    #[command(name = "__guard", hide = true)]
    Guard(guard::GuardArgs),
}

/// The arguments with `--wait 20s` as `--wait=20s`. The value may be left out, so clap takes the word after
/// the flag for a target; but no name begins with a digit, so a duration there is one.
#[must_use]
pub fn join_wait(argv: Vec<OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::with_capacity(argv.len());
    // What another program is given is none of ours.
    let mut is_ours = true;
    for word in argv {
        is_ours &= word != "--";
        let duration = word.to_str().filter(|text| text.parse::<Span>().is_ok());
        match (joined.last_mut(), duration) {
            (Some(last), Some(duration)) if is_ours && last == "--wait" => {
                last.push(format!("={duration}"));
            }
            _ => joined.push(word),
        }
    }
    joined
}

/// The whole command line with the flags of every role that ships: what completion works on.
#[must_use]
pub fn complete_command() -> Command {
    let argv: Vec<OsString> = std::env::args_os().collect();
    let blueprints = start::candidates(&argv).unwrap_or_default();
    start::with_roles(Args::command(), &blueprints)
}

/// The command line for these arguments: flags of roles only where they can be meant.
///
/// # Errors
/// `--blueprint` names what cannot be had.
pub fn command_for(argv: &[OsString]) -> Result<Command, Failure> {
    let blueprints =
        if start::wants_roles(argv) { start::candidates(argv)? } else { BTreeMap::new() };
    let command = start::with_roles(Args::command(), &blueprints);
    Ok(if wants_help_of_inject(argv) { with_effects(command) } else { command })
}

/// Whether the list of effects may be shown. It takes in all blueprints that ship, which is ten times
/// the work of a command that changes something.
fn wants_help_of_inject(argv: &[OsString]) -> bool {
    let said = |words: &[&str]| argv.iter().any(|word| words.iter().any(|known| word == known));
    said(&["inject"]) && said(&["-h", "--help", "help"])
}

fn with_effects(command: Command) -> Command {
    command.mut_subcommand("inject", |inject| inject.after_help(fault::effect::help()))
}

/// Parses what the matches say.
///
/// # Errors
/// As clap says.
pub fn from_matches(matches: &ArgMatches) -> Result<Args, clap::Error> {
    Args::from_arg_matches(matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_duration_after_wait_is_no_target() {
        let joined = |line: &str| {
            let words = join_wait(line.split(' ').map(OsString::from).collect());
            words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        for (typed, meant) in [
            ("faultbed restart kv --wait 20s", "faultbed restart kv --wait=20s"),
            ("faultbed restart --wait 20s kv", "faultbed restart --wait=20s kv"),
            ("faultbed restart --wait kv", "faultbed restart --wait kv"),
            ("faultbed scale kv --wait 5", "faultbed scale kv --wait 5"),
            ("faultbed up f -- ./t --wait 20s", "faultbed up f -- ./t --wait 20s"),
        ] {
            assert_eq!(joined(typed), meant);
            let parsed = Args::command().try_get_matches_from(meant.split(' '));
            assert!(parsed.is_ok(), "{meant}: {:?}", parsed.err());
        }
    }

    #[test]
    fn every_command_is_in_the_help() {
        for command in Args::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let name = command.get_name();
            assert!(HELP.contains(name), "`{name}` is missing in the help");
        }
    }
}
