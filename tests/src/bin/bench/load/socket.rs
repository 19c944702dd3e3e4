//! Sockets of the load: dialled from a chosen address, with a chosen congestion control.

use std::{
    io,
    mem::MaybeUninit,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};

/// What carries the bytes of the load's own sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Congestion {
    /// Cubic, or reno where cubic is not allowed.
    Plain,
    /// What the kernel gives.
    Default,
}

/// A connection from an address: the kernel chooses the port when it knows both ends, so that ports
/// of other connections are no hindrance.
///
/// # Errors
/// As the system says.
pub(crate) fn dial(
    source: Ipv4Addr,
    to: SocketAddr,
    congestion: Congestion,
) -> io::Result<TcpStream> {
    let fd = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        Some(ipproto::TCP),
    )?;
    choose_port_late(&fd)?;
    if congestion == Congestion::Plain {
        let _neither =
            ["cubic", "reno"].iter().find(|c| sockopt::set_tcp_congestion(&fd, c).is_ok());
    }
    rustix::net::bind(&fd, &SocketAddrV4::new(source, 0))?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    rustix::net::connect(&fd, &to)?;
    Ok(TcpStream::from(fd))
}

fn choose_port_late(fd: &OwnedFd) -> io::Result<()> {
    turn_on(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)
}

/// Has the kernel stamp what arrives.
///
/// # Errors
/// As the system says.
pub(crate) fn stamp_arrivals(stream: &TcpStream) -> io::Result<()> {
    turn_on(stream, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)
}

/// Fills `into`; returns how many nanoseconds ago the last byte had arrived, 0 where the kernel has not
/// stamped it.
///
/// # Errors
/// As the system says; the end of the stream is one too.
#[allow(unsafe_code, reason = "control messages have no wrapper that knows stamps")]
pub(crate) fn read_aged(stream: &TcpStream, into: &mut [u8]) -> io::Result<u64> {
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut control = [0_u64; 8];
    // SAFETY: all zeroes is a message header without anything.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the part and the control words are valid for writes of their lengths during the call.
    let count = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_WAITALL) };
    match usize::try_from(count) {
        Err(_) => return Err(io::Error::last_os_error()),
        Ok(count) if count < into.len() => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => {}
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    // SAFETY: the kernel has filled the header and the control words that it names.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: a first header that is not null lies within the control words.
    let Some(header) = (unsafe { first.as_ref() }) else { return Ok(0) };
    if header.cmsg_type != libc::SCM_TIMESTAMPNS {
        return Ok(0);
    }
    // SAFETY: a message of this type carries a timespec, which may lie unaligned.
    let came = unsafe { libc::CMSG_DATA(first).cast::<libc::timespec>().read_unaligned() };
    let age_ns = (now.tv_sec - came.tv_sec) * 1_000_000_000 + (now.tv_nsec - came.tv_nsec);
    Ok(u64::try_from(age_ns).unwrap_or(0))
}

#[allow(unsafe_code, reason = "options without a wrapper")]
fn turn_on(socket: &impl AsRawFd, level: i32, name: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
    // SAFETY: `on` is valid for reads of `length` bytes, and the descriptor is open while borrowed.
    let answer = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), length)
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
