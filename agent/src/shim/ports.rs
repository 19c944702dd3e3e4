//! Which port of its block a node dials another host from.
//!
//! A port may be taken at once from a connection that has ended (TIME_WAIT) and is shared by
//! connections to different destinations, so the one thing that counts is whether this very
//! connection is there already. The kernel is asked exactly that, in the network namespace of the
//! node: without asking, a port that is in use makes the node's own connect fail.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use faultbed_common::port_block::PortBlock;
use rustix::{
    io::Errno,
    net::{bind, sockopt},
};

use super::sockaddr::bindable;
use crate::socket_tables::SocketTables;

/// Ports tried for one connect, while its caller waits: some milliseconds at the most.
const TRIES_MAX: u16 = 2048;
/// States of a socket that gives way to a new connection of the same ends.
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;

/// The next port, and the way to ask for it.
pub(super) struct Ports {
    tables: Option<SocketTables>,
    /// Counts up; its remainder by the size of the block is the next port.
    cursor: u16,
    /// Whether the kernel gives the ends of a connection in TIME_WAIT to a new one.
    takes_time_wait: bool,
}

impl Ports {
    /// Looks at what the kernel allows. It is the one thread's that answers for connects.
    pub(super) fn open() -> Self {
        let timestamps = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_timestamps");
        let takes_time_wait = timestamps.map_or(true, |text| text.trim() != "0");
        Self { tables: SocketTables::open().ok(), cursor: 0, takes_time_wait }
    }

    /// Binds a socket to the next port of the block from which `destination` can be dialled.
    ///
    /// # Errors
    /// `ADDRINUSE` where no port is free, `INVAL` where the socket is bound already, and whatever
    /// else the kernel says.
    pub(super) fn bind(
        &mut self,
        socket: &OwnedFd,
        (address, block): (IpAddr, PortBlock),
        destination: SocketAddr,
        is_v6: bool,
    ) -> Result<(), Errno> {
        sockopt::set_socket_reuseaddr(socket, true)?;
        for _ in 0..block.count.min(TRIES_MAX) {
            let port = block.first.saturating_add(self.cursor % block.count);
            self.cursor = self.cursor.wrapping_add(1);
            let source = SocketAddr::new(address, port);
            if !self.is_free(source, destination) {
                continue;
            }
            let own = bindable(source, is_v6).ok_or(Errno::ADDRNOTAVAIL)?;
            match bind(socket, &own) {
                // A listener has it, or a socket that does not share.
                Err(Errno::ADDRINUSE) => {}
                other => return other,
            }
        }
        Err(Errno::ADDRINUSE)
    }

    /// Whether a connection of these ends can begin. Without an answer it is tried.
    fn is_free(&mut self, source: SocketAddr, destination: SocketAddr) -> bool {
        let Some(tables) = &mut self.tables else { return true };
        match tables.find(source, destination) {
            Ok(None) | Err(_) => true,
            Ok(Some(found)) => match found.state {
                TIME_WAIT => self.takes_time_wait,
                CLOSE => true,
                _ => false,
            },
        }
    }
}
