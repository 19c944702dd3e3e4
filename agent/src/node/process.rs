//! Processes told apart for good: a pid alone is used again, with its start time it is not.

use std::{fs, io, os::fd::OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// The file system type of pidfds (Linux 6.9 and later), where inode numbers name processes.
const PIDFS_MAGIC: u64 = 0x5049_4446;

/// One process of one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
    /// Its pidfd's inode, unique in one boot; `None` on kernels before 6.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pidfd_inode: Option<u64>,
}

/// What is used of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcStat {
    /// `R`, `S`, `D`, `T` (stopped), `Z` (ended, not collected), …
    pub state: u8,
    /// Its parent.
    pub parent: i32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl ProcStat {
    /// Parses one `/proc/PID/stat`. The name in it may hold anything, also `)` and newlines, so
    /// everything is counted from the last `)`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let after_name = text.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(text.get(after_name + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        // State is field 3 and the parent field 4; the start time is field 22.
        let start_ticks = fields.nth(22 - 5)?.parse().ok()?;
        Some(Self { state, parent, start_ticks })
    }

    /// Reads that of `pid`; `None` where there is no such process.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Whether it has ended, although its parent has not collected it.
    #[must_use]
    pub fn ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// Whether it waits for something that no signal interrupts: a disk, or the child of a vfork.
    #[must_use]
    pub fn uninterruptible(&self) -> bool {
        self.state == b'D'
    }

    /// Whether a stop signal holds it.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.state == b'T'
    }
}

impl ProcessId {
    /// The process that has this pid now. Meant for one's own children, whose pids cannot be used
    /// again before they are collected.
    ///
    /// # Errors
    /// Where there is no such process.
    pub fn of(pid: i32) -> io::Result<Self> {
        let fd = open_pidfd(pid)?;
        let stat = ProcStat::of(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, start_ticks: stat.start_ticks, pidfd_inode: pidfd_inode(&fd) })
    }

    /// Opens it, unless it is gone or its pid has gone to another process.
    ///
    /// The descriptor is opened first and compared after: it then stays with the process that was
    /// compared, whatever happens to the pid.
    ///
    /// # Errors
    /// Where the kernel refuses for another reason than the process being gone.
    pub fn open(&self) -> io::Result<Option<(OwnedFd, ProcStat)>> {
        let fd = match open_pidfd(self.pid) {
            Ok(fd) => fd,
            // EINVAL: the pid now is that of a thread, so the process is gone.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let Some(stat) = ProcStat::of(self.pid) else { return Ok(None) };
        let same_inode = match (self.pidfd_inode, pidfd_inode(&fd)) {
            (Some(recorded), Some(now)) => recorded == now,
            _ => true,
        };
        Ok((same_inode && stat.start_ticks == self.start_ticks).then_some((fd, stat)))
    }

    /// Whether it runs: it is there, it is the same, and it has not ended.
    ///
    /// # Errors
    /// As [`ProcessId::open`].
    pub fn is_alive(&self) -> io::Result<bool> {
        Ok(self.open()?.is_some_and(|(_, stat)| !stat.ended()))
    }
}

/// Opens a pidfd, closed on exec.
///
/// # Errors
/// As pidfd_open(2).
pub fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// The inode that names a process; before Linux 6.9 all pidfds share one, which says nothing.
fn pidfd_inode(fd: &OwnedFd) -> Option<u64> {
    let on_pidfs =
        rustix::fs::fstatfs(fd).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(PIDFS_MAGIC));
    if on_pidfs { rustix::fs::fstat(fd).ok().map(|stat| stat.st_ino) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_full_of_brackets_does_not_move_the_fields() {
        let text = b"42 (a) b) (\n) S 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 8631 5 6";
        let stat = ProcStat::parse(text).unwrap();
        assert_eq!(stat, ProcStat { state: b'S', parent: 7, start_ticks: 8631 });
        assert_eq!(ProcStat::parse(b"42 (cut off"), None);
    }

    #[test]
    fn a_recycled_pid_is_another_process() {
        let own = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_alive().unwrap());
        let earlier = ProcessId { start_ticks: own.start_ticks - 1, ..own };
        assert!(!earlier.is_alive().unwrap());
        if let Some(inode) = own.pidfd_inode {
            assert!(!ProcessId { pidfd_inode: Some(inode + 1), ..own }.is_alive().unwrap());
        }
    }
}
