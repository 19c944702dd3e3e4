//! The coordinator of a lab: desired state in a store, host specs to agents, answers to people.
//!
//! `store` is the shell around etcd or the embedded file; `decide` is pure; `service` and `http`
//! speak to the outside; `cli` is the command line, which sees nothing else of this crate.

pub mod chore;
pub mod cli;
pub mod content;
pub mod daemon;
pub mod decide;
pub mod editor;
pub mod http;
pub mod journal;
pub mod listen;
pub mod mirror;
pub mod pki;
pub mod runtime;
pub mod service;
pub mod sessions;
pub mod store;
pub mod view;
