//! The agent's side of a node: its directories, its shim, its records on disk.
