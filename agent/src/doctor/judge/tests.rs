//! What is said of machines that lack something.

use faultbed_common::check::CheckVerdict;

use super::*;

/// A machine that lacks nothing.
fn whole() -> Facts {
    Facts {
        release: "6.1.0-18-amd64".to_owned(),
        notify: Notify::Killable,
        pidfd: true,
        deafness: true,
        filters: true,
        programs: true,
        uid: 0,
        gid: 0,
        capabilities: u64::MAX,
        nofile: Some(1 << 20),
        pipe_pages: Some(16_384),
        default_ttl: Some(64),
        hop_limit: Some(64),
        port_range: Some((32768, 60999)),
        free_ports_from: Some(1024),
        tcp_timestamps: Some(1),
        yama: Some(1),
        clock_is_kept: Some(true),
        leftovers: Vec::new(),
        disk: Some(Disk {
            dir: "/var/lib/faultbed".into(),
            free_bytes: 50 << 30,
            free_files: 1 << 20,
            noexec: false,
        }),
        kill_mode: Some((
            "/usr/lib/systemd/system/faultbed-agent.service".into(),
            Some("process".into()),
        )),
    }
}

/// The one check that does not go well after `change`.
fn found(change: impl FnOnce(&mut Facts)) -> Check {
    let mut facts = whole();
    change(&mut facts);
    let mut bad: Vec<Check> =
        judge(&facts).into_iter().filter(|check| check.verdict != CheckVerdict::Ok).collect();
    assert_eq!(bad.len(), 1, "{bad:?}");
    bad.remove(0)
}

#[test]
fn a_machine_that_lacks_nothing_is_ok_everywhere() {
    let checks = judge(&whole());
    assert!(checks.iter().all(|check| check.verdict == CheckVerdict::Ok), "{checks:?}");
    assert!(checks.iter().all(|check| check.details().is_empty()), "{checks:?}");
}

#[test]
fn everything_that_is_missing_says_what_it_costs_and_what_helps() {
    type Change = fn(&mut Facts);
    let changes: [(Change, &str, CheckVerdict, &str); 16] = [
        (|f| f.release = "4.19.0".into(), "kernel", CheckVerdict::Fail, "Linux 5.4"),
        (|f| f.notify = Notify::Plain, "seccomp notify", CheckVerdict::Warn, "Linux 5.19"),
        (|f| f.notify = Notify::None, "seccomp notify", CheckVerdict::Warn, "container"),
        (|f| f.pidfd = false, "pidfd", CheckVerdict::Fail, "pidfd_open"),
        (|f| f.deafness = false, "packet-grade cuts", CheckVerdict::Warn, "network stack"),
        (|f| f.programs = false, "eBPF programs", CheckVerdict::Warn, "CAP_BPF"),
        (|f| f.default_ttl = Some(255), "ip_default_ttl", CheckVerdict::Fail, "ip_default_ttl=64"),
        (|f| f.hop_limit = Some(255), "ip_default_ttl", CheckVerdict::Fail, "hop_limit=64"),
        (|f| f.nofile = Some(1024), "open files", CheckVerdict::Warn, "LimitNOFILE"),
        (|f| f.pipe_pages = Some(64), "pipe pages", CheckVerdict::Warn, "pipe-user-pages-soft"),
        (|f| f.port_range = Some((1024, 65535)), "port range", CheckVerdict::Warn, "32768 60999"),
        (|f| f.tcp_timestamps = Some(0), "tcp_timestamps", CheckVerdict::Warn, "tcp_timestamps=1"),
        (|f| f.clock_is_kept = Some(false), "clock", CheckVerdict::Warn, "set-ntp"),
        (
            |f| f.leftovers = vec![("dev/kv-1/3".into(), 77)],
            "leftovers",
            CheckVerdict::Warn,
            "kill -9 77",
        ),
        (|f| f.disk.as_mut().unwrap().noexec = true, "disk", CheckVerdict::Fail, "remount,exec"),
        (
            |f| f.kill_mode = Some(("/u".into(), None)),
            "unit",
            CheckVerdict::Fail,
            "KillMode=process",
        ),
    ];
    for (change, what, verdict, helps) in changes {
        let check = found(change);
        assert_eq!((check.what.as_str(), check.verdict), (what, verdict), "{check:?}");
        assert!(check.costs.is_some(), "{check:?}");
        assert!(check.details().join("\n").contains(helps), "{check:?}");
    }
}

#[test]
fn a_user_is_told_how_root_starts_the_lab_for_him() {
    let check = found(|facts| (facts.uid, facts.gid, facts.programs) = (1000, 100, false));
    let command = check.as_root.unwrap();
    assert!(command.contains("--reuid 1000 --regid 100") && command.contains("+bpf"), "{command}");
}

#[test]
fn yama_counts_only_where_the_shim_may_not_trace_its_own_node() {
    let mut facts = whole();
    facts.yama = Some(2);
    assert!(judge(&facts).iter().all(|check| check.verdict == CheckVerdict::Ok));
    let check = found(|facts| facts.yama = Some(3));
    assert_eq!(check.what, "ptrace_scope");
}

#[test]
fn room_on_the_disk_is_judged_by_what_is_left() {
    let disk = |free_bytes| found(|facts| facts.disk.as_mut().unwrap().free_bytes = free_bytes);
    assert_eq!(disk(100 << 20).verdict, CheckVerdict::Fail);
    assert_eq!(disk(1 << 30).verdict, CheckVerdict::Warn);
    assert_eq!(disk(1 << 30).found, "1.0 GB free for /var/lib/faultbed");
    let check = found(|facts| facts.disk.as_mut().unwrap().free_files = 3);
    assert!(check.found.contains("3 files"), "{check:?}");
}

#[test]
fn many_leftovers_are_counted() {
    let left = (0..20).map(|n| (format!("dev/kv-{n}/1"), n)).collect();
    let check = found(|facts| facts.leftovers = left);
    assert!(check.found.ends_with("and 12 more"), "{check:?}");
}

#[test]
fn low_ports_need_no_capability_where_the_kernel_gives_them_to_anybody() {
    let without = |first| found(|f| (f.capabilities, f.free_ports_from) = (!(1 << 10), first));
    for (first, end) in [(None, "1024"), (Some(1024), "1024"), (Some(80), "80")] {
        let check = without(first);
        assert_eq!(check.what, "low ports");
        assert!(check.details()[0].ends_with(&format!("below {end}")), "{check:?}");
    }
    for first in [0, 1] {
        let mut facts = whole();
        (facts.capabilities, facts.free_ports_from) = (!(1 << 10), Some(first));
        let low = judge(&facts).into_iter().find(|check| check.what == "low ports").unwrap();
        assert_eq!(low.verdict, CheckVerdict::Ok, "{low:?}");
    }
}
