//! The language of a lab and its pure core. Nothing here reads a clock, a disk, the network or dice.
//!
//! Reading order: what people write (`name`, `duration`, `effect`, `spec`, `fault`, `preset`,
//! `blueprint`, `program`, `file`), what the lab decided (`lab`, `place`, `target`, `shape`), what hosts are told
//! (`compile`, `host_spec`, `proxy_spec`, `rules`), what they answer (`report`), and what people see
//! (`status`, `event`, `edit`); beside all of it, who they are (`trust`).

pub mod blueprint;
pub mod check;
pub mod compile;
pub mod duration;
pub mod edit;
pub mod effect;
pub mod event;
pub mod exec;
pub mod expr;
pub mod fault;
pub mod file;
pub mod generation;
pub mod host_spec;
mod jinja;
pub mod lab;
pub mod link;
pub mod logs;
pub mod name;
pub mod nearest;
pub mod place;
pub mod port_block;
pub mod preset;
pub mod probe;
pub mod program;
pub mod proxy_spec;
pub mod render;
pub mod report;
pub mod rules;
pub mod search;
pub mod session;
pub mod shape;
pub mod shared;
pub mod spec;
pub mod status;
pub mod target;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod trust;
