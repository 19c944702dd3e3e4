//! The seccomp filter that makes the kernel ask the shim before each connect, bind and sync of the node.
//!
//! It refuses nothing but io_uring: `connect`, sends that open a connection (TCP fast open), `bind`, and
//! what waits for a disk wait for the shim's answer, which is to go on, or for a bind that it was done.
//! io_uring would do all of it without asking.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::start::own;

/// Flag of the send calls that also connects.
const MSG_FASTOPEN: u32 = 0x2000_0000;
/// Flag of `msync` that waits for the disk.
const MS_SYNC: u32 = libc::MS_SYNC as u32;
/// The size of a `sockaddr_un`: programs in C pass it whole, and it spares them the round trip.
const SOCKADDR_UN_BYTES: u32 = 110;
/// The size of a `sockaddr_in`, the least that can name a proxy.
const SOCKADDR_IN_BYTES: u32 = 16;
/// System calls of the x32 ABI have this bit; they are not covered.
#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;

/// The only system call ABI that the filter looks at.
#[cfg(target_arch = "x86_64")]
const NATIVE_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE_ARCH: u32 = 0xc000_00b7;

// Offsets in the kernel's `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;

/// The low half of an argument; both architectures are little-endian.
const fn argument_at(index: u32) -> u32 {
    16 + 8 * index
}

// Classic BPF: load a word at an offset, jump on a comparison with it, return a verdict.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_NOT_LESS: u16 = 0x35;
const JUMP_BITS: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const ASK: u32 = libc::SECCOMP_RET_USER_NOTIF;
const NO_SUCH_CALL: u32 = libc::SECCOMP_RET_ERRNO | 38;

fn load(at: u32) -> libc::sock_filter {
    libc::sock_filter { code: LOAD, jt: 0, jf: 0, k: at }
}

fn give(verdict: u32) -> libc::sock_filter {
    libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: verdict }
}

/// Goes on with the next instruction where the comparison holds, else skips `skip` of them.
fn unless(code: u16, value: u32, skip: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: skip, k: value }
}

fn number_of(call: libc::c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

/// The filter. Each call that matters has a block that ends in a verdict.
pub(super) fn program() -> Vec<libc::sock_filter> {
    let native = libc::sock_filter { code: JUMP_EQUAL, jt: 1, jf: 0, k: NATIVE_ARCH };
    let mut program = vec![load(ARCH_AT), native, give(ALLOW), load(NUMBER_AT)];
    #[cfg(target_arch = "x86_64")]
    program.extend([unless(JUMP_NOT_LESS, X32_BIT, 1), give(ALLOW)]);
    program
        .extend([unless(JUMP_EQUAL, number_of(libc::SYS_io_uring_setup), 1), give(NO_SUCH_CALL)]);
    for call in [libc::SYS_connect, libc::SYS_bind] {
        program.extend([
            unless(JUMP_EQUAL, number_of(call), 6),
            load(argument_at(2)),
            unless(JUMP_EQUAL, SOCKADDR_UN_BYTES, 1),
            give(ALLOW),
            unless(JUMP_NOT_LESS, SOCKADDR_IN_BYTES, 1),
            give(ASK),
            give(ALLOW),
        ]);
    }
    let sends = [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)];
    for (call, flags) in sends {
        program.extend([
            unless(JUMP_EQUAL, number_of(call), 4),
            load(argument_at(flags)),
            unless(JUMP_BITS, MSG_FASTOPEN, 1),
            give(ASK),
            give(ALLOW),
        ]);
    }
    for call in SYNCS {
        program.extend([unless(JUMP_EQUAL, number_of(call), 1), give(ASK)]);
    }
    program.extend([
        unless(JUMP_EQUAL, number_of(libc::SYS_msync), 4),
        load(argument_at(2)),
        unless(JUMP_BITS, MS_SYNC, 1),
        give(ASK),
        give(ALLOW),
    ]);
    program.push(give(ALLOW));
    program
}

/// Calls that come back when a disk has what was written. Writes that wait for it by themselves
/// (`O_DSYNC`, `O_DIRECT`) cannot be told from others by their arguments.
pub(super) const SYNCS: [libc::c_long; 5] = [
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_sync,
];

/// Puts the filter on this process and all it will start; returns the listener, closed on exec.
///
/// WAIT_KILLABLE_RECV keeps a call from being restarted for ever by signals that come faster than
/// answers; kernels before 5.19 do without. Without CAP_SYS_ADMIN, and only then, no_new_privs is
/// set, which takes its power from set-uid programs.
pub(super) fn install() -> Result<OwnedFd, Errno> {
    let best = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    match install_with(best) {
        Err(Errno::INVAL) => install_with(0),
        other => other,
    }
}

fn install_with(flags: libc::c_ulong) -> Result<OwnedFd, Errno> {
    match seccomp(flags) {
        Err(Errno::ACCESS) => {
            rustix::thread::set_no_new_privs(true)?;
            seccomp(flags)
        }
        other => other,
    }
}

#[allow(unsafe_code, reason = "seccomp has no safe wrapper")]
fn seccomp(flags: libc::c_ulong) -> Result<OwnedFd, Errno> {
    let mut filter = program();
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: `program` points to `filter`, and both outlive the call, which copies them.
    let raw = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    let raw = i32::try_from(raw).unwrap_or(-1);
    own(raw).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would.
    fn verdict(arch: u32, call: libc::c_long, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number_of(call).to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        arguments.iter().for_each(|argument| data.extend(argument.to_le_bytes()));
        let program = program();
        let (mut at, mut word) = (0, 0);
        loop {
            let insn = program[at];
            at += 1;
            let holds = match insn.code {
                LOAD => {
                    let from = insn.k as usize;
                    word = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
                    continue;
                }
                RETURN => return insn.k,
                JUMP_EQUAL => word == insn.k,
                JUMP_NOT_LESS => word >= insn.k,
                JUMP_BITS => word & insn.k != 0,
                code => panic!("{code:#x}"),
            };
            at += usize::from(if holds { insn.jt } else { insn.jf });
        }
    }

    #[test]
    fn only_what_opens_a_connection_binds_or_waits_for_a_disk_asks() {
        let on = |call, arguments| verdict(NATIVE_ARCH, call, arguments);
        let fastopen = u64::from(MSG_FASTOPEN) | 0x4000;
        assert_eq!(on(libc::SYS_connect, [3, 9, 16, 0, 0, 0]), ASK, "sockaddr_in");
        assert_eq!(on(libc::SYS_connect, [3, 9, 28, 0, 0, 0]), ASK, "sockaddr_in6");
        assert_eq!(on(libc::SYS_connect, [3, 9, 128, 0, 0, 0]), ASK, "sockaddr_storage");
        assert_eq!(on(libc::SYS_connect, [3, 9, 110, 0, 0, 0]), ALLOW, "sockaddr_un");
        assert_eq!(on(libc::SYS_connect, [3, 9, 2, 0, 0, 0]), ALLOW, "a lone family");
        assert_eq!(on(libc::SYS_bind, [3, 9, 16, 0, 0, 0]), ASK);
        assert_eq!(on(libc::SYS_bind, [3, 9, 12, 0, 0, 0]), ALLOW, "sockaddr_nl");
        assert_eq!(on(libc::SYS_sendto, [3, 9, 9, fastopen, 9, 16]), ASK);
        assert_eq!(on(libc::SYS_sendto, [3, 9, fastopen, 0x4000, 9, 16]), ALLOW);
        assert_eq!(on(libc::SYS_sendmsg, [3, 9, fastopen, 0, 0, 0]), ASK);
        assert_eq!(on(libc::SYS_sendmsg, [3, 9, 0x4000, 0, 0, 0]), ALLOW);
        assert_eq!(on(libc::SYS_sendmmsg, [3, 9, 1, fastopen, 0, 0]), ASK);
        assert_eq!(on(libc::SYS_io_uring_setup, [0; 6]), NO_SUCH_CALL);
        assert_eq!(on(libc::SYS_fsync, [3, 0, 0, 0, 0, 0]), ASK);
        assert_eq!(on(libc::SYS_fdatasync, [3, 0, 0, 0, 0, 0]), ASK);
        assert_eq!(on(libc::SYS_msync, [9, 4096, 4, 0, 0, 0]), ASK);
        assert_eq!(on(libc::SYS_msync, [9, 4096, 1, 0, 0, 0]), ALLOW, "MS_ASYNC");
        assert_eq!(on(libc::SYS_write, [u64::MAX; 6]), ALLOW);
        assert_eq!(verdict(0x4000_0003, libc::SYS_connect, [3, 9, 16, 0, 0, 0]), ALLOW, "32 bit");
    }
}
