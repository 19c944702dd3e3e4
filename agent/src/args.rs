//! The command line of `faultbed-agent`, as typed.

use std::{net::IpAddr, path::PathBuf};

use clap::{Parser, Subcommand, ValueEnum};
use faultbed_common::name::{HostName, LabName};

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

/// `faultbed-agent agent`.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentArgs {
    /// The lab it serves.
    #[arg(long)]
    pub lab: LabName,
    /// The host it is the agent of.
    #[arg(long)]
    pub host: HostName,
    /// Where other hosts reach this one.
    #[arg(long)]
    pub address: IpAddr,
    /// Where it keeps everything of its nodes.
    #[arg(long)]
    pub dir: PathBuf,
    /// Where its sockets are; a short path.
    #[arg(long)]
    pub runtime: PathBuf,
    /// The coordinator: `unix:PATH`, or `http://ADDRESS:PORT`.
    #[arg(long)]
    pub coordinator: String,
    /// How it logs, to its standard error.
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
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
