//! `faultbed doctor`: whether this machine can run a lab, what it can do to it, and what to change.

use std::{fs, path::Path};

use serde::Serialize;

use crate::cli::{
    Session, claim,
    failure::{Exit, Failure, Outcome},
    output::{self, Format, OutputArgs},
    paths,
    table::{self, Tone},
    up::daemons,
};

/// Kernels from here on have what naming connections needs (`WAIT_KILLABLE_RECV`).
const KERNEL_NOTIFY: (u32, u32) = (5, 19);

/// The oldest kernel a lab runs on at all (pidfds).
const KERNEL_MIN: (u32, u32) = (5, 4);

/// Fewer open files than this are soon too few for a proxy.
const NOFILE_MIN: u64 = 4096;

/// Pipe pages of one user that let every connection have its pipes.
const PIPE_PAGES_MIN: u64 = 16_384;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Weak,
    Missing,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    what: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// Runs `doctor`.
///
/// # Errors
/// Standard output cannot be written. Something missing is exit 1.
pub fn run(session: &Session, args: OutputArgs) -> Outcome {
    let checks = checks(session);
    match args.output {
        Format::Json => output::json(&checks)?,
        Format::Table => output::data(listing(&checks))?,
    }
    if checks.iter().any(|check| check.verdict == Verdict::Missing) {
        let first = checks.iter().find(|check| check.verdict == Verdict::Missing);
        let advice = first.and_then(|check| check.advice.clone()).unwrap_or_default();
        return Err(Failure::no("a lab cannot run well on this machine").next(advice));
    }
    Ok(Exit::DONE)
}

fn listing(checks: &[Check]) -> String {
    let rows = checks
        .iter()
        .map(|check| {
            let (word, mood) = match check.verdict {
                Verdict::Ok => ("ok", Tone::Good),
                Verdict::Weak => ("weak", Tone::Warn),
                Verdict::Missing => ("missing", Tone::Bad),
            };
            vec![
                table::cell(check.what, Tone::Strong),
                table::cell(word, mood),
                table::plain(&check.found),
                table::plain(check.advice.as_deref().unwrap_or_default()),
            ]
        })
        .collect();
    table::render(&["CHECK", "", "FOUND", "DO"], rows)
}

fn checks(session: &Session) -> Vec<Check> {
    vec![
        daemons_check(),
        kernel(&rustix::system::uname().release().to_string_lossy()),
        notify(),
        min_ttl(),
        loss(&read("/proc/self/status").unwrap_or_default()),
        files(),
        pipes(),
        runtime(session),
        claims(),
        etcd(),
    ]
}

fn check(what: &'static str, verdict: Verdict, found: impl ToString, advice: &str) -> Check {
    let advice = (verdict != Verdict::Ok).then(|| advice.to_owned());
    Check { what, verdict, found: found.to_string(), advice }
}

fn daemons_check() -> Check {
    match daemons::Programs::find() {
        Ok(programs) => check("daemons", Verdict::Ok, programs.agent.display(), ""),
        Err(failure) => check(
            "daemons",
            Verdict::Missing,
            failure.message.unwrap_or_default(),
            &failure.next.join("; "),
        ),
    }
}

fn kernel(release: &str) -> Check {
    let version = parse_release(release);
    let (verdict, advice) = match version {
        Some(version) if version >= KERNEL_NOTIFY => (Verdict::Ok, ""),
        Some(version) if version >= KERNEL_MIN => {
            (Verdict::Weak, "Linux 5.19 or newer names connections by address")
        }
        _ => (Verdict::Missing, "Linux 5.4 or newer is needed"),
    };
    check("kernel", verdict, release, advice)
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(Path::new(path)).ok().map(|text| text.trim().to_owned())
}

fn notify() -> Check {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.split_whitespace().any(|action| action == "user_notif") {
        return check("seccomp notify", Verdict::Ok, "connections are named by address", "");
    }
    check(
        "seccomp notify",
        Verdict::Weak,
        "not available: the kernel is asked who dials, which is slower",
        "allow seccomp user notification in this container",
    )
}

/// Capabilities by their bits in `/proc/self/status`, and what they let the kernel do for us.
const CAP_NET_ADMIN: u32 = 12;
/// Beside it: programs that remember.
const CAP_BPF: u32 = 39;

/// Whether the kernel may lose segments for the proxies, which have the capabilities of who starts them.
fn loss(status: &str) -> Check {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default();
    let has = |bit: u32| (bits >> bit) & 1 == 1;
    let advice = "give it to the agents, or run the lab as root or in a user namespace";
    let (verdict, found) = match (has(CAP_NET_ADMIN), has(CAP_BPF)) {
        (true, true) => (Verdict::Ok, "CAP_NET_ADMIN, CAP_BPF"),
        (true, false) => {
            (Verdict::Weak, "no CAP_BPF: loss with memory (p=… r=…) is of stream grade")
        }
        (false, _) => {
            (Verdict::Weak, "no CAP_NET_ADMIN: loss is of stream grade, but for loss in bursts")
        }
    };
    check("packet-grade loss", verdict, found, advice)
}

/// IP_MINTTL is in every kernel a lab runs on; what matters is that the sockets are this kernel's.
fn min_ttl() -> Check {
    match read("/proc/sys/net/ipv4/ip_default_ttl") {
        Some(_) => check("packet-grade cuts", Verdict::Ok, "IP_MINTTL", ""),
        None => check(
            "packet-grade cuts",
            Verdict::Weak,
            "no /proc/sys/net/ipv4: cuts may only be of stream grade",
            "run on Linux's own network stack",
        ),
    }
}

fn files() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let verdict = if most >= NOFILE_MIN { Verdict::Ok } else { Verdict::Weak };
    let shown = if most == u64::MAX { "unlimited".to_owned() } else { most.to_string() };
    check("open files", verdict, shown, "ulimit -Hn 65536")
}

fn pipes() -> Check {
    let pages = read("/proc/sys/fs/pipe-user-pages-soft").and_then(|text| text.parse::<u64>().ok());
    match pages {
        Some(0) => check("pipe pages", Verdict::Ok, "unlimited", ""),
        Some(pages) if pages >= PIPE_PAGES_MIN => check("pipe pages", Verdict::Ok, pages, ""),
        Some(pages) => check(
            "pipe pages",
            Verdict::Weak,
            format!("{pages} for each user: large streams are forwarded slower when many are open"),
            "sysctl fs.pipe-user-pages-soft=65536",
        ),
        None => check("pipe pages", Verdict::Ok, "no limit known", ""),
    }
}

fn runtime(session: &Session) -> Check {
    let dir = &session.places.runtime;
    check("runtime directory", Verdict::Ok, dir.display(), "")
}

fn claims() -> Check {
    let dir = Path::new(claim::CLAIMS_DIR);
    match claim::Claims::lock(dir) {
        Ok(claims) => {
            check("lab addresses", Verdict::Ok, format!("{} of 254 taken", claims.count()), "")
        }
        Err(failure) => check(
            "lab addresses",
            Verdict::Missing,
            failure.message.unwrap_or_default(),
            &failure.next.join("; "),
        ),
    }
}

fn etcd() -> Check {
    match paths::in_path("etcd") {
        Some(path) => check("etcd", Verdict::Ok, path.display(), ""),
        None => check(
            "etcd",
            Verdict::Weak,
            "not in PATH: only needed for etcd clusters and the tour",
            "apt install etcd-server etcd-client",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_needs_capabilities_and_says_which() {
        let found = |bits: &str| loss(&format!("Name:\tx\nCapEff:\t{bits}\n"));
        assert_eq!(found("000001ffffffffff").verdict, Verdict::Ok);
        assert!(found("0000000000001000").found.contains("no CAP_BPF"));
        assert!(found("0000000000000000").found.contains("no CAP_NET_ADMIN"));
        assert_eq!(loss("").verdict, Verdict::Weak);
    }

    #[test]
    fn old_kernels_are_told_from_new_ones() {
        assert_eq!(kernel("6.1.0-18-amd64").verdict, Verdict::Ok);
        assert_eq!(kernel("5.10.0").verdict, Verdict::Weak);
        assert_eq!(kernel("4.19.0").verdict, Verdict::Missing);
        assert_eq!(kernel("?").verdict, Verdict::Missing);
    }
}
