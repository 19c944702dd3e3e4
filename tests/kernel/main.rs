//! What a client sees through our proxy is what it sees of a real link, case by case.

use std::process::ExitCode;

fn main() -> ExitCode {
    // What `cargo test` passes on is meant for other tests; words without dashes choose cases.
    faultbed_tests::kernel::main(std::env::args().skip(1).filter(|word| !word.starts_with('-')))
}
