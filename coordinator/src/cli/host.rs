//! `host …`: the machines of a lab.

pub mod join;
pub mod list;
pub mod token;

use std::collections::{BTreeMap, BTreeSet};

use clap_complete::ArgValueCandidates;
use faultbed_common::{edit::Edit, name::HostName};

use crate::cli::{
    Session,
    change::{self, ChangeArgs},
    completion,
    failure::{Failure, Outcome},
    output::OutputArgs,
};

/// Arguments of `host`.
#[derive(Debug, clap::Args)]
pub struct HostArgs {
    #[command(subcommand)]
    command: HostCommand,
}

/// Verbs on hosts.
#[derive(Debug, clap::Subcommand)]
enum HostCommand {
    /// Print the one line that brings a machine into the lab
    #[command(
        after_help = "Examples:\n  faultbed host token\n  faultbed host token --name h1 --label rack=a --for 10m"
    )]
    Token(token::TokenArgs),
    /// The hosts of the lab, with what is placed there
    List(OutputArgs),
    /// Bring machines in over your own ssh: install the agent and its unit, join, check
    #[command(
        after_help = "What is as it should be already stays, so the command can be repeated: it says what it changed.\n\
                      As root, or a user with sudo without a password, the agent is a systemd service; else it runs as that user.\n\n\
                      Examples:\n  faultbed host join --ssh root@10.0.0.1 root@10.0.0.2\n  faultbed host join --hosts-file lab.hosts"
    )]
    Join(join::JoinArgs),
    /// Let no new node come to a host; what runs there goes on
    #[command(
        after_help = "Examples:\n  faultbed host drain h2\n  faultbed host drain h2 --off   # as: faultbed host undrain h2"
    )]
    Drain {
        /// Which
        #[arg(value_name = "HOST", add = ArgValueCandidates::new(completion::hosts))]
        name: HostName,
        /// Let new nodes come again
        #[arg(long)]
        off: bool,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let new nodes come to a drained host again
    Undrain {
        /// Which
        #[arg(value_name = "HOST", add = ArgValueCandidates::new(completion::hosts))]
        name: HostName,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Take a host out of the lab; its agent is told and ends
    #[command(
        after_help = "A host where nodes are placed is refused, unless --force takes them out of their clusters too.\n\
                      Their data stays on the host. A removed host comes back only with a new token.\n\n\
                      Examples:\n  faultbed host remove h3\n  faultbed host remove h3 --force --plan"
    )]
    Remove {
        /// Which
        #[arg(value_name = "HOST", add = ArgValueCandidates::new(completion::hosts))]
        name: HostName,
        /// Take the nodes that are placed there out of their clusters too
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Give labels to a host, for targets and placement as `label:KEY=VALUE`
    #[command(
        after_help = "Of each label the last word has this verb, then the lab file, then what the host joined with.\n\
                      `KEY-` takes back what this verb said.\n\n\
                      Examples:\n  faultbed host label h1 dc=east rack=3\n  faultbed host label h1 rack-"
    )]
    Label {
        /// Which
        #[arg(value_name = "HOST", add = ArgValueCandidates::new(completion::hosts))]
        name: HostName,
        /// Labels to give, or to take back
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        labels: Vec<String>,
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// Runs `host …`.
///
/// # Errors
/// The lab refuses or cannot be reached.
pub async fn run(session: &Session, args: &HostArgs) -> Outcome {
    let (edit, change) = match &args.command {
        HostCommand::Token(args) => return token::run(session, args).await,
        HostCommand::Join(args) => return Box::pin(join::run(session, args)).await,
        HostCommand::List(output) => return list::run(session, *output).await,
        HostCommand::Drain { name, off, change } => {
            (Edit::DrainHost { name: name.clone(), drained: !off }, change)
        }
        HostCommand::Undrain { name, change } => {
            (Edit::DrainHost { name: name.clone(), drained: false }, change)
        }
        HostCommand::Remove { name, force, change } => {
            (Edit::RemoveHost { name: name.clone(), force: *force }, change)
        }
        HostCommand::Label { name, labels, change } => {
            let (set, unset) = read_labels(labels)?;
            (Edit::LabelHost { name: name.clone(), set, unset }, change)
        }
    };
    let client = session.client().await?;
    change::perform(&client, change.request(edit, BTreeMap::new()), change).await
}

type Labels = (BTreeMap<String, String>, BTreeSet<String>);

/// Which labels `KEY=VALUE` and `KEY-` give and take back.
fn read_labels(words: &[String]) -> Result<Labels, Failure> {
    let (mut set, mut unset) = Labels::default();
    for word in words {
        if let Some((key, value)) = word.split_once('=') {
            set.insert(key.to_owned(), value.to_owned());
        } else if let Some(key) = word.strip_suffix('-') {
            unset.insert(key.to_owned());
        } else {
            return Err(Failure::refused(format!(
                "{word:?} is no label: write {word}=VALUE, or {word}- to take it back"
            ))
            .next("faultbed host label --help"));
        }
    }
    Ok((set, unset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_given_and_taken_back() {
        let words = ["dc=east", "rack-", "note=a-b-"].map(str::to_owned);
        let (set, unset) = read_labels(&words).unwrap();
        assert_eq!(set["dc"], "east");
        assert_eq!(set["note"], "a-b-");
        assert_eq!(unset, BTreeSet::from(["rack".to_owned()]));
        let failure = read_labels(&["dc".to_owned()]).unwrap_err();
        assert!(failure.to_string().contains("write dc=VALUE"), "{failure}");
    }
}
