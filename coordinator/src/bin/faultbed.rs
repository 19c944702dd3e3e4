//! `faultbed`: the command line.

fn main() -> std::process::ExitCode {
    faultbed_coordinator::cli::main()
}
