//! Steering programs of classic BPF: which listener of the group gets a SYN, by address and port.
//!
//! Offset 0 is the payload in such programs, and a load behind the packet makes the kernel choose
//! place 0; headers are read at `SKF_NET_OFF`. Ports are looked at only for addresses that several
//! parties share.

use std::{collections::BTreeMap, io, net::IpAddr};

use faultbed_common::port_block::PortBlock;
use serde::{Deserialize, Serialize};

use crate::proxy::sys::Instruction;

/// The kernel's bound on the length of a program.
const PROGRAM_MAX: usize = 4096;

pub(super) const LOAD_WORD: u16 = 0x20;
/// 16 bits at an offset.
pub(super) const LOAD_HALF: u16 = 0x28;
/// 16 bits at an offset behind the index register.
pub(super) const LOAD_HALF_BEHIND: u16 = 0x48;
/// Four times the lower half of a byte, into the index register: the length of an IPv4 header.
pub(super) const LOAD_HEADER_LENGTH: u16 = 0xb1;
pub(super) const JUMP_IF_EQUAL: u16 = 0x15;
pub(super) const JUMP_IF_ABOVE: u16 = 0x25;
pub(super) const JUMP_IF_AT_LEAST: u16 = 0x35;
pub(super) const JUMP: u16 = 0x05;
pub(super) const RETURN: u16 = 0x06;
/// `SKF_NET_OFF`: what follows is an offset into the IP header.
pub(super) const NET: u32 = 0xfff0_0000;
const SOURCE_V4: u32 = 12;
const SOURCE_V6: u32 = 8;
/// Where the ports are behind an IPv6 header without extensions, which no SYN has.
const PORTS_V6: u32 = 40;

/// Whose SYNs go where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Steering {
    /// From whole addresses.
    pub(crate) places: BTreeMap<IpAddr, u32>,
    /// From some ports of an address; these come before what is said of the whole address.
    #[serde(default)]
    pub(crate) ranges: BTreeMap<IpAddr, Vec<(PortBlock, u32)>>,
    /// For everybody who is not named.
    pub(crate) others: u32,
}

impl Steering {
    pub(crate) fn all(place: u32) -> Self {
        Self { places: BTreeMap::new(), ranges: BTreeMap::new(), others: place }
    }

    /// What is said of each address: of its ports, and of the rest of them.
    pub(crate) fn addresses(&self) -> BTreeMap<IpAddr, OfAddress<'_>> {
        let whole = self.places.iter().map(|(address, place)| (*address, (&[][..], *place)));
        let mut all: BTreeMap<IpAddr, OfAddress<'_>> = whole.collect();
        for (address, ranges) in &self.ranges {
            let rest = self.places.get(address).copied().unwrap_or(self.others);
            all.insert(*address, (ranges, rest));
        }
        all
    }
}

/// Where some ports of an address go, and where the others do.
pub(crate) type OfAddress<'a> = (&'a [(PortBlock, u32)], u32);

/// What is said of one address, by its last word: of some of its ports, and of the others.
type End<'a> = (u32, &'a [(PortBlock, u32)], u32);

/// The program for a steering that refuses nobody.
///
/// # Errors
/// Where there are more addresses and blocks than a program can hold.
pub(crate) fn program(steering: &Steering, v4: bool) -> io::Result<Vec<Instruction>> {
    let mut program = Vec::new();
    // Addresses that begin alike, with their last words; one of four bytes has no beginning.
    let mut groups: BTreeMap<Vec<u32>, Vec<End<'_>>> = BTreeMap::new();
    for (address, (ranges, rest)) in steering.addresses() {
        let octets = match address {
            IpAddr::V4(address) if v4 => address.octets().to_vec(),
            IpAddr::V6(address) if !v4 => address.octets().to_vec(),
            IpAddr::V4(_) | IpAddr::V6(_) => continue,
        };
        let words = octets.chunks_exact(4);
        let mut words: Vec<u32> =
            words.map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect();
        let last = words.pop().unwrap_or(0);
        groups.entry(words).or_default().push((last, ranges, rest));
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
        for (last, ranges, rest) in ends {
            if ranges.is_empty() {
                program.push(op(JUMP_IF_EQUAL, 0, 1, last));
                program.push(op(RETURN, 0, 0, rest));
            } else {
                by_port(&mut program, last, ranges, (rest, v4))?;
            }
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

/// What is done with the SYNs of an address that several share. Every way through it returns.
fn by_port(
    program: &mut Vec<Instruction>,
    last: u32,
    ranges: &[(PortBlock, u32)],
    (rest, v4): (u32, bool),
) -> io::Result<()> {
    program.push(op(JUMP_IF_EQUAL, 1, 0, last));
    let to_next = program.len();
    program.push(op(JUMP, 0, 0, 0));
    if v4 {
        // Options are rare, and would shift the ports.
        program.push(op(LOAD_HEADER_LENGTH, 0, 0, NET));
        program.push(op(LOAD_HALF_BEHIND, 0, 0, NET));
    } else {
        program.push(op(LOAD_HALF, 0, 0, NET + PORTS_V6));
    }
    for (block, place) in ranges {
        program.push(op(JUMP_IF_AT_LEAST, 0, 2, block.first.into()));
        program.push(op(JUMP_IF_ABOVE, 1, 0, block.last().into()));
        program.push(op(RETURN, 0, 0, *place));
    }
    program.push(op(RETURN, 0, 0, rest));
    let next = program.len();
    program[to_next].k = u32::try_from(next - to_next - 1).map_err(io::Error::other)?;
    Ok(())
}

fn op(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}
