//! The coordinator of a lab: desired state in a store, host specs to agents, answers to people.
//!
//! `store` is the shell around etcd or the embedded file; `decide` is pure; `service` and `http`
//! speak to the outside; `cli` is the command line, which sees nothing else of this crate.

pub mod cli;
pub mod decide;
pub mod mirror;
pub mod store;
