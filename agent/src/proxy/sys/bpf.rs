//! Programs for the kernel: assembled here, loaded with bpf(2). Only what the proxy needs of it.
//!
//! Two kinds: a socket filter that loses segments with a memory (the model of Gilbert and Elliott,
//! drawn as netem(8) draws it), and one that chooses the listener of each SYN and can refuse it,
//! which classic programs cannot. Both want CAP_BPF where unprivileged programs are forbidden.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use faultbed_common::effect::{Loss, Ratio};

use super::set_option;
use crate::proxy::{carry::descriptor, steer::Steering};
use serde::{Deserialize, Serialize};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;

const MAP_ARRAY: u32 = 2;
const MAP_SOCKETS: u32 = 20;
const PROG_SOCKET_FILTER: u32 = 1;
const PROG_REUSEPORT: u32 = 21;

const CALL_LOOKUP: i32 = 1;
const CALL_RANDOM: i32 = 7;
const CALL_LOAD_RELATIVE: i32 = 68;
const CALL_SELECT: i32 = 82;
/// `BPF_HDR_START_NET`.
const FROM_NETWORK_HEADER: i32 = 1;

const SO_ATTACH_BPF: libc::c_int = 50;
const SO_ATTACH_REUSEPORT_EBPF: libc::c_int = 52;

/// Places from here on are no listeners: who is steered there is refused, and counted by what
/// remains of the number.
pub(crate) const REFUSED: u32 = 1 << 16;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Op {
    code: u8,
    /// The destination in the lower half, the source in the upper.
    registers: u8,
    offset: i16,
    constant: i32,
}

/// A program in the making.
#[derive(Debug, Default)]
struct Program(Vec<Op>);

impl Program {
    fn op(&mut self, code: u8, to: u8, from: u8, offset: i16, constant: i32) {
        self.0.push(Op { code, registers: to | from << 4, offset, constant });
    }

    fn move_constant(&mut self, to: u8, constant: i32) {
        self.op(0xb7, to, 0, 0, constant);
    }

    fn move_register(&mut self, to: u8, from: u8) {
        self.op(0xbf, to, from, 0, 0);
    }

    fn add_constant(&mut self, to: u8, constant: i32) {
        self.op(0x07, to, 0, 0, constant);
    }

    /// All 64 bits of a constant.
    fn load_wide(&mut self, to: u8, constant: u64) {
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0).cast_signed();
        self.op(0x18, to, 0, 0, half(constant));
        self.op(0, 0, 0, 0, half(constant >> 32));
    }

    fn load_map(&mut self, to: u8, map: &OwnedFd) {
        self.op(0x18, to, 1, 0, map.as_raw_fd());
        self.op(0, 0, 0, 0, 0);
    }

    /// Reads a word of 32 bits.
    fn load(&mut self, to: u8, from: u8, offset: i16) {
        self.op(0x61, to, from, offset, 0);
    }

    /// Writes a register as a word of 32 bits.
    fn store(&mut self, to: u8, from: u8, offset: i16) {
        self.op(0x63, to, from, offset, 0);
    }

    fn store_constant(&mut self, to: u8, offset: i16, constant: i32) {
        self.op(0x62, to, 0, offset, constant);
    }

    fn call(&mut self, helper: i32) {
        self.op(0x85, 0, 0, 0, helper);
    }

    fn exit_with(&mut self, answer: i32) {
        // As 32 bits: an answer is unsigned.
        self.op(0xb4, 0, 0, 0, answer);
        self.op(0x95, 0, 0, 0, 0);
    }

    /// A jump to a place not known yet.
    fn jump(&mut self, code: u8, register: u8, from: u8, constant: i32) -> usize {
        self.op(code, register, from, 0, constant);
        self.0.len() - 1
    }

    /// Lets a jump lead to what comes next.
    fn land(&mut self, jump: usize) -> io::Result<()> {
        let distance = self.0.len() - jump - 1;
        self.0[jump].offset = i16::try_from(distance)
            .map_err(|_| io::Error::other("more addresses than a steering program can hold"))?;
        Ok(())
    }

    /// Copies so many bytes of the packet's headers onto the stack, from the offset in register 2;
    /// the context is in register 6. What cannot be read ends the program without a choice.
    fn load_header(&mut self, to: i32, bytes: i32) -> io::Result<()> {
        self.move_register(1, 6);
        self.move_register(3, FRAME);
        self.add_constant(3, to);
        self.move_constant(4, bytes);
        self.move_constant(5, FROM_NETWORK_HEADER);
        self.call(CALL_LOAD_RELATIVE);
        let loaded = self.jump(IF_ZERO, 0, 0, 0);
        self.exit_with(0);
        self.land(loaded)
    }

    /// Jumps over what comes unless something of this probability happens; changes the first
    /// four registers.
    fn unless(&mut self, ratio: Ratio) -> usize {
        self.call(CALL_RANDOM);
        self.load_wide(3, threshold(ratio));
        self.jump(ALWAYS_GE, 0, 3, 0)
    }
}

const ALWAYS: u8 = 0x05;
const ALWAYS_GE: u8 = 0x3d;
const IF_NOT_ZERO: u8 = 0x55;
const IF_ZERO: u8 = 0x15;
const IF_AT_LEAST: u8 = 0x35;
const IF_OTHER_WORD: u8 = 0x56;
const ATOMIC_ADD: u8 = 0xdb;
const IF_BELOW: u8 = 0xa5;
const IF_ABOVE: u8 = 0x25;
const LOAD_BYTE: u8 = 0x71;
const LOAD_HALF: u8 = 0x69;
const AND: u8 = 0x57;
const SHIFT_LEFT: u8 = 0x67;
const FROM_NETWORK_ORDER: u8 = 0xdc;
/// The register that holds the source port.
const PORT: u8 = 7;
/// The frame pointer.
const FRAME: u8 = 10;

/// Reads the source port of the packet into its register, behind whatever options there are.
fn load_port(p: &mut Program, v4: bool) -> io::Result<()> {
    if v4 {
        p.move_constant(2, 0);
        p.load_header(-24, 1)?;
        // The length of the header in words of four bytes is the lower half of its first byte.
        p.op(LOAD_BYTE, 2, FRAME, -24, 0);
        p.op(AND, 2, 0, 0, 15);
        p.op(SHIFT_LEFT, 2, 0, 0, 2);
    } else {
        p.move_constant(2, 40);
    }
    p.load_header(-24, 2)?;
    p.op(LOAD_HALF, PORT, FRAME, -24, 0);
    p.op(FROM_NETWORK_ORDER, PORT, 0, 0, 16);
    Ok(())
}

/// Below it is a throw of 32 bits that meets the ratio.
fn threshold(ratio: Ratio) -> u64 {
    (u64::from(ratio.ppm()) << 32).div_ceil(1_000_000)
}

/// Loads a socket filter that loses segments.
///
/// # Errors
/// Where the kernel takes no such programs, or none of so many losses.
pub(crate) fn load_loss(losses: &[Loss]) -> io::Result<OwnedFd> {
    let state_bytes = u32::try_from(4 * losses.len().max(1)).map_err(io::Error::other)?;
    let state = create_map(MAP_ARRAY, state_bytes, 1)?;
    let program = losing(losses, &state)?;
    load(PROG_SOCKET_FILTER, &program)
}

fn losing(losses: &[Loss], state: &OwnedFd) -> io::Result<Program> {
    let mut p = Program::default();
    p.store_constant(FRAME, -4, 0);
    p.move_register(2, FRAME);
    p.add_constant(2, -4);
    p.load_map(1, state);
    p.call(CALL_LOOKUP);
    let found = p.jump(IF_NOT_ZERO, 0, 0, 0);
    p.exit_with(-1);
    p.land(found)?;
    p.move_register(7, 0);
    p.move_constant(8, 0);
    for (index, loss) in losses.iter().enumerate() {
        let at = i16::try_from(4 * index).map_err(io::Error::other)?;
        match *loss {
            Loss::Bernoulli(share) => {
                let kept = p.unless(share);
                p.move_constant(8, 1);
                p.land(kept)?;
            }
            Loss::Gilbert { enter, leave, good, bad } => {
                p.load(9, 7, at);
                let is_bad = p.jump(IF_NOT_ZERO, 9, 0, 0);
                let done_good = in_state(&mut p, (enter, good), (at, 1))?;
                p.land(is_bad)?;
                let done_bad = in_state(&mut p, (leave, bad), (at, 0))?;
                p.land(done_good)?;
                p.land(done_bad)?;
            }
            Loss::Burst { .. } => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "bursts take a clock"));
            }
        }
    }
    let lost = p.jump(IF_NOT_ZERO, 8, 0, 0);
    p.exit_with(-1);
    p.land(lost)?;
    p.exit_with(0);
    Ok(p)
}

/// What happens to a segment in one state: perhaps the other state comes next, perhaps it is lost.
/// Returns the jump to what follows.
fn in_state(
    p: &mut Program,
    (change, lose): (Ratio, Ratio),
    (at, other): (i16, i32),
) -> io::Result<usize> {
    let stays = p.unless(change);
    p.store_constant(7, at, other);
    p.land(stays)?;
    let kept = p.unless(lose);
    p.move_constant(8, 1);
    p.land(kept)?;
    Ok(p.jump(ALWAYS, 0, 0, 0))
}

/// The members of a reuseport group by place, and counters of who is refused.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Group {
    #[serde(with = "descriptor")]
    sockets: OwnedFd,
    #[serde(with = "descriptor")]
    refused: OwnedFd,
}

impl Group {
    /// A group with room for this many places and counters.
    ///
    /// # Errors
    /// Where the kernel takes no such maps.
    pub(crate) fn new(places: u32) -> io::Result<Self> {
        let sockets = create_map(MAP_SOCKETS, 8, places)?;
        Ok(Self { sockets, refused: create_map(MAP_ARRAY, 8, places)? })
    }

    /// Puts a listening socket in its place.
    ///
    /// # Errors
    /// Where it does not listen.
    pub(crate) fn put(&self, place: u32, socket: &impl AsFd) -> io::Result<()> {
        let fd = u64::try_from(socket.as_fd().as_raw_fd()).map_err(io::Error::other)?;
        map_call(MAP_UPDATE, &self.sockets, place, fd).map(|_| ())
    }

    /// SYNs refused so far on one counter.
    pub(crate) fn refused(&self, counter: u32) -> u64 {
        map_call(MAP_LOOKUP, &self.refused, counter, 0).unwrap_or(0)
    }

    /// Gives the reuseport group of `fd` a program that sends each source to its place.
    ///
    /// # Errors
    /// Where the kernel takes no such programs.
    pub(crate) fn attach(&self, fd: &impl AsFd, steering: &Steering, v4: bool) -> io::Result<()> {
        let program = load(PROG_REUSEPORT, &self.steering(steering, v4)?)?;
        set_option(fd, libc::SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &program.as_raw_fd())
    }

    fn steering(&self, steering: &Steering, v4: bool) -> io::Result<Program> {
        let mut p = Program::default();
        let number = |place: u32| i32::try_from(place).map_err(io::Error::other);
        let by_port = steering.ranges.keys().any(|address| address.is_ipv4() == v4);
        p.move_register(6, 1);
        if by_port {
            load_port(&mut p, v4)?;
        }
        // The source address of the packet, onto the stack.
        p.move_constant(2, if v4 { 12 } else { 8 });
        p.load_header(-16, if v4 { 4 } else { 16 })?;
        for word in 0..if v4 { 1 } else { 4 } {
            p.load(1 + word, FRAME, i16::from(word) * 4 - 16);
        }
        let mut decided = Vec::new();
        for (address, (ranges, rest)) in steering.addresses() {
            let octets = match address {
                IpAddr::V4(address) if v4 => address.octets().to_vec(),
                IpAddr::V6(address) if !v4 => address.octets().to_vec(),
                IpAddr::V4(_) | IpAddr::V6(_) => continue,
            };
            let mut others = Vec::new();
            for (word, bytes) in (1..).zip(octets.chunks_exact(4)) {
                let value = i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                others.push(p.jump(IF_OTHER_WORD, word, 0, value));
            }
            for (block, place) in ranges {
                let below = p.jump(IF_BELOW, PORT, 0, block.first.into());
                let above = p.jump(IF_ABOVE, PORT, 0, block.last().into());
                p.move_constant(8, number(*place)?);
                decided.push(p.jump(ALWAYS, 0, 0, 0));
                p.land(below)?;
                p.land(above)?;
            }
            p.move_constant(8, number(rest)?);
            decided.push(p.jump(ALWAYS, 0, 0, 0));
            for jump in others {
                p.land(jump)?;
            }
        }
        p.move_constant(8, number(steering.others)?);
        for jump in decided {
            p.land(jump)?;
        }
        self.decide(&mut p, number(REFUSED)?)?;
        Ok(p)
    }

    /// Selects the listener at the place in register 8, or refuses.
    fn decide(&self, p: &mut Program, first_refused: i32) -> io::Result<()> {
        let refuse = p.jump(IF_AT_LEAST, 8, 0, first_refused);
        p.store(FRAME, 8, -20);
        p.move_register(1, 6);
        p.load_map(2, &self.sockets);
        p.move_register(3, FRAME);
        p.add_constant(3, -20);
        p.move_constant(4, 0);
        p.call(CALL_SELECT);
        let failed = p.jump(IF_NOT_ZERO, 0, 0, 0);
        p.exit_with(1);
        // Without a decision the kernel would choose any listener: refusing is the safe way.
        p.land(failed)?;
        p.exit_with(0);
        p.land(refuse)?;
        p.add_constant(8, -first_refused);
        p.store(FRAME, 8, -20);
        p.load_map(1, &self.refused);
        p.move_register(2, FRAME);
        p.add_constant(2, -20);
        p.call(CALL_LOOKUP);
        let unknown = p.jump(IF_ZERO, 0, 0, 0);
        p.move_constant(1, 1);
        p.op(ATOMIC_ADD, 0, 1, 0, 0);
        p.land(unknown)?;
        p.exit_with(0);
        Ok(())
    }
}

/// Gives a TCP socket a loaded filter.
///
/// # Errors
/// Without CAP_NET_ADMIN.
pub(crate) fn attach_filter(fd: &impl AsFd, filter: &OwnedFd) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, SO_ATTACH_BPF, &filter.as_raw_fd())
}

/// Whether the kernel takes both kinds of programs from this process.
pub(crate) fn is_allowed() -> bool {
    let gilbert = Loss::Gilbert {
        enter: Ratio::ZERO,
        leave: Ratio::ONE,
        good: Ratio::ZERO,
        bad: Ratio::ZERO,
    };
    let steers = || {
        // The program names the group's maps by descriptor: they must live until it is loaded.
        let group = Group::new(1)?;
        let program = group.steering(&Steering::all(REFUSED), true)?;
        load(PROG_REUSEPORT, &program)
    };
    load_loss(&[gilbert]).and_then(|_| steers()).is_ok()
}

/// The parts of `union bpf_attr` that a new map needs.
#[repr(C)]
struct MapShape {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

/// The parts that an element of a map needs.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The parts that a program needs.
#[repr(C)]
struct Load {
    kind: u32,
    length: u32,
    program: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

fn create_map(kind: u32, value_bytes: u32, entries: u32) -> io::Result<OwnedFd> {
    let shape = MapShape { kind, key_bytes: 4, value_bytes, entries, flags: 0 };
    descriptor(call(MAP_CREATE, &shape)?)
}

/// Writes `value` to an element, or reads it; both are 8 bytes.
fn map_call(command: libc::c_long, map: &OwnedFd, key: u32, mut value: u64) -> io::Result<u64> {
    let element = Element {
        map: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: (&raw const key) as u64,
        value: (&raw mut value) as u64,
        flags: 0,
    };
    call(command, &element)?;
    Ok(value)
}

fn load(kind: u32, program: &Program) -> io::Result<OwnedFd> {
    let load = Load {
        kind,
        length: u32::try_from(program.0.len()).map_err(io::Error::other)?,
        program: program.0.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_bytes: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    descriptor(call(PROG_LOAD, &load)?)
}

/// bpf(2).
#[allow(unsafe_code, reason = "bpf has no wrapper")]
fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the structures above begin as `union bpf_attr` does for their command, and what they
    // point to lives until the call returns.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

#[allow(unsafe_code, reason = "a descriptor that a system call has just made")]
fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(answer).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for this process, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
