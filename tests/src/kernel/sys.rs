//! What a client asks its kernel about a socket, and nothing that the socket's peer could know.

use std::{
    io,
    net::TcpStream,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

/// How long the kernel's answer is, as far as it is read here.
const INFO_BYTES: usize = 104;

/// `struct tcp_info`, as far as it is compared. Counters are the kernel's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Info {
    /// Time-outs in a row without an answer.
    pub(super) retransmits: u8,
    /// How often the time-out was doubled.
    pub(super) backoff: u8,
    /// Segments sent and not acknowledged.
    pub(super) unacked: u32,
    /// Segments sent again since the connection began.
    pub(super) total_retrans: u32,
}

/// What the client's kernel knows of a connection.
///
/// # Panics
/// Where the socket is none of TCP.
#[allow(unsafe_code, reason = "TCP_INFO has no wrapper")]
pub(super) fn info(socket: &impl AsFd) -> Info {
    let mut raw = [0_u8; INFO_BYTES];
    let mut length = libc::socklen_t::try_from(raw.len()).expect("short");
    // SAFETY: `raw` is valid for writes of `length` bytes.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            raw.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(answer, 0, "ask for tcp_info: {}", io::Error::last_os_error());
    let word = |at: usize| u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
    Info { retransmits: raw[2], backoff: raw[4], unacked: word(24), total_retrans: word(100) }
}

/// Bytes in the send queue: not sent, or not acknowledged.
///
/// # Panics
/// Where the socket is none of TCP.
#[allow(unsafe_code, reason = "SIOCOUTQ has no wrapper")]
pub(super) fn send_queue(socket: &impl AsFd) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one integer, which `bytes` is.
    let answer = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(answer, 0, "ask for the send queue: {}", io::Error::last_os_error());
    u64::try_from(bytes).unwrap_or(0)
}

/// Bounds how often a SYN is sent again.
///
/// # Panics
/// Where the socket is none of TCP.
#[allow(unsafe_code, reason = "TCP_SYNCNT has no wrapper")]
pub(super) fn set_syn_retries(socket: &impl AsFd, retries: i32) {
    let length = libc::socklen_t::try_from(size_of::<i32>()).expect("short");
    // SAFETY: the value is valid for reads of `length` bytes.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SYNCNT,
            (&raw const retries).cast(),
            length,
        )
    };
    assert_eq!(answer, 0, "bound SYNs: {}", io::Error::last_os_error());
}

/// Gives the calling thread a network namespace of its own.
///
/// # Errors
/// Where this user may not.
#[allow(unsafe_code, reason = "rustix warns of other flags than this one")]
pub(super) fn leave_network() -> Result<(), Errno> {
    // SAFETY: the flag does not touch descriptors, memory or the file system of the thread.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
}

/// Waits until poll says one of `flags`, an error or a hang-up; what it said, `None` when time is up.
pub(super) fn wait(socket: &impl AsFd, flags: PollFlags, end: Instant) -> Option<PollFlags> {
    loop {
        let left = end.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
        let timeout = rustix::time::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut polled = [PollFd::new(socket, flags)];
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Some(polled[0].revents()),
            Err(_) => return None,
        }
        if Instant::now() >= end {
            return None;
        }
    }
}

/// Waits until a socket has failed or ended; its error, and when that was seen. `None` when time is up.
pub(super) fn wait_error(stream: &TcpStream, end: Instant) -> Option<(String, Instant)> {
    let flags = wait(stream, PollFlags::empty(), end)?;
    let at = Instant::now();
    let error = stream.take_error().ok().flatten();
    let word = match error {
        Some(error) => name(&error),
        None => format!("{flags:?}"),
    };
    Some((word, at))
}

/// The name of an error, as manuals write it.
pub(super) fn name(error: &io::Error) -> String {
    let Some(number) = error.raw_os_error() else { return error.kind().to_string() };
    match number {
        libc::ETIMEDOUT => "ETIMEDOUT".to_owned(),
        libc::ECONNRESET => "ECONNRESET".to_owned(),
        libc::ECONNREFUSED => "ECONNREFUSED".to_owned(),
        libc::EPIPE => "EPIPE".to_owned(),
        libc::EHOSTUNREACH => "EHOSTUNREACH".to_owned(),
        libc::EAGAIN => "EAGAIN".to_owned(),
        other => format!("errno {other}"),
    }
}
