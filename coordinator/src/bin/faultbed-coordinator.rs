//! `faultbed-coordinator`: the daemon that keeps the lab's desired state.

fn main() {}
