//! The data plane as its users see it: real sockets on loopback, the engine's threads in this process.

mod bytes;
mod connections;
mod control;
mod control_fuzz;
mod cuts;
mod delays;
mod far;
mod forward;
mod ground;
mod handover;
mod harness;
mod loss;
mod origin;
mod queues;
mod rates;
mod rounds;
mod stream_property;
mod streams;

pub(crate) use harness::eventually_within;
