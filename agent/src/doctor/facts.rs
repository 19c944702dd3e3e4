//! Looks at this machine. What the findings mean is `judge`'s.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::{Resource, getrlimit};

use super::ask::{self, Notify};
use crate::{node, proxy};

/// Leftover processes that are told of; more are counted.
pub(super) const LEFTOVERS_MAX: usize = 8;

/// Where systemd finds the agent's unit, those that win first.
const UNIT_DIRS: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// `6.1.0-18-amd64`.
    pub(super) release: String,
    pub(super) notify: Notify,
    pub(super) pidfd: bool,
    /// What a proxy of this process could do, found out by trying.
    pub(super) deafness: bool,
    pub(super) filters: bool,
    pub(super) programs: bool,
    /// Who runs this.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The effective capabilities, by their bits.
    pub(super) capabilities: u64,
    /// Most open files of a process; `None` is without limit.
    pub(super) nofile: Option<u64>,
    /// `fs.pipe-user-pages-soft`.
    pub(super) pipe_pages: Option<u64>,
    /// Hops that packets of this machine begin with.
    pub(super) default_ttl: Option<u64>,
    pub(super) hop_limit: Option<u64>,
    /// `ip_local_port_range`.
    pub(super) port_range: Option<(u16, u16)>,
    /// `ip_unprivileged_port_start`: from here on anybody may listen.
    pub(super) free_ports_from: Option<u64>,
    pub(super) tcp_timestamps: Option<u64>,
    /// `kernel.yama.ptrace_scope`; `None` without Yama.
    pub(super) yama: Option<u64>,
    pub(super) clock_is_kept: Option<bool>,
    /// Tags and pids of processes that hang on no shim, and how many there are.
    pub(super) leftovers: Vec<(String, i32)>,
    pub(super) disk: Option<Disk>,
    /// What the installed unit says of `KillMode`; `None` where there is no unit.
    pub(super) kill_mode: Option<(PathBuf, Option<String>)>,
}

/// The file system under the agent's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) dir: PathBuf,
    pub(super) free_bytes: u64,
    pub(super) free_files: u64,
    /// Mounted so that no program on it can be started.
    pub(super) noexec: bool,
}

pub(super) fn gather(dir: &Path) -> Facts {
    let abilities = proxy::abilities();
    let status = read("/proc/self/status").unwrap_or_default();
    let mut tagged = node::leftovers(Path::new("/")).unwrap_or_default();
    // Those of a container are looked after in there, by files that cannot be seen from here.
    let files_of = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let here = files_of("self");
    tagged.retain(|left| files_of(&left.process.pid.to_string()) == here);
    Facts {
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        notify: ask::notify(),
        pidfd: rustix::process::pidfd_open(
            rustix::process::getpid(),
            rustix::process::PidfdFlags::empty(),
        )
        .is_ok(),
        deafness: abilities.deafness,
        filters: abilities.filters,
        programs: abilities.programs,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        capabilities: effective(&status),
        nofile: getrlimit(Resource::Nofile).maximum,
        pipe_pages: number("/proc/sys/fs/pipe-user-pages-soft"),
        default_ttl: number("/proc/sys/net/ipv4/ip_default_ttl"),
        hop_limit: number("/proc/sys/net/ipv6/conf/all/hop_limit"),
        port_range: read("/proc/sys/net/ipv4/ip_local_port_range").and_then(|text| range(&text)),
        free_ports_from: number("/proc/sys/net/ipv4/ip_unprivileged_port_start"),
        tcp_timestamps: number("/proc/sys/net/ipv4/tcp_timestamps"),
        yama: number("/proc/sys/kernel/yama/ptrace_scope"),
        clock_is_kept: ask::clock_is_kept(),
        leftovers: tagged.into_iter().map(|left| (left.tag, left.process.pid)).collect(),
        disk: disk(dir),
        kill_mode: kill_mode(),
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

fn range(text: &str) -> Option<(u16, u16)> {
    let mut ports = text.split_whitespace().map(|word| word.parse().ok());
    Some((ports.next()??, ports.next()??))
}

/// The line `CapEff` of a process' status.
fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default()
}

/// The file system of `dir`, or of where it would be made.
fn disk(dir: &Path) -> Option<Disk> {
    let there = dir.ancestors().find(|dir| dir.exists())?;
    let found = rustix::fs::statvfs(there).ok()?;
    Some(Disk {
        dir: dir.to_owned(),
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        free_files: found.f_favail,
        noexec: found.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC),
    })
}

/// The agent's unit, and what it and what is put over it say of `KillMode`.
fn kill_mode() -> Option<(PathBuf, Option<String>)> {
    let units = UNIT_DIRS.iter().map(|dir| Path::new(dir).join("faultbed-agent.service"));
    let unit = units.into_iter().find(|path| path.exists())?;
    let mut texts = vec![fs::read_to_string(&unit).unwrap_or_default()];
    let over = fs::read_dir("/etc/systemd/system/faultbed-agent.service.d");
    let mut over: Vec<PathBuf> =
        over.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    over.sort();
    texts.extend(over.iter().map(|path| fs::read_to_string(path).unwrap_or_default()));
    let mut said = texts.iter().flat_map(|text| text.lines()).filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "KillMode").then(|| value.trim().to_owned())
    });
    Some((unit, said.next_back()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(range("32768\t60999"), Some((32768, 60999)));
        assert_eq!(range("32768"), None);
        assert_eq!(effective("Name:\tx\nCapEff:\t0000000000001000\n"), 1 << 12);
        assert_eq!(effective(""), 0);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_has_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let found = disk(&dir.path().join("not/yet")).unwrap();
        assert!(found.free_bytes > 0);
    }
}
