//! The data plane as its users see it: real sockets on loopback, the engine's threads in this process.

mod control;
mod cuts;
mod delays;
mod forward;
mod handover;
mod harness;
mod streams;
