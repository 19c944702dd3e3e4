//! Every decision of the coordinator, pure: lab, reports, request and time in; lab, reply, status, events out.

pub mod chores;
pub mod clock;
pub mod edit;
pub mod events;
pub mod exec;
pub mod status;

#[cfg(test)]
mod fixtures;
