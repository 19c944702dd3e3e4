//! The agent of one host: makes its share of the lab true and reports what it sees.
//!
//! The same binary is three programs: the agent (`reconcile` and what it uses), the parent of one
//! node (`shim`), and the data plane (`proxy`). The last two outlive the first.

pub mod agent;
pub mod allow;
pub mod args;
pub mod binaries;
pub mod bypass;
pub mod canary;
pub mod clock;
pub mod doctor;
pub mod down;
pub mod exec;
pub mod facts;
pub mod fast_heal;
mod heap;
pub mod identity;
pub mod join;
pub mod ledger;
pub mod line;
pub mod listeners;
pub mod logs;
pub mod node;
pub mod probe;
pub mod proxy;
pub mod reconcile;
pub mod reload;
pub mod search;
pub mod session;
pub mod settings;
pub mod shim;
mod socket_tables;
pub mod sockets;
