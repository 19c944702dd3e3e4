//! Reads what a waiting system call points to in the memory of the node.

use std::io;

use super::sockaddr::ADDRESS_BYTES_MAX;

/// The beginning of `struct msghdr`: a pointer to the address, and its length.
const MSGHDR_BYTES: usize = 12;

/// A destination as the program passed it, uninterpreted.
pub(super) struct RawAddress {
    bytes: [u8; ADDRESS_BYTES_MAX],
    count: usize,
}

impl RawAddress {
    /// What there is of it.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.count).unwrap_or_default()
    }
}

/// Reads an address of a stated length, at most what an IPv6 address takes.
pub(super) fn read_address(tid: u32, at: u64, length: u64) -> io::Result<RawAddress> {
    let mut bytes = [0; ADDRESS_BYTES_MAX];
    let wanted = usize::try_from(length).unwrap_or(usize::MAX).min(ADDRESS_BYTES_MAX);
    let count = read(tid, at, bytes.get_mut(..wanted).unwrap_or_default())?;
    Ok(RawAddress { bytes, count })
}

/// Reads the address out of a `struct msghdr`, or the first one of a list of `struct mmsghdr`.
pub(super) fn read_message_address(tid: u32, at: u64) -> io::Result<RawAddress> {
    let mut header = [0; MSGHDR_BYTES];
    if read(tid, at, &mut header)? < MSGHDR_BYTES {
        return Err(io::Error::from_raw_os_error(libc::EFAULT));
    }
    let [a, b, c, d, e, f, g, h, length @ ..] = header;
    let name = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    if name == 0 {
        return Ok(RawAddress { bytes: [0; ADDRESS_BYTES_MAX], count: 0 });
    }
    read_address(tid, name, u32::from_ne_bytes(length).into())
}

/// Reads memory of another thread's process; fewer bytes where it ends in between.
#[allow(unsafe_code, reason = "process_vm_readv has no safe wrapper")]
fn read(tid: u32, at: u64, into: &mut [u8]) -> io::Result<usize> {
    let pid = i32::try_from(tid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let at = usize::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote =
        libc::iovec { iov_base: std::ptr::without_provenance_mut(at), iov_len: into.len() };
    // SAFETY: the kernel writes at most `into.len()` bytes to `into`; the remote address is checked
    // by the kernel in the other process, and a bad one is an error.
    let count =
        unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
