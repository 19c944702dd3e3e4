//! `faultbed-coordinator`: the daemon that keeps the lab's desired state.

use std::process::ExitCode;

use clap::Parser as _;
use faultbed_coordinator::daemon;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let args = daemon::Args::parse();
    daemon::start_log(args.log_format);
    // One line, whatever RUST_BACKTRACE says: `up` shows the last lines of the log.
    match daemon::run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
