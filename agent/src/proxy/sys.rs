//! The system calls of the data plane that no library offers: socket options and counters.
//!
//! Everything unsafe of the proxy is in this file and below it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

pub(crate) mod bpf;
pub(crate) mod stamps;

/// Hop count that no packet of a peer has: the kernel drops whatever arrives with less.
const HOPS_MAX: libc::c_int = 255;
/// `SK_MEMINFO_DROPS`: the place of the drop count in what SO_MEMINFO answers.
const MEMINFO_DROPS: usize = 8;
/// How many numbers SO_MEMINFO answers.
const MEMINFO_LEN: usize = 9;
const SO_MEMINFO: libc::c_int = 55;
const TCP_RTO_MAX_MS: libc::c_int = 44;
/// `TCP_RTO_MAX`: what the kernel does by itself.
const BACKOFF_DEFAULT: Duration = Duration::from_secs(120);
const SIOCOUTQNSD: libc::Ioctl = 0x894B;
/// Unsent bytes above which a socket is not writable. A receiver that keeps up leaves none unsent;
/// with one that does not, this is what a cut of bytes lets pass besides its window (a cut of packets
/// has the peer drop it too). Half of it costs a fifth more processor time; more gains nothing.
const NOTSENT_BYTES_MAX: libc::c_int = 512 * 1024;

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000) + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Sets the niceness of the calling thread alone, from -20 (first) to 19; on Linux it is a thread's.
///
/// # Errors
/// As the system says: below zero it takes `CAP_SYS_NICE`.
pub(crate) fn set_niceness(niceness: i32) -> io::Result<()> {
    let thread = rustix::thread::gettid();
    Ok(rustix::process::setpriority_process(Some(thread), niceness)?)
}

#[allow(unsafe_code, reason = "socket options that rustix does not offer")]
fn set_option<T>(fd: &impl AsFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: `value` is valid for reads of its own size, and the descriptor is open while borrowed.
    let answer = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has a socket that will dial come from an address of this machine, at a port that the dial chooses.
///
/// # Errors
/// As the system says: no such address here.
pub(crate) fn come_from(fd: &impl AsFd, source: IpAddr) -> io::Result<()> {
    let on: libc::c_int = 1;
    set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &on)?;
    Ok(rustix::net::bind(fd, &SocketAddr::new(source, 0))?)
}

/// Makes a socket deaf: the kernel drops every segment that arrives, before TCP sees it.
///
/// # Errors
/// As the system says; no privilege is needed.
pub(crate) fn set_deaf(fd: &impl AsFd, local: IpAddr, deaf: bool) -> io::Result<()> {
    let hops: libc::c_int = if deaf { HOPS_MAX } else { 0 };
    match local {
        IpAddr::V4(_) => set_option(fd, libc::IPPROTO_IP, libc::IP_MINTTL, &hops),
        IpAddr::V6(_) => set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, &hops),
    }
}

/// Makes a socket mute and deaf: signs all it sends with a key that its peer does not have, and
/// expects the same, so that both kernels drop every segment of the connection. What this adds to
/// [`set_deaf`] is that nothing of ours leaves either: no probe, no retransmission, no FIN or RST,
/// not even when this process dies.
///
/// # Errors
/// Where the kernel has no such signatures (TCP_MD5SIG); no privilege is needed.
pub(crate) fn set_mute(fd: &impl AsFd, peer: SocketAddr, mute: bool) -> io::Result<()> {
    let mut signature = Signature::default();
    match peer {
        SocketAddr::V4(peer) => {
            signature.address[..2].copy_from_slice(&2_u16.to_ne_bytes());
            signature.address[4..8].copy_from_slice(&peer.ip().octets());
        }
        SocketAddr::V6(peer) => {
            signature.address[..2].copy_from_slice(&10_u16.to_ne_bytes());
            signature.address[8..24].copy_from_slice(&peer.ip().octets());
        }
    }
    if mute {
        signature.key_length = u16::try_from(MUTE_KEY.len()).unwrap_or(0);
        signature.key[..MUTE_KEY.len()].copy_from_slice(MUTE_KEY);
    }
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &signature)
}

/// A key that no peer has; it is no secret.
const MUTE_KEY: &[u8] = b"faultbed: this link is cut";

/// `struct tcp_md5sig`.
#[repr(C)]
struct Signature {
    address: [u8; 128],
    flags: u8,
    prefix: u8,
    key_length: u16,
    interface: i32,
    key: [u8; 80],
}

impl Default for Signature {
    fn default() -> Self {
        Self { address: [0; 128], flags: 0, prefix: 0, key_length: 0, interface: 0, key: [0; 80] }
    }
}

/// Bounds what the kernel takes before it has sent it.
///
/// # Errors
/// As the system says.
pub(crate) fn bound_unsent(fd: &impl AsFd) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &NOTSENT_BYTES_MAX)
}

/// Bounds the time between retransmissions, so that what this socket had sent before a cut arrives
/// soon after the heal. 0 is the kernel's own bound.
///
/// # Errors
/// Where the kernel is older than 6.15.
pub(crate) fn bound_backoff(fd: &impl AsFd, bound: Duration) -> io::Result<()> {
    let milliseconds = if bound.is_zero() { BACKOFF_DEFAULT } else { bound };
    let milliseconds = libc::c_int::try_from(milliseconds.as_millis()).map_err(io::Error::other)?;
    set_option(fd, libc::IPPROTO_TCP, TCP_RTO_MAX_MS, &milliseconds)
}

/// One instruction of classic BPF.
pub(crate) type Instruction = libc::sock_filter;

/// Gives the reuseport group of `fd` a program that chooses the listener of each SYN.
///
/// # Errors
/// `InvalidInput` where the program is too long or wrong.
pub(crate) fn attach_steering(fd: &impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let len = u16::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "program is too long"))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Has the kernel run a program on each segment that arrives at a TCP socket: what it answers 0 to is
/// dropped before TCP sees it. Another program takes the place of this one at once.
///
/// # Errors
/// On current kernels without CAP_NET_ADMIN.
pub(crate) fn attach_filter(fd: &impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let len = u16::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "program is too long"))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Takes the program of a socket away, if it has one.
pub(crate) fn detach_filter(fd: &impl AsFd) {
    let nothing: libc::c_int = 0;
    let _has_none = set_option(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &nothing);
}

/// Segments that the kernel dropped on this socket since it was made.
#[allow(unsafe_code, reason = "SO_MEMINFO has no wrapper")]
pub(crate) fn drops(fd: &impl AsFd) -> u32 {
    let mut info = [0_u32; MEMINFO_LEN];
    let Ok(mut length) = libc::socklen_t::try_from(size_of_val(&info)) else { return 0 };
    // SAFETY: `info` is valid for writes of `length` bytes.
    let answer = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // An older kernel counts fewer things; then there is nothing to tell.
    if answer == 0 { info[MEMINFO_DROPS] } else { 0 }
}

/// Bytes written to a socket that the kernel has not sent yet.
pub(crate) fn unsent_bytes(fd: &impl AsFd) -> u64 {
    count_bytes(fd, SIOCOUTQNSD)
}

/// Bytes written to a socket that its peer has not acknowledged, sent or not.
pub(crate) fn unacknowledged_bytes(fd: &impl AsFd) -> u64 {
    count_bytes(fd, libc::TIOCOUTQ)
}

#[allow(unsafe_code, reason = "these requests have no wrapper")]
fn count_bytes(fd: &impl AsFd, request: libc::Ioctl) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write one integer, which `bytes` is.
    let answer = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut bytes) };
    if answer == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Lets this process open as many descriptors as it is allowed to.
#[allow(unsafe_code, reason = "one struct in, one struct out")]
pub(crate) fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes and reads.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            let _best_effort = libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
