//! The command line. It sees nothing else of this crate: what it knows of a lab, it asks over the wire.

pub mod apply;
pub mod args;
pub mod blueprint;
pub mod blueprints;
pub mod ca;
pub mod change;
pub mod claim;
pub mod client;
pub mod completion;
pub mod context;
pub mod contexts;
pub mod diff;
pub mod doctor;
pub mod down;
pub mod endpoints;
pub mod events;
pub mod exec;
pub mod failure;
pub mod fault;
pub mod guard;
pub mod heal;
pub mod host;
pub mod lab_file;
pub mod logs;
pub mod node;
pub mod object;
pub mod output;
pub mod paths;
pub mod push;
pub mod scale;
pub mod show;
pub mod start;
pub mod status;
pub mod table;
#[cfg(test)]
mod testing;
pub mod up;
pub mod user;
pub mod wait;

use std::{ffi::OsString, process::ExitCode};

use clap::{
    ArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};
use faultbed_common::edit::NodeVerb;

use args::{Args, Verb};
use client::Client;
use context::Places;
use failure::{Exit, Failure, Outcome};
use paths::Hosts;

/// What every command starts from.
#[derive(Debug)]
pub struct Session {
    /// The lab asked for by `--lab` or the environment.
    pub lab: Option<String>,
    /// The directories of this user.
    pub places: Places,
}

impl Session {
    /// A connection to the lab that is meant.
    ///
    /// # Errors
    /// There is none, or it cannot be reached.
    pub async fn client(&self) -> Result<Client, Failure> {
        Client::connect(self.places.find(self.lab.as_deref())?).await
    }

    /// Where the nodes of the lab that is meant run. One that is not there yet will be of this machine.
    #[must_use]
    pub fn hosts(&self) -> Hosts {
        match self.places.find(self.lab.as_deref()) {
            Ok(context) if context.is_remote() => Hosts::Elsewhere,
            Ok(_) | Err(_) => Hosts::Here,
        }
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    clap_complete::CompleteEnv::with_factory(args::complete_command).complete();
    let argv = args::join_wait(std::env::args_os().collect());
    let matches = match args::command_for(&argv) {
        Ok(command) => command.try_get_matches_from(&argv),
        Err(failure) => return end(Err(failure)),
    };
    match matches.and_then(|matches| Ok((args::from_matches(&matches)?, matches))) {
        Ok((args, matches)) => {
            let outcome = run(&args, &matches, &argv);
            let typed = matches.value_source("lab") == Some(clap::parser::ValueSource::CommandLine);
            end(outcome.map_err(|failure| match &args.lab {
                Some(lab) if typed => failure.in_lab(lab),
                Some(_) | None => failure,
            }))
        }
        Err(error) => {
            if let Some(amount) = negative_amount(&error, &argv) {
                return end(Err(Failure::refused(format!(
                    "\"{amount}\" is below zero; write an amount like 50ms, 1% or 10Mbit"
                ))
                .next("faultbed inject --help")));
            }
            // Help goes to stdout; nobody reading it is no failure.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::REFUSED.0))
        }
    }
}

/// The amount below zero, such as `-3s`, that clap took for an option nobody knows.
fn negative_amount<'a>(error: &clap::Error, argv: &'a [OsString]) -> Option<&'a str> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let is_number = option.strip_prefix('-')?.starts_with(|c: char| c.is_ascii_digit());
    argv.iter()
        .filter_map(|word| word.to_str())
        .find(|word| is_number && word.starts_with(option.as_str()))
}

/// Prints a failure and gives the exit code.
fn end(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(exit) => ExitCode::from(exit.0),
        Err(failure) => {
            let exit = failure.exit;
            if failure.message.is_some() {
                let failure = if failure.next.is_empty() {
                    failure.next(if exit == Exit::REFUSED {
                        "faultbed --help"
                    } else {
                        "faultbed status"
                    })
                } else {
                    failure
                };
                output::say(&failure);
            }
            ExitCode::from(exit.0)
        }
    }
}

fn run(args: &Args, matches: &ArgMatches, argv: &[OsString]) -> Outcome {
    let Some(verb) = &args.verb else {
        output::data(args::WELCOME)?;
        return Ok(Exit::DONE);
    };
    let lab = args.lab.clone().filter(|name| !name.is_empty());
    let session = Session { lab, places: Places::from_env()? };
    match verb {
        Verb::Doctor(args) => return doctor::run(&session, *args),
        Verb::Context(args) => return contexts::run(&session, args),
        Verb::Completion(args) => return completion::run(args),
        Verb::Version(args) => return version(*args),
        Verb::Guard(args) => return guard::run(&session, args),
        _ => {}
    }
    // One thread starts at once; there is nothing to run in parallel here.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::io("start the runtime", &e))?;
    let outcome = runtime.block_on(asked(&session, verb, matches, argv));
    // Threads that wait for daemons are not waited for.
    runtime.shutdown_background();
    outcome
}

/// Runs the commands that talk to a lab.
async fn asked(session: &Session, verb: &Verb, matches: &ArgMatches, argv: &[OsString]) -> Outcome {
    match verb {
        Verb::Up(args) => Box::pin(up::run(session, args)).await,
        Verb::Down(args) => down::run(session, args).await,
        Verb::Start(args) => Box::pin(start::run(session, args, matches, argv)).await,
        Verb::Stop(args) => node::verb(session, args, NodeVerb::Stop).await,
        Verb::Restart(args) => Box::pin(node::rolling::restart(session, args)).await,
        Verb::Kill(args) => node::kill(session, args).await,
        Verb::Pause(args) => node::pause(session, args).await,
        Verb::Resume(args) => node::resume(session, args).await,
        Verb::Wipe(args) => node::verb(session, args, NodeVerb::Wipe).await,
        Verb::Set(args) => node::set(session, args).await,
        Verb::Scale(args) => Box::pin(scale::scale(session, args)).await,
        Verb::Remove(args) => Box::pin(scale::remove(session, args)).await,
        Verb::Upgrade(args) => Box::pin(node::upgrade::run(session, args)).await,
        Verb::Partition(args) => fault::partition(session, args).await,
        Verb::Isolate(args) => fault::isolate(session, args).await,
        Verb::Inject(args) => fault::inject(session, args).await,
        Verb::Heal(args) => heal::heal(session, args).await,
        Verb::Apply(args) => apply::apply(session, args).await,
        Verb::Plan(args) => apply::plan(session, args).await,
        Verb::Get(args) => object::get(session, args).await,
        Verb::Delete(args) => object::delete(session, args).await,
        Verb::Status(args) => status::run(session, args).await,
        Verb::Show(args) => show::run(session, args).await,
        Verb::Endpoints(args) => endpoints::run(session, args).await,
        Verb::Wait(args) => wait::condition::run(session, args).await,
        Verb::Exec(args) => exec::exec(session, args).await,
        Verb::Cp(args) => exec::copy(session, args).await,
        Verb::Logs(args) => logs::run(session, args).await,
        Verb::Events(args) => events::events(session, args).await,
        Verb::History(args) => events::history(session, args).await,
        Verb::Host(args) => host::run(session, args).await,
        Verb::Blueprint(args) => Box::pin(blueprint::run(session, args)).await,
        Verb::User(args) => user::run(session, args).await,
        Verb::Ca(args) => ca::run(session, args).await,
        Verb::Doctor(_)
        | Verb::Context(_)
        | Verb::Completion(_)
        | Verb::Version(_)
        | Verb::Guard(_) => Ok(Exit::DONE),
    }
}

fn version(args: output::OutputArgs) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    match args.output {
        output::Format::Json => output::json(&serde_json::json!({ "version": version }))?,
        output::Format::Table => output::data(format!("faultbed {version}"))?,
    }
    Ok(Exit::DONE)
}
