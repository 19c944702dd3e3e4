//! Tries a steering out: sends SYNs that must be kept out, and sees that they are.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{bind, connect, getsockname, sockopt},
};
use serde::{Deserialize, Serialize};

use super::new_bare;
use crate::proxy::carry::descriptor;

/// How often, and how long apart, it is looked whether such a SYN has arrived.
const TRIES_MAX: u32 = 200;
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// What came back to a SYN.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    Refusal,
}

/// Waits until something is so, but not for long; says whether it is. Loopback mostly delivers before
/// connect returns, and not where the kernel has put that off to a thread of its own under load.
pub(super) fn in_time(mut is_so: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    for _ in 0..TRIES_MAX {
        if is_so()? {
            return Ok(true);
        }
        std::thread::sleep(TRY_AGAIN);
    }
    is_so()
}

/// A SYN that was sent.
#[derive(Debug)]
pub(super) struct Syn {
    fd: OwnedFd,
    from: IpAddr,
    /// Already when it was sent.
    is_refused: bool,
}

/// Sends a SYN from an address; `None` where it is not one of this machine, or cannot dial there.
/// A port other than 0 is shared with who holds it.
pub(super) fn send_syn(from: SocketAddr, to: SocketAddr) -> io::Result<Option<Syn>> {
    let fd = new_bare(to)?;
    if from.port() != 0 {
        sockopt::set_socket_reuseaddr(&fd, true)?;
    }
    if bind(&fd, &from).is_err() {
        return Ok(None);
    }
    let from = from.ip();
    match connect(&fd, &to) {
        Err(Errno::INPROGRESS) | Ok(()) => Ok(Some(Syn { fd, from, is_refused: false })),
        Err(Errno::CONNREFUSED) => Ok(Some(Syn { fd, from, is_refused: true })),
        // A loopback that is down, or a source of another reach: nothing is proved either way.
        Err(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::INVAL | Errno::ADDRNOTAVAIL) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// What has come back to a SYN so far.
pub(super) fn heard(syn: &Syn) -> io::Result<Heard> {
    if syn.is_refused {
        return Ok(Heard::Refusal);
    }
    match sockopt::socket_error(&syn.fd)? {
        Err(Errno::CONNREFUSED) => Ok(Heard::Refusal),
        Err(error) => Err(error.into()),
        Ok(()) if rustix::net::getpeername(&syn.fd).is_ok() => {
            Err(io::Error::other(format!("a connection from {} was accepted", syn.from)))
        }
        Ok(()) => Ok(Heard::Nothing),
    }
}

/// A port of the listener's own address that nobody else gets, and whose SYNs nobody hears: with it
/// a program that looks at ports can be tried, whoever is kept out by it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Probe {
    /// Bound, and never connected: the kernel gives the port to nobody who names none.
    #[serde(with = "descriptor")]
    held: OwnedFd,
    pub(super) address: SocketAddr,
}

impl Probe {
    /// Takes a port of the address.
    ///
    /// # Errors
    /// Where there is none left.
    pub(super) fn open(listen: SocketAddr) -> io::Result<Self> {
        let held = new_bare(listen)?;
        sockopt::set_socket_reuseaddr(&held, true)?;
        bind(&held, &SocketAddr::new(listen.ip(), 0))?;
        let address = SocketAddr::try_from(getsockname(&held)?)?;
        Ok(Self { held, address })
    }
}
