//! Exact questions to the kernel's socket tables (sock_diag(7)): which socket has these two ends?

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{FromRawFd, OwnedFd},
    time::Duration,
};

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
/// Where `idiag_state` is.
const STATE_AT: usize = 16 + 1;
/// More than the kernel says of one socket where nothing optional is asked for. What is longer is cut
/// off behind what is read.
const ANSWER_BYTES_MAX: usize = 512;

/// What the kernel says of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// As in `/proc/net/tcp`.
    pub(crate) state: u8,
    /// `None` where no process owns it any more.
    pub(crate) inode: Option<u32>,
}

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

    /// The socket that has `local` and `remote` as its own ends; `None` where the kernel knows no
    /// such socket. Where there is only a listener on `local`, the answer is that.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn find(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> io::Result<Option<Found>> {
        self.sequence = self.sequence.wrapping_add(1);
        rustix::net::send(
            &self.netlink,
            &question(self.sequence, local, remote),
            rustix::net::SendFlags::empty(),
        )?;
        let mut answer = [0_u8; ANSWER_BYTES_MAX];
        let (length, _) =
            rustix::net::recv(&self.netlink, &mut answer[..], rustix::net::RecvFlags::empty())?;
        Ok(found_in(&answer[..length]))
    }
}

/// What an answer of the kernel says; `None` where it is an error, or too short.
fn found_in(answer: &[u8]) -> Option<Found> {
    let kind = answer.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    if kind != Some(SOCK_DIAG_BY_FAMILY) {
        return None;
    }
    let inode = answer.get(INODE_AT..INODE_AT + 4)?;
    let inode = u32::from_ne_bytes([inode[0], inode[1], inode[2], inode[3]]);
    Some(Found { state: *answer.get(STATE_AT)?, inode: Some(inode).filter(|inode| *inode != 0) })
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
        answer[STATE_AT] = 1;
        assert_eq!(found_in(&answer), Some(Found { state: 1, inode: Some(4242) }));
        faultbed_fuzz::fuzz!([answer], |answer: &[u8]| {
            let _nobody = found_in(answer);
        });
    }
}
