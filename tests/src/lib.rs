//! Whole labs for tests: real processes, driven through the command line as a user would.

pub mod bins;
pub mod field;
pub mod heard;
pub mod kernel;
pub mod lab;
pub mod mini;
pub mod wait;
pub mod wires;
