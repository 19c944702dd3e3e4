//! `faultbed`: the command line.

fn main() {}
