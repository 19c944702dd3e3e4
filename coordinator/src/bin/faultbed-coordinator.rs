//! `faultbed-coordinator`: the daemon that keeps the lab's desired state.

use clap::Parser as _;
use faultbed_coordinator::daemon;

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let args = daemon::Args::parse();
    daemon::start_log(args.log_format);
    daemon::run(args).await
}
