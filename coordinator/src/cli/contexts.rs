//! `context list|use|add|remove`: the labs of this user, and which one later commands mean.

mod add;
mod remove;

use clap_complete::ArgValueCandidates;
use serde::Serialize;

use crate::cli::{
    Session, completion,
    context::{self, Context},
    failure::{Exit, Outcome},
    output::{self, Format},
    status,
    table::{self, Tone},
};

/// Arguments of `context`.
#[derive(Debug, clap::Args)]
pub struct ContextArgs {
    #[command(subcommand)]
    command: ContextCommand,
}

/// Verbs on contexts.
#[derive(Debug, clap::Subcommand)]
enum ContextCommand {
    /// The labs of this user
    List(output::OutputArgs),
    /// Choose the lab that later commands mean
    Use {
        /// Its name
        #[arg(add = ArgValueCandidates::new(completion::labs))]
        name: String,
    },
    /// Add a lab that others run: with a token of `faultbed user token`, or by its unix socket
    #[command(
        after_help = "Examples:\n  faultbed context add fb1.…\n  faultbed context add unix:/run/faultbed/api.sock"
    )]
    Add(add::AddArgs),
    /// Forget a lab that others run, with the key and certificate for it
    #[command(
        after_help = "The lab itself stays as it is. One of this machine is removed with `faultbed down --wipe`."
    )]
    Remove {
        /// Its name
        #[arg(add = ArgValueCandidates::new(completion::labs))]
        name: String,
    },
}

#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    context: &'a Context,
    running: bool,
    current: bool,
}

/// Runs `context …`.
///
/// # Errors
/// There is no such lab.
pub fn run(session: &Session, args: &ContextArgs) -> Outcome {
    let places = &session.places;
    let labs = places.labs();
    match &args.command {
        ContextCommand::List(output) => {
            let current = places.current();
            let listed: Vec<Listed<'_>> = labs
                .iter()
                .map(|context| Listed {
                    context,
                    running: context.is_running(),
                    current: current.as_ref() == Some(&context.name),
                })
                .collect();
            match output.output {
                Format::Json => output::json(&listed)?,
                Format::Table => output::data(listing(&listed))?,
            }
        }
        ContextCommand::Use { name } => {
            let name = context::lab_name(name)?;
            let known: Vec<&str> = labs.iter().map(|lab| lab.name.as_str()).collect();
            if !labs.iter().any(|lab| lab.name == name) {
                let mut failure = status::unknown("lab", name.as_str(), &known);
                failure.next = vec![format!("faultbed up -d --lab {name}")];
                return Err(failure);
            }
            places.set_current(&name)?;
            output::say(format!("later commands mean lab `{name}`"));
        }
        ContextCommand::Add(args) => add::run(places, args)?,
        ContextCommand::Remove { name } => remove::run(places, &labs, name)?,
    }
    Ok(Exit::DONE)
}

fn listing(labs: &[Listed<'_>]) -> String {
    if labs.is_empty() {
        return "no labs yet; try: faultbed up -d".to_owned();
    }
    let rows = labs
        .iter()
        .map(|lab| {
            let remote = lab.context.is_remote();
            let (state, mood) = match (remote, lab.running) {
                (true, _) => ("remote", Tone::Good),
                (false, true) => ("running", Tone::Good),
                (false, false) => ("stopped", Tone::Faint),
            };
            vec![
                table::cell(&lab.context.name, Tone::Strong),
                table::cell(state, mood),
                table::plain(if remote { "".to_owned() } else { lab.context.hosts.to_string() }),
                table::plain(if remote {
                    lab.context.place()
                } else {
                    format!("127.77.{}.0/24", lab.context.octet)
                }),
                table::plain(&lab.context.store),
                table::plain(lab.context.dir.display()),
                table::plain(if lab.current { "*" } else { "" }),
            ]
        })
        .collect();
    table::render(&["LAB", "STATE", "HOSTS", "ADDRESSES", "STORE", "DIRECTORY", "CHOSEN"], rows)
}
