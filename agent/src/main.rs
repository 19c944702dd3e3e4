//! `faultbed-agent`: the daemon of one host; also the shim and the proxy, told apart by the first argument.

use std::{io::IsTerminal as _, path::Path, process::ExitCode};

use clap::Parser as _;
use faultbed_agent::{
    agent,
    args::{Args, Command, LogFormat},
    doctor, down, join,
    reload::Program,
    settings::Settings,
};

/// The exit code of a usage or start-up error.
const REFUSED: u8 = 2;

fn main() -> ExitCode {
    // Before any runtime and argument parser: both fork or count threads, and must stay small.
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|verb| verb.to_str()) {
        Some("shim") => match arguments.next() {
            Some(run_dir) => faultbed_agent::shim::main(Path::new(&run_dir)),
            None => ExitCode::from(REFUSED),
        },
        Some("proxy") => match (arguments.next(), arguments.next()) {
            (Some(dir), Some(socket)) => {
                faultbed_agent::proxy::main(Path::new(&dir), Path::new(&socket))
            }
            _ => ExitCode::from(REFUSED),
        },
        _ => daemon(),
    }
}

fn daemon() -> ExitCode {
    let result = match Args::parse().command {
        Command::Agent(args) => {
            trace(args.log_format);
            if args.detached {
                // Whoever started this goes on without it, terminal and all.
                let _ = rustix::process::setsid();
            }
            let run =
                Settings::of(&args).and_then(|settings| agent::run(&settings, Program::own()?));
            run.map(|()| ExitCode::SUCCESS)
        }
        Command::Join(args) => {
            trace(args.log_format);
            join::run(&args).map(|()| ExitCode::SUCCESS)
        }
        Command::Down(args) => {
            trace(LogFormat::Text);
            down::run(&args)
        }
        Command::Doctor(args) => {
            trace(LogFormat::Text);
            doctor::run(&args)
        }
    };
    result.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        ExitCode::from(REFUSED)
    })
}

fn trace(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FAULTBED_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => lines.with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}
