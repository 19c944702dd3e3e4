//! Collects programs that no cluster names any more.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;

use super::{Contents, used};
use crate::mirror::MirrorHandle;

/// How often it is looked what can go.
const COLLECT_EVERY: Duration = Duration::from_secs(600);

/// Collects now and then, until `stop`.
pub async fn collect_for_ever(
    contents: Arc<Contents>,
    mirror: Arc<MirrorHandle>,
    stop: CancellationToken,
) {
    let mut every = tokio::time::interval(COLLECT_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let used = used(&mirror.now().lab);
        let contents = Arc::clone(&contents);
        let collect = move || contents.collect(&used, SystemTime::now());
        match tokio::task::spawn_blocking(collect).await {
            Ok(0) | Err(_) => {}
            Ok(gone) => tracing::info!(gone, "programs that no cluster names are gone"),
        }
    }
}
