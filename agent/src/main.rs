//! `faultbed-agent`: the daemon of one host; also the shim and the proxy, told apart by the first argument.

fn main() {}
