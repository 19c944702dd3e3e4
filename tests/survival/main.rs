//! What a lab of several hosts survives: row by row, with a client that must not notice.

use std::process::ExitCode;

fn main() -> ExitCode {
    faultbed_tests::field::matrix::main(
        std::env::args().skip(1).filter(|word| !word.starts_with('-')),
    )
}
