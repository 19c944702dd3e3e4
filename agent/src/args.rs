//! The command line of `faultbed-agent`, as typed.

use std::{net::IpAddr, path::PathBuf};

use clap::{Parser, Subcommand, ValueEnum};
use faultbed_common::{
    name::{HostName, LabName},
    session::IDENTITY_PORT,
    trust::Token,
};

use crate::session::Coordinator;

/// The daemon of one host of a lab. `faultbed up` starts it.
#[derive(Debug, Parser)]
#[command(name = "faultbed-agent", version, about)]
pub struct Args {
    /// What to be.
    #[command(subcommand)]
    pub command: Command,
}

/// What this process is to be.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep this host's nodes and proxies as the lab wants them.
    Agent(AgentArgs),
    /// Bring this machine into a lab: paste what `faultbed host token` printed.
    Join(JoinArgs),
    /// Stop everything of this host, without a coordinator; print what is gone and what is kept.
    Down(DownArgs),
    /// Whether this machine can be a host of a lab, what it cannot do, and what root would add.
    Doctor(DoctorArgs),
}

/// `faultbed-agent doctor`.
#[derive(Debug, Clone, clap::Args)]
pub struct DoctorArgs {
    /// Where the agent keeps everything, or would.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// How to print what was found.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `faultbed-agent agent`: from a file, or all of it from flags.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentArgs {
    /// The file with everything that follows; `join` writes it.
    #[arg(long, conflicts_with_all = ["lab", "host", "address", "dir", "runtime", "coordinator"])]
    pub config: Option<PathBuf>,
    /// The lab it serves.
    #[arg(long, required_unless_present = "config")]
    pub lab: Option<LabName>,
    /// The host it is the agent of.
    #[arg(long, required_unless_present = "config")]
    pub host: Option<HostName>,
    /// Where other hosts reach this one.
    #[arg(long, required_unless_present = "config")]
    pub address: Option<IpAddr>,
    /// Where it keeps everything of its nodes.
    #[arg(long, required_unless_present = "config")]
    pub dir: Option<PathBuf>,
    /// Where its sockets are; a short path.
    #[arg(long, required_unless_present = "config")]
    pub runtime: Option<PathBuf>,
    /// A coordinator: `unix:PATH`, or `http://ADDRESS:PORT`; may be repeated.
    #[arg(long, required_unless_present = "config")]
    pub coordinator: Vec<Coordinator>,
    /// Where its proxy answers other hosts who dialled from here.
    #[arg(long, default_value_t = IDENTITY_PORT)]
    pub identity_port: u16,
    /// Certificates (PEM) besides this machine's own by which servers are known that programs are fetched from.
    #[arg(long, env = "FAULTBED_FETCH_CA", value_name = "FILE")]
    pub fetch_ca: Option<PathBuf>,
    /// Leave the session of whoever started this: `join` does.
    #[arg(long, hide = true)]
    pub detached: bool,
    /// How it logs, to its standard error.
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// `faultbed-agent join`.
#[derive(Debug, Clone, clap::Args)]
pub struct JoinArgs {
    /// What `faultbed host token` printed; it works once.
    pub token: Token,
    /// What this host is called in the lab, where the token does not say [default: the machine's name].
    #[arg(long)]
    pub name: Option<HostName>,
    /// Where other hosts reach this one [default: from where it reaches the coordinator].
    #[arg(long)]
    pub address: Option<IpAddr>,
    /// Where it keeps everything [default: /var/lib/faultbed for root, else in the home directory].
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Where its sockets are; a short path [default: /run/faultbed for root].
    #[arg(long)]
    pub runtime: Option<PathBuf>,
    /// A label of this host; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Stay in this process instead of starting a service.
    #[arg(long)]
    pub foreground: bool,
    /// How it logs, to its standard error.
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => {
            Ok((key.to_owned(), value.to_owned()))
        }
        Some(_) | None => Err("write KEY=VALUE, such as rack=a".to_owned()),
    }
}

/// `faultbed-agent down`.
#[derive(Debug, Clone, clap::Args)]
pub struct DownArgs {
    /// The agent's directory.
    #[arg(long)]
    pub dir: PathBuf,
    /// Delete the nodes' data and logs too.
    #[arg(long)]
    pub wipe: bool,
    /// Where the agent's sockets are; found in its records where it is not said.
    #[arg(long)]
    pub runtime: Option<PathBuf>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one object each line.
    Json,
}
