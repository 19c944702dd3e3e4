//! The `fast_heal` of a fault: bounds how long the kernels of nodes wait between two tries during a cut.
//!
//! After a cut a sender stays silent until its back-off has run out, up to as long again as the cut was.
//! What waits is the node's own socket, so it is set there, through a duplicate of the node's descriptor:
//! TCP_RTO_MAX_MS, which the kernel obeys from its next try on. Needs what a debugger needs (the same
//! user, no Yama), and Linux 6.15.
//!
//! Connections that are still being made are left alone: with shorter waits their bounded number of
//! tries would be over sooner, and the node would see another failure than a real cut shows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    time::Duration,
};

use faultbed_common::name::NodeName;
use rustix::{
    net::{AddressFamily, SocketType, getpeername, ipproto, sockopt},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::{proxy::bound_backoff, reconcile::hands::SurveyOrder, sockets};

/// The longest wait of a bounded socket; no kernel takes less.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// The kernel counts tries, so that shorter waits would end a connection after 14 s. So long it
/// shall live without an answer instead; by itself it lives a quarter of an hour (tcp_retries2).
const PATIENCE_MS: u32 = 16 * 60 * 1000;

/// The sockets that were bounded, by inode, each with where it is held.
#[derive(Debug, Default)]
pub struct Bounded(BTreeMap<u64, Place>);

/// A descriptor of a process.
#[derive(Debug, Clone, Copy)]
struct Place {
    pid: u32,
    number: i32,
}

/// Bounds the sockets of the nodes that the order names, and lets go of all others. Says why it could
/// not be done where it could not.
pub fn bound(order: &SurveyOrder, bounded: &mut Bounded) -> Option<String> {
    let mut why = None;
    let mut there = BTreeSet::new();
    if !order.eager.is_empty() {
        for (pid, node) in processes(order) {
            for (number, inode) in sockets::numbered(pid) {
                let place = Place { pid, number };
                there.insert(inode);
                if bounded.0.contains_key(&inode) {
                    continue;
                }
                match take(place).and_then(|socket| set(&socket)) {
                    Ok(true) => drop(bounded.0.insert(inode, place)),
                    Ok(false) => {}
                    Err(error) => why = Some(format!("fast_heal: set sockets of {node}: {error}")),
                }
            }
        }
    }
    bounded.0.retain(|inode, place| {
        if there.contains(inode) {
            return true;
        }
        // It may have another number by now, or be nobody's.
        let end = sockets::number_of(place.pid, *inode).and_then(|number| {
            let Some(number) = number else { return Ok(()) };
            take(Place { number, ..*place }).and_then(|socket| unset(&socket))
        });
        match end {
            Ok(()) => false,
            // It is tried again, unless it has gone meanwhile.
            Err(error) => {
                why = Some(format!("fast_heal: set a socket of pid {} back: {error}", place.pid));
                true
            }
        }
    });
    why
}

/// The processes of the nodes that want it.
fn processes(order: &SurveyOrder) -> Vec<(u32, &NodeName)> {
    let node = |pid| sockets::ancestors(pid).find_map(|pid| order.shims.get(&pid));
    let all = sockets::processes().filter_map(|pid| Some((pid, node(pid)?)));
    all.filter(|(_, node)| order.eager.contains(*node)).collect()
}

/// A duplicate of a process's descriptor.
fn take(place: Place) -> io::Result<OwnedFd> {
    let pid = i32::try_from(place.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::NotFound)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, place.number, PidfdGetfdFlags::empty())?)
}

/// Says whether there was something to set.
fn set(socket: &OwnedFd) -> io::Result<bool> {
    let family = sockopt::socket_domain(socket)?;
    let is_tcp = [AddressFamily::INET, AddressFamily::INET6].contains(&family)
        && sockopt::socket_type(socket)? == SocketType::STREAM
        && sockopt::socket_protocol(socket)? == Some(ipproto::TCP);
    // A listener, and what is being connected, has no peer.
    if !is_tcp || getpeername(socket).is_err() {
        return Ok(false);
    }
    // A patience of its own is the node's choice.
    if sockopt::tcp_user_timeout(socket)? == 0 {
        sockopt::set_tcp_user_timeout(socket, PATIENCE_MS)?;
    }
    bound_backoff(socket, WAIT_MAX)?;
    Ok(true)
}

fn unset(socket: &OwnedFd) -> io::Result<()> {
    bound_backoff(socket, Duration::ZERO)?;
    if sockopt::tcp_user_timeout(socket)? == PATIENCE_MS {
        sockopt::set_tcp_user_timeout(socket, 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{IpAddr, TcpListener},
        process::{Command, Stdio},
    };

    use super::*;
    use crate::proxy::{drops, eventually_within, set_deaf};

    /// The kernel doubles its waits, so that by itself it has tried so often after more than 51 s.
    const TRIES: u32 = 10;
    const TIME: Duration = Duration::from_secs(40);

    #[test]
    fn a_sender_that_hears_nothing_tries_once_a_second_and_by_itself_afterwards() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let script =
            format!("exec 3<>/dev/tcp/127.0.0.1/{port}; echo -n x >&3; read; echo -n y >&3; read");
        let mut child =
            Command::new("bash").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.read_exact(&mut [0]).unwrap();
        let address: IpAddr = peer.local_addr().unwrap().ip();
        set_deaf(&peer, address, true).unwrap();
        let node: NodeName = "x".parse().unwrap();
        let mut order = SurveyOrder {
            shims: [(child.id(), node.clone())].into(),
            eager: [node].into(),
            ..SurveyOrder::default()
        };
        let mut bounded = Bounded::default();
        assert_eq!(bound(&order, &mut bounded), None);
        assert_eq!(bounded.0.len(), 1);
        let socket = take(Place { pid: child.id(), number: 3 }).unwrap();
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), PATIENCE_MS);
        let mut input = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, b"\n").unwrap();
        eventually_within(TIME, "as many tries as its bounded waits allow", || {
            drops(&peer) >= TRIES
        });
        set_deaf(&peer, address, false).unwrap();
        peer.read_exact(&mut [0]).unwrap();

        order.eager.clear();
        // Other tests use up this process's descriptors for a while; then it is tried again.
        eventually_within(TIME, "its socket is set back", || bound(&order, &mut bounded).is_none());
        assert!(bounded.0.is_empty());
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 0);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
