//! The system calls of the data plane that no library offers: socket options, counters, exact socket queries.
//!
//! Everything unsafe of the proxy is in this file and below it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
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
const SIOCOUTQNSD: libc::c_ulong = 0x894B;
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
fn count_bytes(fd: &impl AsFd, request: libc::c_ulong) -> u64 {
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

/// A connection to the kernel's socket tables. Never asks for a dump: only exact questions.
#[derive(Debug)]
pub(crate) struct SocketTables {
    netlink: OwnedFd,
    sequence: u32,
}

const NETLINK_SOCK_DIAG: libc::c_int = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Header of a netlink message, and the request `inet_diag_req_v2` that follows it.
const QUESTION_BYTES: usize = 16 + 56;
/// Where `idiag_inode` is in an answer: after the header of 16 bytes, 68 bytes into `inet_diag_msg`.
const INODE_AT: usize = 16 + 68;
const ANSWER_BYTES_MAX: usize = 8192;

impl SocketTables {
    /// Opens the connection. It belongs to the network namespace of the calling thread.
    ///
    /// # Errors
    /// As the system says; no privilege is needed.
    #[allow(unsafe_code, reason = "a netlink socket of a family that rustix does not name")]
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: no pointers are passed, and the descriptor is owned by nobody else.
        let netlink = unsafe {
            let fd = libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                NETLINK_SOCK_DIAG,
            );
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        // The kernel answers at once; the bound is for what nobody has thought of.
        let patience = Some(Duration::from_secs(1));
        rustix::net::sockopt::set_socket_timeout(
            &netlink,
            rustix::net::sockopt::Timeout::Recv,
            patience,
        )?;
        Ok(Self { netlink, sequence: 0 })
    }

    /// The inode of the socket that has `local` and `remote` as its own ends; `None` where the
    /// kernel knows no such socket, or nobody owns it any more.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn find_inode(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> io::Result<Option<u32>> {
        self.sequence = self.sequence.wrapping_add(1);
        rustix::net::send(
            &self.netlink,
            &question(self.sequence, local, remote),
            rustix::net::SendFlags::empty(),
        )?;
        let mut answer = [0_u8; ANSWER_BYTES_MAX];
        let (length, _) =
            rustix::net::recv(&self.netlink, &mut answer[..], rustix::net::RecvFlags::empty())?;
        Ok(inode_of(&answer[..length]))
    }
}

/// The inode in an answer of the kernel; `None` where it is an error, or nobody owns the socket.
fn inode_of(answer: &[u8]) -> Option<u32> {
    let kind = answer.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    if kind != Some(SOCK_DIAG_BY_FAMILY) {
        return None;
    }
    let inode = answer.get(INODE_AT..INODE_AT + 4)?;
    Some(u32::from_ne_bytes([inode[0], inode[1], inode[2], inode[3]])).filter(|inode| *inode != 0)
}

/// `nlmsghdr` and `inet_diag_req_v2` for exactly one TCP socket.
fn question(sequence: u32, local: SocketAddr, remote: SocketAddr) -> [u8; QUESTION_BYTES] {
    let mut bytes = [0_u8; QUESTION_BYTES];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, &72_u32.to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &1_u16.to_ne_bytes());
    put(8, &sequence.to_ne_bytes());
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    put(16, &[u8::try_from(family).unwrap_or(0), 6, 0, 0]);
    put(20, &u32::MAX.to_ne_bytes());
    put(24, &local.port().to_be_bytes());
    put(26, &remote.port().to_be_bytes());
    for (at, address) in [(28, local.ip()), (44, remote.ip())] {
        match address {
            IpAddr::V4(address) => put(at, &address.octets()),
            IpAddr::V6(address) => put(at, &address.octets()),
        }
    }
    // No interface, and a cookie that matches every socket.
    put(64, &[0xff; 8]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_answers_about_a_socket() {
        let mut answer = vec![0; INODE_AT + 4];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[INODE_AT..].copy_from_slice(&4242_u32.to_ne_bytes());
        assert_eq!(inode_of(&answer), Some(4242));
        faultbed_fuzz::fuzz!([answer], |answer: &[u8]| {
            let _nobody = inode_of(answer);
        });
    }
}
