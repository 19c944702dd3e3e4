//! Asks the kernel what it can do, without changing anything.

use std::{io, mem::MaybeUninit};

use rustix::io::Errno;

/// How far the kernel's notifications about system calls go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notify {
    /// As far as we want.
    Killable,
    /// Without `WAIT_KILLABLE_RECV`, so that signals can restart a waiting call again and again.
    Plain,
    /// Not at all.
    None,
}

/// What of `SECCOMP_FILTER_FLAG_NEW_LISTENER` there is. The kernel looks at the flags before it
/// looks at the program, so that without a program it says EFAULT to flags that it knows, and EINVAL
/// to others (seccomp(2)); no filter is ever put on this process.
pub(super) fn notify() -> Notify {
    let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    if knows(listener | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Notify::Killable
    } else if knows(listener) {
        Notify::Plain
    } else {
        Notify::None
    }
}

#[allow(unsafe_code, reason = "seccomp has no safe wrapper")]
fn knows(flags: libc::c_ulong) -> bool {
    // SAFETY: the program is a null pointer, which the kernel refuses; nothing else is passed.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    answer < 0 && io::Error::last_os_error().raw_os_error() == Some(Errno::FAULT.raw_os_error())
}

/// Whether something keeps the clock right, by the kernel's own account: `None` where it does not say.
#[allow(unsafe_code, reason = "adjtimex has no safe wrapper")]
pub(super) fn clock_is_kept() -> Option<bool> {
    let mut answer = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: zeroes are a valid `timex`, whose `modes` of 0 asks and changes nothing; the kernel
    // writes into it and keeps no pointer.
    let state = unsafe { libc::adjtimex(answer.as_mut_ptr()) };
    // SAFETY: it was valid before the call already.
    let status = unsafe { answer.assume_init() }.status;
    (state >= 0).then_some(state != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0)
}
