//! Sockets of the load: dialled from a chosen address, with a chosen congestion control.

use std::{
    io,
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

#[allow(unsafe_code, reason = "IP_BIND_ADDRESS_NO_PORT has no wrapper")]
fn choose_port_late(fd: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
    // SAFETY: `on` is valid for reads of `length` bytes, and the descriptor is open while borrowed.
    let answer = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            length,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
