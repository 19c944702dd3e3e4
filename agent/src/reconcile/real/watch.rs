//! Waits for the end of processes that are not our children, without polling.

use std::os::fd::OwnedFd;

use tokio::io::{Interest, unix::AsyncFd};

/// Is over when the descriptor is readable; at once where it cannot be watched.
pub(super) async fn readable(fd: Option<OwnedFd>) {
    let Some(watched) = fd.and_then(register) else { return };
    watched.readable().await.ok();
}

#[allow(unsafe_code, reason = "the runtime cannot see that an owned descriptor stays the same")]
fn register(fd: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and names one descriptor, as long as it lives; the AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.ok()
}
