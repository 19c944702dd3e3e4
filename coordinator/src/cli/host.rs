//! `host …`: the machines of a lab.

pub mod token;

use crate::cli::{Session, failure::Outcome};

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
}

/// Runs `host …`.
///
/// # Errors
/// As each verb says.
pub async fn run(session: &Session, args: &HostArgs) -> Outcome {
    match &args.command {
        HostCommand::Token(args) => token::run(session, args).await,
    }
}
