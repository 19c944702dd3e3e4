//! A new release of the agent upgrades the proxy process too: streams, rules and listeners go over.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use faultbed_common::{
    blueprint::DialSource,
    fault::HealPolicy,
    generation::FaultRevision,
    host_spec::NodePort,
    name::FaultName,
    proxy_spec::{Cut, LinkEffect, LinkFault},
    report::HostReport,
};

use crate::lab::{AGENT, Lab, is_alive};

const PORT: u16 = 24_601;
const PATIENCE: Duration = Duration::from_secs(60);

/// Another program that does the same: what follows the last section of a program is not loaded.
fn next_release(dir: &Path, number: u8) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(format!("faultbed-agent-{number}"));
    let mut program = std::fs::read(AGENT).unwrap();
    program.push(number);
    std::fs::write(&path, program).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A node's server in this process, which echoes.
fn serve(address: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut bytes = vec![0; 1 << 15];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("nothing is refused");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn echo(mut stream: &TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    assert!(back == bytes, "other bytes came back");
}

fn lab_with_two_echoes() -> (Lab, SocketAddr, SocketAddr) {
    let mut lab = Lab::new();
    let mut upstreams = Vec::new();
    for (name, port) in [("kv-1", PORT), ("kv-2", PORT + 1)] {
        let node = lab.add(name, "exec sleep 1000");
        let proxied = NodePort { port, proxied: true, url: None, source: DialSource::Proxy };
        node.ports.insert("client".parse().unwrap(), proxied);
        upstreams.push(SocketAddr::new(node.private, port));
    }
    upstreams.into_iter().for_each(serve);
    lab.order();
    lab.wait("listeners are open", |report| {
        report.stuck.is_empty() && report.proxy.as_ref().is_some_and(|proxy| proxy.listeners == 2)
    });
    let at = |port| SocketAddr::new(lab.address(), port);
    let (one, two) = (at(PORT), at(PORT + 1));
    (lab, one, two)
}

fn proxy_pid(report: &HostReport) -> Option<u32> {
    report.proxy.as_ref().map(|proxy| proxy.pid)
}

#[test]
fn a_new_release_of_the_agent_upgrades_its_proxy_and_no_stream_notices() {
    let (mut lab, open, cut) = lab_with_two_echoes();
    let streams: Vec<TcpStream> = (0..50).map(|_| dial(open)).collect();
    let held = dial(cut);
    echo(&held, b"before");
    let split = LinkFault {
        revision: FaultRevision(1),
        lasts: Some("10m".parse().unwrap()),
        effect: LinkEffect { cut: Some(Cut::Packets), ..LinkEffect::default() },
        grade: None,
        heal: HealPolicy::Resume,
        links: ["clients>kv-2", "kv-2>clients"].map(|link| link.parse().unwrap()).into(),
        seed: 1,
        probability: None,
        canary: false,
        fast_heal: false,
    };
    let name: FaultName = "split".parse().unwrap();
    lab.spec.proxy.faults.insert(name.clone(), split);
    lab.order();
    let is_active = |report: &HostReport| report.faults.get(&name).is_some_and(|f| f.active);
    let mut pid = proxy_pid(&lab.wait("the fault acts", is_active)).unwrap();
    (&held).write_all(b"held").unwrap();

    let (stop, dialled) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for (seed, stream) in streams.iter().enumerate() {
            let stop = &stop;
            scope.spawn(move || {
                let bytes: Vec<u8> = (0..20_000_usize).map(|at| (at * 31 + seed) as u8).collect();
                for length in (64..bytes.len()).step_by(997).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    echo(stream, &bytes[..length]);
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                echo(&dial(open), b"new");
                dialled.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _whatever_happens = Stop(&stop);
        for number in 1..=3 {
            lab.program = next_release(lab.dir.path(), number);
            lab.kill_agent();
            lab.start_agent();
            let is_other = |r: &HostReport| proxy_pid(r).is_some_and(|other| other != pid);
            let report = lab.wait("another process is the proxy", is_other);
            lab.wait("the old one is gone", |_| !is_alive(pid));
            assert!(is_active(&report), "{report:?}");
            assert_eq!(report.proxy.as_ref().unwrap().outdated, None);
            pid = proxy_pid(&report).unwrap();
            let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
            assert_eq!(exe, lab.program);
            let before = dialled.load(Ordering::Relaxed);
            let end = Instant::now() + PATIENCE;
            while dialled.load(Ordering::Relaxed) < before + 3 {
                assert!(Instant::now() < end, "new connections are accepted");
                thread::yield_now();
            }
        }
    });
    held.set_nonblocking(true).unwrap();
    assert!(held.peek(&mut [0]).is_err(), "bytes crossed the cut");
    held.set_nonblocking(false).unwrap();
    lab.spec.proxy.faults.clear();
    lab.order();
    let mut back = [0; 4];
    (&held).read_exact(&mut back).unwrap();
    assert_eq!(&back, b"held");
    // The same program again: nothing to do.
    lab.kill_agent();
    lab.start_agent();
    assert_eq!(proxy_pid(&lab.wait("a report", |report| report.proxy.is_some())), Some(pid));
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Successors are killed about the moment of the hand-over: before it everything goes on, after it
/// the successor's own streams end. No stream goes on with other bytes, and none hangs.
#[test]
fn killed_successors_never_break_a_stream_that_goes_on() {
    const STREAMS: usize = 40;
    let (lab, open, _) = lab_with_two_echoes();
    let proxy_dir = lab.host_dir().join("proxy");
    let socket = lab.dir.path().join("h1-proxy.sock");
    let mut streams: Vec<TcpStream> = (0..STREAMS).map(|_| dial(open)).collect();
    let (mut before, mut after, mut time) = (0, 0, Duration::from_millis(4));
    for round in 0..60_u64 {
        let mut successor = Command::new(AGENT)
            .arg("proxy")
            .args([&proxy_dir, &socket])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + time;
        while Instant::now() < end && successor.try_wait().unwrap().is_none() {
            echo_or_reset(&streams[0], round);
        }
        successor.kill().ok();
        successor.wait().unwrap();
        streams.retain(|stream| echo_or_reset(stream, round));
        // So that most are killed in the middle of it.
        if streams.len() == STREAMS {
            before += 1;
            time = time.mul_f64(1.15);
        } else {
            after += 1;
            time = time.mul_f64(0.75);
        }
        let end = Instant::now() + PATIENCE;
        while streams.len() < STREAMS {
            assert!(Instant::now() < end, "the agent starts another proxy");
            // Where a successor that served was killed, the agent starts another one.
            if let Ok(stream) = TcpStream::connect_timeout(&open, PATIENCE) {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                streams.push(stream);
            }
        }
    }
    println!(
        "killed {before} times before the hand-over and {after} times after it, about {time:?}"
    );
    assert!(before >= 5 && after >= 1, "{before} before, {after} after");
}

/// Whether a stream goes on. What comes back is what was sent, or nothing.
fn echo_or_reset(mut stream: &TcpStream, round: u64) -> bool {
    let bytes = round.to_ne_bytes();
    let mut back = [0; 8];
    let came = stream.write_all(&bytes).and_then(|()| stream.read_exact(&mut back));
    match &came {
        Ok(()) => assert_eq!(back, bytes, "round {round}"),
        Err(error) => assert!(
            matches!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset
                    | std::io::ErrorKind::BrokenPipe
                    | std::io::ErrorKind::UnexpectedEof
            ),
            "round {round}: {error}"
        ),
    }
    came.is_ok()
}
