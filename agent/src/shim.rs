//! The parent process of one node: it outlives the agent, keeps the log, names the connections.
//!
//! ```text
//! agent ── starter ── shim ──── node ── …        starter ends once the node was executed
//!                      │ main thread: signals, log pipe, pause timer, the dead
//!                      └ connects thread: answers seccomp notifications, nothing else
//! ```
//!
//! The shim is the node's parent and the subreaper of all it starts, in a session of its own. It
//! takes orders by files and signals (see `node`): SIGHUP reads `orders.json` again, SIGTERM ends
//! the whole tree. Its death ends the node by the parent-death signal. It is one small process for
//! each node, so it has no runtime, allocates little, and keeps its private memory below 1 MB.

mod child;
mod connects;
mod filter;
mod handshake;
mod output;
mod peer_memory;
mod ports;
mod sockaddr;
mod stall;
mod start;
mod supervise;
mod tree;

use std::{path::Path, process::ExitCode};

/// Runs the node of one run directory: returns to the caller, the starter, once the node was
/// executed or could not be, with a [`StartReport`](crate::node::launch::StartReport) on standard
/// output; and in the shim process itself when the run is over.
///
/// Must be called first of all in `main`: it forks, and closes every descriptor it inherited.
#[must_use]
pub fn main(run_dir: &Path) -> ExitCode {
    start::main(run_dir)
}
