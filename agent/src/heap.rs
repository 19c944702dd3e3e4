//! What the processes that live long keep of memory that is free again.

/// Free memory at the heap's end above this goes back to the kernel, in bytes: glibc's figure, which
/// it otherwise raises by itself, to 64 MiB.
#[cfg(target_env = "gnu")]
const KEEP_BYTES: libc::c_int = 128 * 1024;
/// What is as large as this is mapped alone and goes back when it is freed, in bytes: the largest
/// chunk that a link holds back. A queue of many MiB leaves nothing behind so.
#[cfg(target_env = "gnu")]
const MAP_BYTES: libc::c_int = 64 * 1024;

/// One heap for all threads, which returns what it does not use. A heap for each thread costs the
/// shim some 100 kB for a thread that does not allocate, and keeps for the proxy what the largest
/// queue of each worker once took.
pub(crate) fn stay_small() {
    #[cfg(target_env = "gnu")]
    for (what, number) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_TRIM_THRESHOLD, KEEP_BYTES),
        (libc::M_MMAP_THRESHOLD, MAP_BYTES),
    ] {
        #[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
        // SAFETY: sets a number inside the allocator; there is one thread yet.
        unsafe {
            libc::mallopt(what, number);
        }
    }
}
