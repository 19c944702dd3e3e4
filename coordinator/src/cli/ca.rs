//! `ca …`: the lab's own CA, and how another one takes over from it.

use std::time::Duration;

use faultbed_common::{
    duration::Span,
    trust::{AuthorityReply, AuthorityRequest},
};

use crate::cli::{
    Session,
    client::Client,
    failure::Outcome,
    output::{self, Format, OutputArgs},
};

/// Digits of a hash that people compare.
const DIGITS: usize = 16;

/// Arguments of `ca`.
#[derive(Debug, clap::Args)]
pub struct CaArgs {
    #[command(subcommand)]
    command: CaCommand,
}

/// Verbs on the CA.
#[derive(Debug, clap::Subcommand)]
enum CaCommand {
    /// Which CA signs, and which one before it is still believed
    Show(OutputArgs),
    /// Let another CA take over; the one before is believed for a while, and signs nothing any more
    #[command(
        after_help = "Hosts get certificates of the new CA at once, over the streams they have; users with their\n\
                      next command. Who does neither until the overlap is over has to join again.\n\n\
                      Examples:\n  faultbed ca rotate\n  faultbed ca rotate --overlap 7d && faultbed ca show"
    )]
    Rotate {
        /// How long the one before is believed [default: as long as certificates last]
        #[arg(long, value_name = "TIME")]
        overlap: Option<Span>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Believe the CA that was replaced no more, before its time
    End {
        /// Also where somebody has no certificate of the new one yet, and has to join again then
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Runs `ca …`.
///
/// # Errors
/// The lab is of one machine, refuses, or cannot be reached.
pub async fn run(session: &Session, args: &CaArgs) -> Outcome {
    let (request, format) = match &args.command {
        CaCommand::Show(output) => (AuthorityRequest::Show, output.output),
        CaCommand::Rotate { overlap, output } => {
            (AuthorityRequest::Rotate { overlap: *overlap }, output.output)
        }
        CaCommand::End { force, output } => {
            (AuthorityRequest::End { force: *force }, output.output)
        }
    };
    let client = session.client().await?;
    let reply = client.authority(&request).await?;
    match format {
        Format::Json => output::json(&reply)?,
        Format::Table => output::data(told(&reply, &client))?,
    }
    Ok(crate::cli::failure::Exit::DONE)
}

fn told(reply: &AuthorityReply, client: &Client) -> String {
    let short = |hash: &str| hash.chars().take(DIGITS).collect::<String>();
    let mut lines = vec![format!("signs      {}", short(&reply.signs))];
    if let Some(ending) = &reply.ending {
        let left = Span(Duration::from_secs(ending.left_ms.div_ceil(1000)));
        lines.push(format!("ending     {}  believed for {left} more", short(&ending.ca)));
        let holders = match ending.holders.as_slice() {
            [] => format!("nobody; end it: {}", client.context.typed("ca end")),
            some => some.join(", "),
        };
        lines.push(format!("not yet    {holders}"));
    }
    lines.join("\n")
}
