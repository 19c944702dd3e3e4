//! Lets a listener drop or refuse the SYNs of chosen diallers: a reuseport group steered by BPF.
//!
//! Place 0 of the group is a deaf listener that belongs to nobody: it is there before the real one,
//! in place 1, listens, and a program that fails ends there. The others are deaf too, one for each
//! party that is kept out, so that the kernel counts every party's SYNs apart. Classic programs need
//! no privilege; offset 0 is the payload in them, and addresses are read at `SKF_NET_OFF`. They
//! cannot refuse: for that the group gets an extended program, where the host takes one. Each
//! program is tried after it is attached.

mod program;
mod trial;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
};

use faultbed_common::{
    link::{Link, Party},
    name::NodeName,
    port_block::PortBlock,
    proxy_spec::{Cut, Dials},
};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt},
};

use serde::{Deserialize, Serialize};

pub(crate) use self::program::Steering;
use self::{
    program::program,
    trial::{Heard, Probe, heard, in_time, send_syn},
};
use crate::proxy::{
    carry::{descriptor, shared_descriptor},
    diallers::Diallers,
    side::new_socket,
    sys::{
        self,
        bpf::{Group, REFUSED},
    },
    table::{KeptOut, Order, Orders},
};

/// Parties that one listener can keep out and count apart. The SYNs of more are dropped uncounted.
const PARTIES_MAX: usize = 256;
/// Addresses that are tried after a program is attached.
const TRIED_MAX: usize = 2;
/// Connections waiting to be accepted.
const BACKLOG: i32 = 4096;

/// The place of the deaf listener that is nobody's.
const CLOSED: u32 = 0;
/// The place of the listener that accepts.
const REAL: u32 = 1;
/// The place of the first deaf listener that is somebody's.
const FIRST_DROP: u32 = 2;

/// The listening sockets of one advertised address, and who is kept out.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Gate {
    listen: SocketAddr,
    #[serde(with = "shared_descriptor")]
    real: Arc<OwnedFd>,
    /// It holds place 0.
    #[serde(with = "descriptor")]
    closed: OwnedFd,
    drops: Vec<DropListener>,
    refusals: Vec<Refusal>,
    /// There once the kernel has refused somebody.
    group: Option<Group>,
    steering: Steering,
    /// What the steering was made from.
    from: Option<(KeptOut, Arc<Diallers>, bool)>,
    tried: bool,
    /// There once a program has looked at ports.
    #[serde(default)]
    probe: Option<Probe>,
}

/// A counter of the SYNs that the kernel refused.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Refusal {
    party: Option<Party>,
    counted: u64,
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
            closed,
            drops: Vec::new(),
            refusals: Vec::new(),
            group: None,
            steering,
            from: None,
            tried: false,
            probe: None,
        })
    }

    pub(crate) fn real(&self) -> &Arc<OwnedFd> {
        &self.real
    }

    /// SYNs dropped or refused since they were last counted, by party.
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
        for (counter, refusal) in (0..).zip(&mut self.refusals) {
            let now = self.group.as_ref().map_or(0, |group| group.refused(counter));
            let more = now.wrapping_sub(refusal.counted);
            refusal.counted = now;
            if let (Some(party), true) = (&refusal.party, more > 0) {
                dropped.push((party.clone(), more));
            }
        }
        dropped
    }

    /// Keeps these parties out, and nobody else. `unnamed_nodes` says that nodes were seen to dial
    /// from addresses that are not theirs: who dials unnamed may then be a node.
    ///
    /// # Errors
    /// Where the kernel refuses the program; the steering is as before then.
    pub(crate) fn steer(
        &mut self,
        kept_out: &KeptOut,
        diallers: &Arc<Diallers>,
        unnamed_nodes: bool,
    ) -> io::Result<()> {
        let is_same = self.from.as_ref().is_some_and(|(parties, known, unnamed)| {
            parties == kept_out && Arc::ptr_eq(known, diallers) && *unnamed == unnamed_nodes
        });
        if is_same {
            return Ok(());
        }
        let mut wanted = Steering::all(REAL);
        // Connections that no address names are told apart after they are accepted.
        if let Some(dials) = kept_out.get(&Party::Clients).filter(|_| !unnamed_nodes) {
            wanted.others = self.place_of(&Party::Clients, *dials)?;
        }
        let others_are_kept_out = wanted.others != REAL;
        if others_are_kept_out || !kept_out.is_empty() {
            let mut place = |node: &NodeName| -> io::Result<Option<u32>> {
                let party = Party::Node(node.clone());
                match kept_out.get(&party) {
                    Some(dials) => self.place_of(&party, *dials).map(Some),
                    None => Ok(others_are_kept_out.then_some(REAL)),
                }
            };
            for (address, node) in &diallers.addresses {
                if let Some(place) = place(node)? {
                    wanted.places.insert(*address, place);
                }
            }
            for (address, owners) in &diallers.blocks {
                let mut ranges = Vec::new();
                for owner in owners {
                    ranges.extend(place(&owner.node)?.map(|place| (owner.block, place)));
                }
                if !ranges.is_empty() {
                    wanted.ranges.insert(*address, ranges);
                }
            }
        }
        self.add_probe(&mut wanted);
        if wanted != self.steering {
            self.attach(&wanted)?;
            self.steering = wanted;
            self.tried = false;
        }
        let is_out = |party: &Party, how: Dials| kept_out.get(party) == Some(&how);
        for listener in &mut self.drops {
            listener.party = listener.party.take().filter(|party| is_out(party, Dials::TimeOut));
        }
        for refusal in &mut self.refusals {
            refusal.party = refusal.party.take().filter(|party| is_out(party, Dials::Refuse));
        }
        self.from = Some((kept_out.clone(), Arc::clone(diallers), unnamed_nodes));
        Ok(())
    }

    /// Has a program that looks at ports keep out one that nobody uses, so that it can be tried. The
    /// port stays ours as long as the listener is there; where none is left, nothing is tried.
    fn add_probe(&mut self, wanted: &mut Steering) {
        let v4 = self.listen.is_ipv4();
        if !wanted.ranges.keys().any(|address| address.is_ipv4() == v4) {
            return;
        }
        let probe = self.probe.take().map_or_else(|| Probe::open(self.listen), Ok);
        match probe {
            Ok(probe) => {
                let only = PortBlock { first: probe.address.port(), count: 1 };
                let ranges = wanted.ranges.entry(probe.address.ip()).or_default();
                ranges.insert(0, (only, CLOSED));
                self.probe = Some(probe);
            }
            Err(error) => {
                tracing::warn!(listener = %self.listen, %error, "take a port to try the steering");
            }
        }
    }

    fn attach(&mut self, wanted: &Steering) -> io::Result<()> {
        let v4 = self.listen.is_ipv4();
        let by_address = wanted.places.values();
        let by_port = wanted.ranges.values().flatten().map(|(_, place)| place);
        let mut places = by_address.chain(by_port).chain([&wanted.others]);
        if !places.any(|place| *place >= REFUSED) {
            match program(wanted, v4) {
                Ok(program) => return sys::attach_steering(&*self.real, &program),
                // An extended program may be longer, where the host takes one.
                Err(too_long) => self.make_group().map_err(|_| too_long)?,
            }
        }
        match &self.group {
            Some(group) => group.attach(&*self.real, wanted, v4),
            None => Err(io::Error::other("no group of listeners")),
        }
    }

    /// Where the SYNs of a party go.
    fn place_of(&mut self, party: &Party, dials: Dials) -> io::Result<u32> {
        match dials {
            Dials::TimeOut => self.deaf_place_of(party),
            Dials::Refuse => self.refusal_of(party),
        }
    }

    /// The place in the group of the deaf listener for a party, which is opened where there is none.
    fn deaf_place_of(&mut self, party: &Party) -> io::Result<u32> {
        let known = self.drops.iter().position(|listener| listener.party.as_ref() == Some(party));
        let at = match known.or_else(|| self.drops.iter().position(|l| l.party.is_none())) {
            Some(at) => at,
            None if self.drops.len() == PARTIES_MAX => return Ok(CLOSED),
            None => {
                let fd = new_deaf(self.listen)?;
                listen(&fd, 1)?;
                // Once only: the kernel takes no socket that has a place already, not even its own.
                if let Some(group) = &self.group {
                    group.put(drop_place(self.drops.len())?, &fd)?;
                }
                self.drops.push(DropListener { fd, party: None, counted: 0 });
                self.drops.len() - 1
            }
        };
        let listener = &mut self.drops[at];
        if listener.party.as_ref() != Some(party) {
            listener.party = Some(party.clone());
            listener.counted = sys::drops(&listener.fd);
        }
        drop_place(at)
    }

    /// Makes the group that extended programs choose from, where there is none yet.
    fn make_group(&mut self) -> io::Result<()> {
        if self.group.is_none() {
            let places = u32::try_from(PARTIES_MAX).map_err(io::Error::other)? + FIRST_DROP;
            let group = Group::new(places)?;
            group.put(CLOSED, &self.closed)?;
            group.put(REAL, &*self.real)?;
            for (place, listener) in (FIRST_DROP..).zip(&self.drops) {
                group.put(place, &listener.fd)?;
            }
            self.group = Some(group);
        }
        Ok(())
    }

    /// The place that stands for a refusal, counted for a party.
    fn refusal_of(&mut self, party: &Party) -> io::Result<u32> {
        self.make_group()?;
        let is_of = |refusal: &Refusal| refusal.party.as_ref() == Some(party);
        let free = || self.refusals.iter().position(|refusal| refusal.party.is_none());
        let at = match self.refusals.iter().position(is_of).or_else(free) {
            Some(at) => at,
            // Its SYNs are refused and not counted.
            None if self.refusals.len() == PARTIES_MAX => return Ok(u32::MAX >> 1),
            None => {
                self.refusals.push(Refusal::default());
                self.refusals.len() - 1
            }
        };
        let counter = u32::try_from(at).map_err(io::Error::other)?;
        if !is_of(&self.refusals[at]) {
            let counted = self.group.as_ref().map_or(0, |group| group.refused(counter));
            self.refusals[at] = Refusal { party: Some(party.clone()), counted };
        }
        Ok(REFUSED + counter)
    }

    /// Dials from the port that the program keeps out for this. With it the kernel has read a port
    /// where the program meant one, which a program that looks elsewhere would not do.
    fn try_port(&self) -> io::Result<()> {
        let names_it = |probe: &&Probe| self.steering.ranges.contains_key(&probe.address.ip());
        let Some(probe) = self.probe.as_ref().filter(names_it) else { return Ok(()) };
        let before = sys::drops(&self.closed);
        let Some(syn) = send_syn(probe.address, self.listen)? else { return Ok(()) };
        let is_dropped = || match heard(&syn)? {
            Heard::Nothing => Ok(sys::drops(&self.closed) != before),
            Heard::Refusal => Err(Errno::CONNREFUSED.into()),
        };
        if !in_time(is_dropped)? {
            return Err(io::Error::other("SYNs from chosen ports are not dropped"));
        }
        Ok(())
    }

    /// Dials from addresses that are kept out, and sees that each SYN is dropped or refused; once for
    /// each steering. Only addresses of this machine can be tried; a program that works for one
    /// works for all.
    ///
    /// # Errors
    /// Where a SYN was let in.
    pub(crate) fn try_out(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.tried, true) {
            return Ok(());
        }
        self.try_port()?;
        let Steering { places, others, .. } = &self.steering;
        // Whoever is not named dials a loopback address from this one, and others from themselves.
        let unnamed = match self.listen.ip() {
            IpAddr::V4(address) if address.is_loopback() => IpAddr::from([127, 0, 0, 1]),
            own => own,
        };
        let anybody = (!places.contains_key(&unnamed)).then_some((unnamed, *others));
        let kept_out: Vec<(IpAddr, u32)> = places
            .iter()
            .map(|(address, place)| (*address, *place))
            .chain(anybody)
            .filter(|(_, place)| *place >= FIRST_DROP)
            .take(TRIED_MAX)
            .collect();
        for (address, place) in kept_out {
            if place >= REFUSED {
                let Some(syn) = send_syn(SocketAddr::new(address, 0), self.listen)? else {
                    continue;
                };
                if !in_time(|| Ok(heard(&syn)? == Heard::Refusal))? {
                    return Err(io::Error::other(format!("SYNs from {address} are not refused")));
                }
                if let Some(refusal) = self.refusals.get_mut((place - REFUSED) as usize) {
                    refusal.counted = refusal.counted.wrapping_add(1);
                }
                continue;
            }
            let Some(listener) = self.drops.get_mut((place - FIRST_DROP) as usize) else {
                continue;
            };
            let before = sys::drops(&listener.fd);
            let Some(syn) = send_syn(SocketAddr::new(address, 0), self.listen)? else { continue };
            // What others dial meanwhile counts as well.
            let is_dropped = || match heard(&syn)? {
                Heard::Nothing => Ok(sys::drops(&listener.fd) != before),
                Heard::Refusal => Err(Errno::CONNREFUSED.into()),
            };
            if !in_time(is_dropped)? {
                return Err(io::Error::other(format!("SYNs from {address} are not dropped")));
            }
            listener.counted = listener.counted.wrapping_add(1);
        }
        Ok(())
    }
}

/// The place in the group of a deaf listener.
fn drop_place(at: usize) -> io::Result<u32> {
    Ok(u32::try_from(at).map_err(io::Error::other)? + FIRST_DROP)
}

/// A socket that joins the group of an address when it listens, and hears nothing.
fn new_deaf(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = new_bare(address)?;
    sys::set_deaf(&fd, address.ip(), true)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    sockopt::set_socket_reuseport(&fd, true)?;
    bind(&fd, &address)?;
    Ok(fd)
}

/// A socket that never carries a byte, and needs no tuning.
fn new_bare(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?)
}

/// Of a party that was kept out at a listener: the link whose faults are charged with that.
pub(crate) fn charged<'a>(
    links: &'a Orders,
    node: &NodeName,
    party: &Party,
) -> Option<(&'a Link, &'a Arc<Order>)> {
    let to = Link { from: party.clone(), to: Party::Node(node.clone()) };
    let back = to.reversed();
    let cuts = |order: &Order| order.rule.cut == Some(Cut::Packets);
    // The SYN's own link, where that stops it; else the one that its answer would take.
    let own = links.get_key_value(&to).filter(|(_, o)| cuts(o) || o.rule.dials.is_some());
    own.or_else(|| links.get_key_value(&back).filter(|(_, order)| cuts(order)))
}

#[cfg(test)]
mod tests;
