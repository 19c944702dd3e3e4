//! `faultbed-agent`: the daemon of one host; also the shim and the proxy, told apart by the first argument.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    // Before any runtime and argument parser: a shim forks, and must stay small.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|verb| verb == "shim") {
        return match arguments.next() {
            Some(run_dir) => faultbed_agent::shim::main(Path::new(&run_dir)),
            None => ExitCode::from(2),
        };
    }
    ExitCode::SUCCESS
}
