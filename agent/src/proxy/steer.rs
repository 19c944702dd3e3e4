//! Lets a listener drop the SYNs of chosen diallers: a reuseport group steered by classic BPF.
//!
//! Place 0 of the group is a deaf listener that belongs to nobody: it is there before the real one,
//! in place 1, listens, and a program that fails ends there. The others are deaf too, one for each
//! party that is cut, so that the kernel counts every party's SYNs apart. In these programs offset
//! 0 is the payload: addresses are read at `SKF_NET_OFF`. Each program is tried after it is attached.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
};

use faultbed_common::{
    link::{Link, Party},
    name::NodeName,
    proxy_spec::Cut,
};
use rustix::{
    io::Errno,
    net::{bind, connect, listen, sockopt},
};

use serde::{Deserialize, Serialize};

use crate::proxy::{
    carry::{descriptor, shared_descriptor},
    side::new_socket,
    sys::{self, Instruction},
    table::Order,
};

/// The kernel's bound on the length of a program.
const PROGRAM_MAX: usize = 4096;
/// Parties that one listener can drop and count apart.
const PARTIES_MAX: usize = 256;
/// Addresses that are tried after a program is attached.
const TRIED_MAX: usize = 8;
/// Connections waiting to be accepted.
const BACKLOG: i32 = 4096;

const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// `SKF_NET_OFF`: what follows is an offset into the IP header.
const NET: u32 = 0xfff0_0000;
const SOURCE_V4: u32 = 12;
const SOURCE_V6: u32 = 8;

/// The place of the deaf listener that is nobody's.
const CLOSED: u32 = 0;
/// The place of the listener that accepts.
const REAL: u32 = 1;
/// The place of the first deaf listener that is somebody's.
const FIRST_DROP: u32 = 2;

/// Whose SYNs go where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Steering {
    pub(crate) places: BTreeMap<IpAddr, u32>,
    /// For everybody who is not named.
    pub(crate) others: u32,
}

impl Steering {
    fn all(place: u32) -> Self {
        Self { places: BTreeMap::new(), others: place }
    }
}

/// The program for a steering.
///
/// # Errors
/// Where there are more addresses than a program can hold.
pub(crate) fn program(steering: &Steering, v4: bool) -> io::Result<Vec<Instruction>> {
    let op = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let mut program = Vec::new();
    if v4 {
        program.push(op(LOAD_WORD, 0, 0, NET + SOURCE_V4));
    }
    for (address, place) in &steering.places {
        match address {
            IpAddr::V4(address) if v4 => {
                program.push(op(JUMP_IF_EQUAL, 0, 1, u32::from(*address)));
            }
            IpAddr::V6(address) if !v4 => {
                let words = address.octets();
                for (index, word) in words.chunks_exact(4).enumerate() {
                    let index = u32::try_from(index).unwrap_or(0);
                    let skipped = u8::try_from(7 - 2 * index).unwrap_or(0);
                    let word = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
                    program.push(op(LOAD_WORD, 0, 0, NET + SOURCE_V6 + 4 * index));
                    program.push(op(JUMP_IF_EQUAL, 0, skipped, word));
                }
            }
            IpAddr::V4(_) | IpAddr::V6(_) => continue,
        }
        program.push(op(RETURN, 0, 0, *place));
    }
    program.push(op(RETURN, 0, 0, steering.others));
    if program.len() > PROGRAM_MAX {
        return Err(io::Error::other("more addresses than a steering program can hold"));
    }
    Ok(program)
}

/// The listening sockets of one advertised address, and who is kept out.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Gate {
    listen: SocketAddr,
    #[serde(with = "shared_descriptor")]
    real: Arc<OwnedFd>,
    /// Kept open: it holds place 0.
    #[serde(with = "descriptor")]
    _closed: OwnedFd,
    drops: Vec<DropListener>,
    steering: Steering,
    tried: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct DropListener {
    #[serde(with = "descriptor")]
    fd: OwnedFd,
    party: Option<Party>,
    counted: u32,
}

impl Gate {
    /// Binds and listens, and lets nobody in before [`Self::steer`].
    ///
    /// # Errors
    /// `AddrInUse` where somebody else has the port.
    pub(crate) fn open(listen_at: SocketAddr) -> io::Result<Self> {
        let real = new_socket(listen_at)?;
        sockopt::set_socket_reuseaddr(&real, true)?;
        // Bound alone: with SO_REUSEPORT a bind succeeds although another listener is there.
        bind(&real, &listen_at)?;
        sockopt::set_socket_reuseport(&real, true)?;
        let closed = new_deaf(listen_at)?;
        let steering = Steering::all(CLOSED);
        sys::attach_steering(&closed, &program(&steering, listen_at.is_ipv4())?)?;
        listen(&closed, 1)?;
        listen(&real, BACKLOG)?;
        let real = Arc::new(real);
        Ok(Self {
            listen: listen_at,
            real,
            _closed: closed,
            drops: Vec::new(),
            steering,
            tried: false,
        })
    }

    pub(crate) fn real(&self) -> &Arc<OwnedFd> {
        &self.real
    }

    /// SYNs dropped since they were last counted, by party.
    pub(crate) fn take_dropped(&mut self) -> Vec<(Party, u64)> {
        let mut dropped = Vec::new();
        for listener in &mut self.drops {
            let now = sys::drops(&listener.fd);
            let more = u64::from(now.wrapping_sub(listener.counted));
            listener.counted = now;
            if let (Some(party), true) = (&listener.party, more > 0) {
                dropped.push((party.clone(), more));
            }
        }
        dropped
    }

    /// Steers the parties in `cut` to deaf listeners, and nobody else. `seen` are nodes that were
    /// seen to dial from addresses that are not theirs: who dials unnamed may then be a node.
    ///
    /// # Errors
    /// Where the kernel refuses the program; the steering is as before then.
    pub(crate) fn steer(
        &mut self,
        cut: &BTreeSet<Party>,
        diallers: &BTreeMap<IpAddr, NodeName>,
        unnamed_nodes: bool,
    ) -> io::Result<()> {
        let mut wanted = Steering::all(REAL);
        for party in cut {
            if *party == Party::Clients {
                // Connections that no address names are told apart after they are accepted.
                if !unnamed_nodes {
                    wanted.others = self.place_of(party)?;
                }
                continue;
            }
            for (address, _) in diallers.iter().filter(|(_, node)| is_node(party, node)) {
                let place = self.place_of(party)?;
                wanted.places.insert(*address, place);
            }
        }
        if wanted.others != REAL {
            for address in diallers.keys() {
                wanted.places.entry(*address).or_insert(REAL);
            }
        }
        if wanted == self.steering {
            return Ok(());
        }
        sys::attach_steering(&*self.real, &program(&wanted, self.listen.is_ipv4())?)?;
        self.steering = wanted;
        for listener in &mut self.drops {
            listener.party = listener.party.take().filter(|party| cut.contains(party));
        }
        self.tried = false;
        Ok(())
    }

    /// The place in the group of the deaf listener for a party, which is opened where there is none.
    fn place_of(&mut self, party: &Party) -> io::Result<u32> {
        let known = self.drops.iter().position(|listener| listener.party.as_ref() == Some(party));
        let at = match known.or_else(|| self.drops.iter().position(|l| l.party.is_none())) {
            Some(at) => at,
            None => {
                self.drops.push(open_deaf(self.listen, self.drops.len())?);
                self.drops.len() - 1
            }
        };
        let listener = &mut self.drops[at];
        if listener.party.as_ref() != Some(party) {
            listener.party = Some(party.clone());
            listener.counted = sys::drops(&listener.fd);
        }
        Ok(u32::try_from(at).map_err(io::Error::other)? + FIRST_DROP)
    }

    /// Dials from addresses that are kept out, and sees that each SYN is dropped; once for each
    /// steering. Only addresses of this machine can be tried; a program that works for one works
    /// for all.
    ///
    /// # Errors
    /// Where a SYN was not dropped.
    pub(crate) fn try_out(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.tried, true) {
            return Ok(());
        }
        let Steering { places, others } = &self.steering;
        // Whoever is not named dials a loopback address from this one.
        let unnamed = IpAddr::from([127, 0, 0, 1]);
        let anybody = (self.listen.ip().is_loopback() && !places.contains_key(&unnamed))
            .then_some((unnamed, *others));
        let kept_out: Vec<(IpAddr, u32)> = places
            .iter()
            .map(|(address, place)| (*address, *place))
            .chain(anybody)
            .filter(|(_, place)| *place >= FIRST_DROP)
            .take(TRIED_MAX)
            .collect();
        for (address, place) in kept_out {
            let Some(listener) = self.drops.get_mut((place - FIRST_DROP) as usize) else {
                continue;
            };
            let before = sys::drops(&listener.fd);
            if !sent_syn(address, self.listen)? {
                continue;
            }
            let dropped = sys::drops(&listener.fd).wrapping_sub(before);
            // Loopback delivers before connect returns; what others dial meanwhile counts as well.
            if dropped == 0 {
                return Err(io::Error::other(format!("SYNs from {address} are not dropped")));
            }
            listener.counted = listener.counted.wrapping_add(1);
        }
        Ok(())
    }
}

fn is_node(party: &Party, node: &NodeName) -> bool {
    matches!(party, Party::Node(name) if name == node)
}

/// One more member of a group, which hears nothing.
fn open_deaf(address: SocketAddr, present: usize) -> io::Result<DropListener> {
    if present >= PARTIES_MAX {
        return Err(io::Error::other("more parties cut than one listener can tell apart"));
    }
    let fd = new_deaf(address)?;
    listen(&fd, 1)?;
    Ok(DropListener { fd, party: None, counted: 0 })
}

/// A socket that joins the group of an address when it listens, and hears nothing.
fn new_deaf(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = new_socket(address)?;
    sys::set_deaf(&fd, address.ip(), true)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    sockopt::set_socket_reuseport(&fd, true)?;
    bind(&fd, &address)?;
    Ok(fd)
}

/// Sends a SYN from an address; `false` where it is not one of this machine.
fn sent_syn(from: IpAddr, to: SocketAddr) -> io::Result<bool> {
    let fd = new_socket(to)?;
    if bind(&fd, &SocketAddr::new(from, 0)).is_err() {
        return Ok(false);
    }
    match connect(&fd, &to) {
        Err(Errno::INPROGRESS) => Ok(true),
        Ok(()) => Err(io::Error::other(format!("a connection from {from} was accepted"))),
        Err(error) => Err(error.into()),
    }
}

/// Of the parties cut at a listener, those whose attempts are charged, with the links that are.
pub(crate) fn charged<'a>(
    links: &'a BTreeMap<Link, Arc<Order>>,
    node: &NodeName,
    party: &Party,
) -> impl Iterator<Item = (&'a Link, &'a Arc<Order>)> {
    let here = Party::Node(node.clone());
    let to = Link { from: party.clone(), to: here };
    let back = to.reversed();
    // The SYN's own link, where that is cut; else the one that its answer would take.
    let cut = move |link: &Link| {
        links.get_key_value(link).filter(|(_, order)| order.rule.cut == Some(Cut::Packets))
    };
    cut(&to).or_else(|| cut(&back)).into_iter()
}

#[cfg(test)]
mod tests;
