//! The agent's side of a node: its run directories, its shim, its records on disk.
//!
//! Every incarnation has a run directory `nodes/NODE/runs/0001`, used once. A shim process runs the
//! node and owns the directory's lock as long as it lives; it outlives the agent, which tells it
//! things through files and signals, and finds it again through its records:
//!
//! ```text
//! launch.json    agent -> shim   what to run                       LaunchSpec
//! orders.json    agent -> shim   destinations, pause (SIGHUP)      ShimOrders
//! asked.json     agent -> agent  the end was asked for             AskedRecord
//! run.json       shim -> agent   which processes these are         RunRecord
//! identity.json  shim -> agent   how connections are named         IdentityRecord
//! exit.json      shim -> agent   it is over, and how               ExitRecord
//! output.log     shim            what the node printed, rotated to .1, .2, …
//! lock                           held by the shim, or by a launch under way
//! ```
//!
//! Everything here is synchronous and needs no runtime.

pub mod inspect;
pub mod launch;
pub mod leftovers;
pub mod log_tail;
pub mod process;
pub mod records;
pub mod runs;
pub mod signal;
pub mod tags;

pub use crate::clock;
pub use inspect::{RunState, inspect};
pub use launch::{LaunchError, launch};
pub use leftovers::{Leftover, leftovers};
pub use log_tail::last_lines;
pub use process::{ProcStat, ProcessId};
pub use records::{
    AskedRecord, AskedWhy, ExitRecord, IdentityRecord, LaunchSpec, Pause, RunRecord, ShimOrders,
};
pub use runs::{newest_run, prune_runs, run_dir};
pub use signal::{kill_tree, set_orders, signal_node, watch};
