//! `user …`: who else may come in from other machines.

use faultbed_common::{
    duration::Span,
    name::UserName,
    trust::{ExpelRequest, Invited, Role, TokenRequest},
};

use crate::cli::{
    Session,
    failure::{Exit, Failure, Outcome},
    output,
};

/// Arguments of `user`.
#[derive(Debug, clap::Args)]
pub struct UserArgs {
    #[command(subcommand)]
    command: UserCommand,
}

/// Verbs on users.
#[derive(Debug, clap::Subcommand)]
enum UserCommand {
    /// Print the one line that lets somebody into the lab from another machine
    #[command(
        after_help = "A viewer sees everything, an operator changes the lab and so runs programs on its hosts,\n\
                      an admin says who else may come in.\n\n\
                      Examples:\n  faultbed user token ada --role operator\n  faultbed user token ci --role viewer --for 10m"
    )]
    Token {
        /// The user's name
        name: UserName,
        /// What the user may do
        #[arg(long, value_name = "viewer|operator|admin")]
        role: Role,
        /// How long the line can be used, once
        #[arg(long = "for", default_value = "1h", value_name = "TIME")]
        lasts: Span,
    },
    /// Take somebody's way in; a certificate of that name is refused from now on
    Remove {
        /// The user's name
        name: UserName,
    },
}

/// Runs `user …`.
///
/// # Errors
/// The lab is of one machine, refuses, or cannot be reached.
pub async fn run(session: &Session, args: &UserArgs) -> Outcome {
    let client = session.client().await?;
    match &args.command {
        UserCommand::Token { name, role, lasts } => {
            let invited = Invited::User { name: name.clone(), role: *role };
            let request = TokenRequest { invited, lasts: *lasts };
            let token = client.invite(&request).await?.token;
            output::data(format!("faultbed context add {token}"))?;
            if output::is_watched() {
                output::say(format!(
                    "# paste it on {name}'s machine, within {lasts}; it works once"
                ));
            }
        }
        UserCommand::Remove { name } => {
            if !client.expel(&ExpelRequest { user: name.clone() }).await?.was_member {
                return Err(Failure::no(format!("there is no user {name} in this lab")));
            }
            output::say(format!("{name} may not come in any more"));
        }
    }
    Ok(Exit::DONE)
}
