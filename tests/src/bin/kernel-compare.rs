//! Prints the table of `docs/kernel.md`: what a client sees of a real link, and of ours.
//!
//! Arguments choose cases by words in their names; none chooses all.

use std::process::ExitCode;

fn main() -> ExitCode {
    faultbed_tests::kernel::main(std::env::args().skip(1))
}
