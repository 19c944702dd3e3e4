//! When bytes arrived, by the kernel's own stamps: a thread that is woken late reads them late.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd},
};

use rustix::{io::Errno, time::ClockId};

use super::{nanoseconds, set_option};

/// Bytes are never taken for older than this, in nanoseconds: more than a busy processor keeps a
/// thread waiting, and little enough that a step of the wall clock, in which the kernel stamps, cannot
/// make much of a delay disappear.
const AGE_NS_MAX: u64 = 10_000_000;
/// Room for one stamp and its header, in words.
const CONTROL_WORDS: usize = 8;

/// Has the kernel stamp what arrives, or no more of it. The first socket of a machine that asks has
/// every packet stamped, which costs each some tens of nanoseconds.
///
/// # Errors
/// As the system says; no privilege is needed.
pub(crate) fn set(fd: &impl AsFd, on: bool) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &libc::c_int::from(on))
}

/// Reads without waiting, and tells how many nanoseconds ago the last of these bytes arrived; `None`
/// where the kernel has not stamped it, such as what came before [`set`].
///
/// # Errors
/// As `recv`: `AGAIN` where nothing has arrived.
#[allow(unsafe_code, reason = "rustix reads no stamps")]
pub(crate) fn recv(fd: &impl AsFd, into: &mut [u8]) -> Result<(usize, Option<u64>), Errno> {
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut control = [0_u64; CONTROL_WORDS];
    // SAFETY: all zeroes is a message header without anything, whatever padding a platform has.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // Wider with some C libraries than with others.
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header names one part, valid for writes of its length, and control words valid for
    // writes of theirs, aligned as control headers need; all of them outlive the call.
    let count =
        unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let Ok(count) = usize::try_from(count) else {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    };
    // SAFETY: the kernel has filled the header and the control words that it names.
    let stamp_ns = unsafe { stamp_of(&message) };
    let now_ns = nanoseconds(ClockId::Realtime);
    let age = |stamp_ns: u64| now_ns.saturating_sub(stamp_ns).min(AGE_NS_MAX);
    Ok((count, stamp_ns.map(age)))
}

/// The stamp among the control messages, in nanoseconds of CLOCK_REALTIME.
///
/// # Safety
/// The header and its control words are as `recvmsg` left them.
#[allow(unsafe_code, reason = "control messages are walked by pointer")]
unsafe fn stamp_of(message: &libc::msghdr) -> Option<u64> {
    // SAFETY: as this function asks of its caller.
    let first = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: a first header that is not null lies within the control words.
    let header = unsafe { first.as_ref() }?;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
        return None;
    }
    // SAFETY: a message of this type carries a timespec, which may lie unaligned.
    let stamp: libc::timespec =
        unsafe { libc::CMSG_DATA(first).cast::<libc::timespec>().read_unaligned() };
    let seconds = u64::try_from(stamp.tv_sec).ok()?;
    Some(seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(stamp.tv_nsec).ok()?))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
        time::{Duration, Instant},
    };

    use super::*;

    /// The age of one byte that is read only after it has lain for `lies`.
    fn age_after(lies: Duration) -> Option<u64> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut from = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (to, _) = listener.accept().unwrap();
        set(&to, true).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            from.write_all(b"x").unwrap();
            let sent = Instant::now();
            while sent.elapsed() < lies {
                std::thread::yield_now();
            }
            let mut byte = [0];
            // The kernel begins to stamp a moment after it was asked.
            match recv(&to, &mut byte) {
                Ok((1, Some(age_ns))) => return Some(age_ns),
                _ => assert!(Instant::now() < end, "the kernel does not stamp"),
            }
        }
    }

    #[test]
    fn bytes_are_as_old_as_they_lay_unread_and_never_older_than_the_bound() {
        let age_ns = age_after(Duration::from_millis(3)).unwrap();
        assert!((3_000_000..=AGE_NS_MAX).contains(&age_ns), "{age_ns}");
        assert_eq!(age_after(Duration::from_nanos(AGE_NS_MAX * 2)), Some(AGE_NS_MAX));
    }
}
