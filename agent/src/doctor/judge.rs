//! Judges what was found on a machine. Pure.

use faultbed_common::check::Check;

use super::{
    ask::Notify,
    facts::{Disk, Facts, LEFTOVERS_MAX},
};

/// The oldest kernel a lab runs on at all: pidfds, and polling them.
const KERNEL_MIN: (u32, u32) = (5, 4);

/// Fewer open files than this are soon too few for a proxy: a connection takes two, and more while
/// its bytes are held.
const NOFILE_MIN: u64 = 4096;

/// Pipe pages of one user that let every connection have its pipes.
const PIPE_PAGES_MIN: u64 = 16_384;

/// A cut drops what arrives with fewer hops than this left, so nobody may begin with as many.
const HOPS_OF_CUT: u64 = 255;

/// Where the blocks of ports begin from which nodes dial other hosts.
const BLOCKS_FIRST: u16 = 10_240;

/// Ports of such a block where nobody asks for more.
const BLOCK_PORTS: u32 = 128;

/// With room for fewer blocks the nodes of an ordinary host do not all get one.
const BLOCKS_MIN: u32 = 32;

/// Below this much room nodes soon stop.
const FREE_BYTES_MIN: u64 = 256 << 20;

/// Below this much, logs and data of an afternoon may fill it.
const FREE_BYTES_WANTED: u64 = 2 << 30;

/// Files that can still be made.
const FREE_FILES_MIN: u64 = 1000;

/// Whether this is root already, so that a container or a unit keeps it from something.
fn is_root(facts: &Facts) -> bool {
    facts.uid == 0
}

/// How to come by what the kernel asks for network filters.
fn give_net(check: Check, facts: &Facts) -> Check {
    if is_root(facts) {
        return check.advise("give CAP_NET_ADMIN and CAP_BPF to this container or unit");
    }
    let Facts { uid, gid, .. } = facts;
    // For a local lab of an ordinary user, who stays the owner of everything.
    check.advise("run the agent by its unit, which has CAP_NET_ADMIN and CAP_BPF").root(&format!(
        "sudo -E setpriv --reuid {uid} --regid {gid} --init-groups --inh-caps \
             +net_admin,+bpf --ambient-caps +net_admin,+bpf faultbed up -d"
    ))
}

/// Every check, in the order in which people should read them.
pub(super) fn judge(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![
        kernel(&facts.release),
        notify(facts.notify),
        pidfd(facts.pidfd),
        cuts(facts.deafness),
        ttl(facts),
        loss(facts),
        programs(facts),
    ];
    checks.extend(POWERS.iter().map(|power| power.judge(facts)));
    checks.push(low_ports(facts));
    checks.extend([
        files(facts.nofile),
        pipes(facts.pipe_pages),
        ports(facts.port_range),
        timestamps(facts.tcp_timestamps),
        yama(facts),
        clock(facts.clock_is_kept),
        disk(facts.disk.as_ref()),
        leftovers(&facts.leftovers),
    ]);
    checks.extend(unit(facts));
    checks
}

fn kernel(release: &str) -> Check {
    match parse_release(release) {
        Some(version) if version >= KERNEL_MIN => Check::ok("kernel", release),
        _ => Check::fail("kernel", release, "nothing runs: processes cannot be held by pidfds")
            .advise("run Linux 5.4 or newer; 5.19 or newer has all that is used"),
    }
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn notify(notify: Notify) -> Check {
    let what = "seccomp notify";
    match notify {
        Notify::Killable => Check::ok(what, "connections are named by their source address"),
        Notify::Plain => Check::warn(
            what,
            "without WAIT_KILLABLE_RECV",
            "a node whose runtime sends itself many signals (Go) may connect more slowly",
        )
        .advise("run Linux 5.19 or newer"),
        Notify::None => Check::warn(
            what,
            "not allowed here",
            "each new connection is looked up to know who dials, which is slower; on other hosts \
             their proxy is asked",
        )
        .advise("allow seccomp user notification in this container"),
    }
}

fn pidfd(is_there: bool) -> Check {
    if is_there {
        return Check::ok("pidfd", "nodes are held by descriptors, never by number");
    }
    Check::fail("pidfd", "not allowed here", "no node can be started or ended safely")
        .advise("allow pidfd_open in this container, or run Linux 5.4 or newer")
}

fn cuts(deafness: bool) -> Check {
    if deafness {
        return Check::ok("packet-grade cuts", "the kernel drops by hop count (IP_MINTTL)");
    }
    Check::warn(
        "packet-grade cuts",
        "sockets take no IP_MINTTL",
        "cuts are of grade stream: peers still get acknowledgements",
    )
    .advise("run on Linux's own network stack, not on an emulated one")
}

fn ttl(facts: &Facts) -> Check {
    let what = "ip_default_ttl";
    let cost = "other hosts cannot cut this one at grade packet: what it sends looks as if it came \
                past the cut";
    let too_many = |hops: Option<u64>| hops.is_some_and(|hops| hops >= HOPS_OF_CUT);
    if too_many(facts.default_ttl) {
        return Check::fail(what, "packets begin with 255 hops", cost)
            .root("sysctl -w net.ipv4.ip_default_ttl=64");
    }
    if too_many(facts.hop_limit) {
        return Check::fail(what, "IPv6 packets begin with 255 hops", cost)
            .root("sysctl -w net.ipv6.conf.all.hop_limit=64 net.ipv6.conf.default.hop_limit=64");
    }
    match facts.default_ttl {
        Some(hops) => Check::ok(what, hops),
        None => Check::warn(what, "cannot be read", "nobody knows whether cuts hold here")
            .advise("mount /proc/sys in this container"),
    }
}

fn loss(facts: &Facts) -> Check {
    let what = "packet-grade loss";
    if facts.filters {
        return Check::ok(what, "the kernel loses segments (CAP_NET_ADMIN)");
    }
    let costs = "loss of a share of segments is of grade stream: lateness as after a \
                 retransmission; loss in bursts is of grade packet all the same";
    give_net(Check::warn(what, "no CAP_NET_ADMIN", costs), facts)
}

fn programs(facts: &Facts) -> Check {
    let what = "eBPF programs";
    if facts.programs {
        return Check::ok(what, "loss with memory and refused SYNs are the kernel's (CAP_BPF)");
    }
    let found = if facts.filters { "no CAP_BPF" } else { "no CAP_NET_ADMIN and CAP_BPF" };
    let costs = "loss with memory (p=… r=…) is of grade stream, and `refuse` accepts and resets \
                 instead of answering the SYN";
    give_net(Check::warn(what, found, costs), facts)
}

/// A capability that is wanted for one thing each.
struct Power<'a> {
    what: &'static str,
    bits: &'static [u32],
    names: &'static str,
    costs: &'a str,
}

/// Which there are. Bits as in `linux/capability.h`.
const POWERS: [Power<'static>; 2] = [
    Power {
        what: "users of nodes",
        bits: &[6, 7],
        names: "CAP_SETUID, CAP_SETGID",
        costs: "all nodes run as this user; one that must not be root, such as PostgreSQL, runs \
                only where this user is not root either",
    },
    Power {
        what: "limits of nodes",
        bits: &[24],
        names: "CAP_SYS_RESOURCE",
        costs: "`limits` of a blueprint reach no further than this user's own hard limits",
    },
];

impl Power<'_> {
    fn is_there(&self, facts: &Facts) -> bool {
        self.bits.iter().all(|bit| (facts.capabilities >> bit) & 1 == 1)
    }

    fn judge(&self, facts: &Facts) -> Check {
        let Self { what, names, costs, .. } = self;
        if self.is_there(facts) {
            return Check::ok(what, names);
        }
        let check = Check::warn(what, format!("no {names}"), costs);
        if is_root(facts) {
            return check.advise(&format!("give {names} to this container or unit"));
        }
        check.root("systemctl enable --now faultbed-agent   # its unit has them")
    }
}

/// Ports below this are root's where nobody said otherwise.
const ROOTS_PORTS_END: u64 = 1024;

/// Ports below 1024, which the kernel may have been told to give to anybody.
fn low_ports(facts: &Facts) -> Check {
    let first = facts.free_ports_from.unwrap_or(ROOTS_PORTS_END);
    let costs = format!("no node can be reached at a port below {first}");
    let power = Power {
        what: "low ports",
        bits: &[NET_BIND_SERVICE],
        names: "CAP_NET_BIND_SERVICE",
        costs: &costs,
    };
    if first > 1 || power.is_there(facts) {
        return power.judge(facts);
    }
    Check::ok(power.what, "anybody may listen at them (ip_unprivileged_port_start)")
}

fn files(most: Option<u64>) -> Check {
    match most {
        None => Check::ok("open files", "without limit"),
        Some(most) if most >= NOFILE_MIN => Check::ok("open files", most),
        Some(most) => Check::warn(
            "open files",
            most,
            "a proxy refuses connections when its descriptors are used up: two for each, and pipes",
        )
        .advise("ulimit -Hn 65536, where your limits allow it")
        .root("systemctl edit faultbed-agent   # [Service] LimitNOFILE=1048576"),
    }
}

fn pipes(pages: Option<u64>) -> Check {
    let what = "pipe pages";
    match pages {
        Some(0) | None => Check::ok(what, "without limit"),
        Some(pages) if pages >= PIPE_PAGES_MIN => Check::ok(what, pages),
        Some(pages) => Check::warn(
            what,
            format!("{pages} for each user"),
            "large streams are forwarded by copying when many of them are open",
        )
        .root("sysctl -w fs.pipe-user-pages-soft=65536"),
    }
}

fn ports(range: Option<(u16, u16)>) -> Check {
    let what = "port range";
    let Some((first, last)) = range else {
        return Check::warn(what, "cannot be read", "32768 to 60999 is taken for granted")
            .advise("mount /proc/sys in this container");
    };
    let below = u32::from(first.saturating_sub(BLOCKS_FIRST));
    let above = u32::from(u16::MAX - last.max(BLOCKS_FIRST - 1));
    let blocks = below / BLOCK_PORTS + above / BLOCK_PORTS;
    let found = format!("{first} to {last}; room for {blocks} blocks of {BLOCK_PORTS} ports");
    if blocks >= BLOCKS_MIN {
        return Check::ok(what, found);
    }
    Check::warn(
        what,
        found,
        "nodes without a block of their own are told apart on other hosts by asking this host's \
         proxy, and connections of others may take a port that a node listens on",
    )
    .root("sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"")
}

fn timestamps(value: Option<u64>) -> Check {
    let what = "tcp_timestamps";
    match value {
        Some(0) => Check::warn(
            what,
            "off",
            "under loss and latency connections recover more slowly than on other hosts: a \
             retransmission cannot be told from the segment it repeats",
        )
        .root("sysctl -w net.ipv4.tcp_timestamps=1"),
        Some(_) => Check::ok(what, "on"),
        None => Check::ok(what, "not said"),
    }
}

/// Bit of CAP_NET_BIND_SERVICE.
const NET_BIND_SERVICE: u32 = 10;

/// Bit of CAP_SYS_PTRACE.
const SYS_PTRACE: u32 = 19;

fn yama(facts: &Facts) -> Check {
    let what = "ptrace_scope";
    let may_trace = (facts.capabilities >> SYS_PTRACE) & 1 == 1;
    match facts.yama {
        None => Check::ok(what, "no Yama here"),
        // The shim is the parent of what it reads.
        Some(scope @ (0 | 1)) => Check::ok(what, scope),
        Some(2) if may_trace => Check::ok(what, "2, with CAP_SYS_PTRACE"),
        Some(scope) => Check::warn(
            what,
            scope,
            "no shim may read where its node connects to, so who dials is looked up",
        )
        .root("sysctl -w kernel.yama.ptrace_scope=1   # 3 goes away only with a boot"),
    }
}

fn clock(is_kept: Option<bool>) -> Check {
    let what = "clock";
    match is_kept {
        Some(true) => Check::ok(what, "kept right"),
        Some(false) => Check::warn(
            what,
            "nothing keeps it right, as far as the kernel knows",
            "times in logs of several hosts cannot be compared; deadlines of faults do not need it",
        )
        .root("timedatectl set-ntp true   # or: apt-get install chrony"),
        None => Check::ok(what, "the kernel does not say whether it is kept right"),
    }
}

fn disk(disk: Option<&Disk>) -> Check {
    let what = "disk";
    let Some(Disk { dir, free_bytes, free_files, noexec }) = disk else {
        return Check::warn(what, "cannot be looked at", "nobody knows how much room is left")
            .advise("name the agent's directory: faultbed-agent doctor --dir DIR");
    };
    let dir = dir.display();
    let found = format!("{} free for {dir}", bytes(*free_bytes));
    // Some file systems count no files and say 0.
    let few_files = (1..FREE_FILES_MIN).contains(free_files);
    if *noexec {
        let costs = "no node starts: programs are pinned there, and it is mounted noexec";
        return Check::fail(what, found, costs)
            .advise("choose another directory: --dir")
            .root(&format!("mount -o remount,exec $(findmnt -no TARGET -T {dir})"));
    }
    if *free_bytes < FREE_BYTES_MIN || few_files {
        let found = if few_files { format!("{found}, {free_files} files") } else { found };
        return Check::fail(what, found, "nodes stop when nothing more can be written")
            .advise("make room, or choose another directory: --dir");
    }
    if *free_bytes < FREE_BYTES_WANTED {
        return Check::warn(what, found, "data and logs of a long run may fill it")
            .advise("make room, or choose another directory: --dir");
    }
    Check::ok(what, found)
}

fn bytes(count: u64) -> String {
    match count {
        0..1_000_000_000 => format!("{} MB", count / 1_000_000),
        _ => format!("{}.{} GB", count / 1_000_000_000, count / 100_000_000 % 10),
    }
}

fn leftovers(left: &[(String, i32)]) -> Check {
    let what = "leftovers";
    if left.is_empty() {
        return Check::ok(what, "no process of an earlier run");
    }
    let mut words: Vec<String> =
        left.iter().take(LEFTOVERS_MAX).map(|(tag, pid)| format!("{tag} pid {pid}")).collect();
    if left.len() > LEFTOVERS_MAX {
        words.push(format!("and {} more", left.len() - LEFTOVERS_MAX));
    }
    let pids: Vec<String> = left.iter().map(|(_, pid)| pid.to_string()).collect();
    Check::warn(
        what,
        words.join(", "),
        "they hold ports and data directories of nodes whose shim is gone",
    )
    .advise("faultbed down --orphans, or: faultbed-agent down --dir DIR")
    .root(&format!("kill -9 {}", pids.join(" ")))
}

fn unit(facts: &Facts) -> Option<Check> {
    let (path, said) = facts.kill_mode.as_ref()?;
    Some(match said.as_deref() {
        Some("process") => Check::ok("unit", format!("{}, KillMode=process", path.display())),
        said => Check::fail(
            "unit",
            format!("{}, KillMode={}", path.display(), said.unwrap_or("control-group")),
            "a restart of the agent ends every node and heals every fault",
        )
        .root("systemctl edit faultbed-agent   # [Service] KillMode=process"),
    })
}

#[cfg(test)]
mod tests;
