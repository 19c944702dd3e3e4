//! Lets a listener drop or refuse the SYNs of chosen diallers: a reuseport group steered by BPF.
//!
//! Place 0 of the group is a deaf listener that belongs to nobody: it is there before the real one,
//! in place 1, listens, and a program that fails ends there. The others are deaf too, one for each
//! party that is kept out, so that the kernel counts every party's SYNs apart. Classic programs need
//! no privilege; offset 0 is the payload in them, and addresses are read at `SKF_NET_OFF`. They
//! cannot refuse: for that the group gets an extended program, where the host takes one. Each
//! program is tried after it is attached.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use faultbed_common::{
    link::{Link, Party},
    name::NodeName,
    proxy_spec::{Cut, Dials},
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, listen, socket_with,
        sockopt,
    },
};

use serde::{Deserialize, Serialize};

use crate::proxy::{
    carry::{descriptor, shared_descriptor},
    side::new_socket,
    sys::{
        self, Instruction,
        bpf::{Group, REFUSED},
    },
    table::{Diallers, KeptOut, Order, Orders},
};

/// The kernel's bound on the length of a program.
const PROGRAM_MAX: usize = 4096;
/// Parties that one listener can keep out and count apart. The SYNs of more are dropped uncounted.
const PARTIES_MAX: usize = 256;
/// Addresses that are tried after a program is attached.
const TRIED_MAX: usize = 2;
/// How often, and how long apart, it is looked whether such a SYN has arrived.
const TRIES_MAX: u32 = 200;
const TRY_AGAIN: Duration = Duration::from_millis(1);
/// Connections waiting to be accepted.
const BACKLOG: i32 = 4096;

const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP: u16 = 0x05;
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

/// The program for a steering that refuses nobody.
///
/// # Errors
/// Where there are more addresses than a program can hold.
pub(crate) fn program(steering: &Steering, v4: bool) -> io::Result<Vec<Instruction>> {
    let mut program = Vec::new();
    // Addresses that begin alike, with their last words; one of four bytes has no beginning.
    let mut groups: BTreeMap<Vec<u32>, Vec<(u32, u32)>> = BTreeMap::new();
    for (address, place) in &steering.places {
        let octets = match address {
            IpAddr::V4(address) if v4 => address.octets().to_vec(),
            IpAddr::V6(address) if !v4 => address.octets().to_vec(),
            IpAddr::V4(_) | IpAddr::V6(_) => continue,
        };
        let words = octets.chunks_exact(4);
        let mut words: Vec<u32> =
            words.map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect();
        let last = words.pop().unwrap_or(0);
        groups.entry(words).or_default().push((last, *place));
    }
    let source = NET + if v4 { SOURCE_V4 } else { SOURCE_V6 };
    for (beginning, ends) in groups {
        let mut to_next = Vec::new();
        let mut offset = source;
        for word in beginning {
            program.push(op(LOAD_WORD, 0, 0, offset));
            program.push(op(JUMP_IF_EQUAL, 1, 0, word));
            to_next.push(program.len());
            program.push(op(JUMP, 0, 0, 0));
            offset += 4;
        }
        program.push(op(LOAD_WORD, 0, 0, offset));
        for (end, place) in ends {
            program.push(op(JUMP_IF_EQUAL, 0, 1, end));
            program.push(op(RETURN, 0, 0, place));
        }
        let next = program.len();
        for at in to_next {
            program[at].k = u32::try_from(next - at - 1).map_err(io::Error::other)?;
        }
    }
    program.push(op(RETURN, 0, 0, steering.others));
    if program.len() > PROGRAM_MAX {
        return Err(io::Error::other("more addresses than a steering program can hold"));
    }
    Ok(program)
}

fn op(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

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
            for (address, node) in &**diallers {
                let party = Party::Node(node.clone());
                if let Some(dials) = kept_out.get(&party) {
                    wanted.places.insert(*address, self.place_of(&party, *dials)?);
                } else if others_are_kept_out {
                    wanted.places.insert(*address, REAL);
                }
            }
        }
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

    fn attach(&self, wanted: &Steering) -> io::Result<()> {
        let v4 = self.listen.is_ipv4();
        let mut places = wanted.places.values().chain([&wanted.others]);
        match &self.group {
            Some(group) if places.any(|place| *place >= REFUSED) => {
                group.attach(&*self.real, &wanted.places, wanted.others, v4)
            }
            Some(_) | None => sys::attach_steering(&*self.real, &program(wanted, v4)?),
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

    /// The place that stands for a refusal, counted for a party.
    fn refusal_of(&mut self, party: &Party) -> io::Result<u32> {
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
            if place >= REFUSED {
                let Some(syn) = send_syn(address, self.listen)? else { continue };
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
            let Some(syn) = send_syn(address, self.listen)? else { continue };
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

/// What came back to a SYN.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    Refusal,
}

/// Waits until something is so, but not for long; says whether it is. Loopback mostly delivers before
/// connect returns, and not where the kernel has put that off to a thread of its own under load.
fn in_time(mut is_so: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
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
struct Syn {
    fd: OwnedFd,
    from: IpAddr,
    /// Already when it was sent.
    is_refused: bool,
}

/// Sends a SYN from an address; `None` where it is not one of this machine.
fn send_syn(from: IpAddr, to: SocketAddr) -> io::Result<Option<Syn>> {
    let fd = new_bare(to)?;
    if bind(&fd, &SocketAddr::new(from, 0)).is_err() {
        return Ok(None);
    }
    match connect(&fd, &to) {
        Err(Errno::INPROGRESS) | Ok(()) => Ok(Some(Syn { fd, from, is_refused: false })),
        Err(Errno::CONNREFUSED) => Ok(Some(Syn { fd, from, is_refused: true })),
        Err(error) => Err(error.into()),
    }
}

/// What has come back to a SYN so far.
fn heard(syn: &Syn) -> io::Result<Heard> {
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
