//! `host token`: prints the line that brings a machine into the lab.

use std::collections::BTreeMap;

use faultbed_common::{
    duration::Span,
    name::HostName,
    trust::{Invited, TokenRequest},
};

use crate::cli::{
    Session,
    failure::{Exit, Failure, Outcome},
    output,
};

/// How long a token can be used where nothing is said.
const LASTS: &str = "1h";

/// Arguments of `host token`.
#[derive(Debug, clap::Args)]
pub struct TokenArgs {
    /// The host's name; without it the machine says its own
    #[arg(long)]
    name: Option<HostName>,
    /// A label of the host; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// How long the line can be used, once
    #[arg(long = "for", default_value = LASTS, value_name = "TIME")]
    lasts: Span,
}

/// Runs `host token`.
///
/// # Errors
/// The lab is of one machine, refuses, or cannot be reached.
pub async fn run(session: &Session, args: &TokenArgs) -> Outcome {
    let invited = Invited::Host { name: args.name.clone(), labels: labels(&args.labels)? };
    let request = TokenRequest { invited, lasts: args.lasts };
    let token = session.client().await?.invite(&request).await?.token;
    output::data(format!("faultbed-agent join {token}"))?;
    if output::is_watched() {
        output::say(format!("# paste it on the machine, within {}; it works once", args.lasts));
    }
    Ok(Exit::DONE)
}

/// Labels as typed.
///
/// # Errors
/// One has no key or no value.
pub fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Ok((key.to_owned(), value.to_owned()))
            }
            Some(_) | None => Err(Failure::refused(format!(
                "{text:?} is no label; write KEY=VALUE, such as rack=a"
            ))),
        })
        .collect()
}
