//! Cuts: nothing crosses, peers' kernels see what a real cut shows them, and a heal loses nothing.

use std::{
    io::{self, Read, Write},
    net::{Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use faultbed_common::{
    fault::{Grade, HealPolicy},
    generation::FaultRevision,
    proxy_spec::Cut,
};

use super::harness::{
    Lab, PATIENCE, begin, cut, eventually, fault, finish, in_child, is_silent, pass,
    retransmissions, unacknowledged,
};
use crate::proxy::sys::{drops, set_deaf};

const BOTH: [&str; 2] = ["x>y", "y>x"];

#[test]
fn a_cut_stops_every_byte_and_a_heal_delivers_them_all() {
    let mut lab = Lab::start(&["x", "y"]);
    // Whoever dialled: the links of both connections are cut.
    let (near, far) = lab.join("x", "y");
    let (far_back, near_back) = lab.join("y", "x");
    pass(&near, &far, "before");
    lab.inject("split", cut(Cut::Packets), &BOTH);
    let applied = lab.apply();
    let state = &applied.faults[&fault("split")];
    assert_eq!((state.grade, state.active, &state.why), (Some(Grade::Packet), true, &None));

    let ends = [&near, &far, &far_back, &near_back];
    for (number, mut end) in ends.into_iter().enumerate() {
        end.write_all(format!("during {number}").as_bytes()).unwrap();
    }
    // The senders' kernels hear nothing: they send again, and keep what they sent.
    for end in ends {
        eventually("it is sent again", || retransmissions(end) > 0);
        assert_eq!(unacknowledged(end), 8);
        assert!(is_silent(end), "not a byte crosses");
    }
    let evidence = lab.evidence("split", "x>y");
    assert_eq!((evidence.leaked_bytes, evidence.connections), (0, 2));
    assert!(evidence.dropped_segments > 0 && evidence.first_hit_ms.is_some(), "{evidence:?}");

    lab.heal("split");
    for (number, mut end) in [&far, &near, &near_back, &far_back].into_iter().enumerate() {
        let mut bytes = [0; 8];
        end.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, format!("during {number}").as_bytes(), "whole, once");
        assert!(is_silent(end));
    }
    assert_eq!(lab.evidence("split", "x>y").leaked_bytes, 0);
    let ended = &lab.report().faults[&fault("split")];
    assert_eq!((ended.active, ended.expired), (false, false));
}

#[test]
fn new_connections_of_a_cut_dialler_time_out_while_others_connect() {
    let mut lab = Lab::start(&["x", "y", "z"]);
    lab.inject("split", cut(Cut::Packets), &BOTH);
    lab.apply();
    assert!(lab.is_unanswered("x", "y", "z"));
    assert!(lab.is_unanswered("y", "x", "z"));
    let evidence = lab.evidence("split", "x>y");
    assert!(evidence.attempts_refused >= 1, "{evidence:?}");
    assert!(lab.evidence("split", "y>x").attempts_refused >= 1);

    let pending = lab.begin_dial("x", "y").unwrap();
    lab.heal("split");
    let near = finish(pending, PATIENCE).expect("a pending dial completes after the heal");
    let (far, _) = lab.server("y").accept().unwrap();
    pass(&near, &far, "after");
    drop(lab.join("y", "x"));
}

#[test]
fn a_one_way_cut_of_packets_stops_the_other_way_after_a_few_segments() {
    let mut lab = Lab::start(&["x", "y", "z"]);
    let (near, far) = lab.join("x", "y");
    let (far_back, near_back) = lab.join("y", "x");
    lab.inject("oneway", cut(Cut::Packets), &["x>y"]);
    lab.apply();
    for (from_x, at_y) in [(&near, &far), (&near_back, &far_back)] {
        (&mut &*from_x).write_all(b"x").unwrap();
        eventually("x's bytes are not acknowledged", || retransmissions(from_x) > 0);
        assert!(is_silent(at_y));
        // Y still speaks, until its window is used up: then it hears no acknowledgement either.
        pass(at_y, from_x, "first");
        let end = Instant::now() + PATIENCE;
        while unacknowledged(at_y) == 0 {
            (&mut &*at_y).write_all(b"y").unwrap();
            thread::sleep(Duration::from_millis(5));
            assert!(Instant::now() < end, "y is heard for ever");
        }
    }
    assert!(lab.is_unanswered("x", "y", "z"), "the SYN dies");
    assert!(lab.is_unanswered("y", "x", "z"), "the answer to the SYN dies");
    assert_eq!(lab.evidence("oneway", "x>y").leaked_bytes, 0);
    lab.heal("oneway");
    for at_y in [&far, &far_back] {
        let mut byte = [0];
        (&mut &*at_y).read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}

#[test]
fn a_cut_that_becomes_one_way_sends_nothing_again_that_way() {
    one_way_while_bytes_are_owed(true);
}

#[test]
fn a_fresh_one_way_cut_sends_nothing_again_that_way() {
    one_way_while_bytes_are_owed(false);
}

fn one_way_while_bytes_are_owed(after_a_full_cut: bool) {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    let address = far.local_addr().unwrap().ip();
    // What y's kernel drops, the proxy's kernel has sent and will send again.
    set_deaf(&far, address, true).unwrap();
    (&mut &near).write_all(b"lost").unwrap();
    eventually("y's kernel has dropped it", || drops(&far) > 0);
    if after_a_full_cut {
        lab.inject("split", cut(Cut::Packets), &BOTH);
        lab.apply();
        set_deaf(&far, address, false).unwrap();
    }
    lab.inject("split", cut(Cut::Packets), &["x>y"]);
    lab.apply();
    set_deaf(&far, address, false).unwrap();
    // So long that the proxy's kernel would have sent it again, at least once a second.
    (&mut &far).write_all(b"y").unwrap();
    eventually("y sends again for a while", || retransmissions(&far) >= 4 || !is_silent(&far));
    assert!(is_silent(&far), "nothing passes x>y");
    assert_eq!(lab.evidence("split", "x>y").leaked_bytes, 0);
    lab.heal("split");
    let mut bytes = [0; 4];
    (&mut &far).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"lost", "whole, once");
}

#[test]
fn a_one_way_cut_of_bytes_lets_the_other_way_and_handshakes_pass() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("oneway", cut(Cut::Bytes), &["x>y"]);
    let applied = lab.apply();
    assert_eq!(applied.faults[&fault("oneway")].grade, Some(Grade::Stream));
    let (near_new, far_new) = lab.join("x", "y");
    let (far_back, near_back) = lab.join("y", "x");
    for (from_x, at_y) in [(&near, &far), (&near_new, &far_new), (&near_back, &far_back)] {
        (&mut &*from_x).write_all(b"held").unwrap();
        pass(at_y, from_x, "passes");
        eventually("the proxy's kernel acknowledges", || unacknowledged(from_x) == 0);
        assert!(is_silent(at_y));
    }
    let evidence = lab.evidence("oneway", "x>y");
    assert_eq!((evidence.held_bytes, evidence.leaked_bytes, evidence.connections), (12, 0, 3));
    lab.heal("oneway");
    for at_y in [&far, &far_new, &far_back] {
        let mut bytes = [0; 4];
        (&mut &*at_y).read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"held");
    }
}

#[test]
fn at_grade_stream_bytes_are_held_and_acknowledged() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("split", cut(Cut::Packets), &BOTH).grade = Some(Grade::Stream);
    let applied = lab.apply();
    assert_eq!(applied.faults[&fault("split")].grade, Some(Grade::Stream));
    (&mut &near).write_all(b"held").unwrap();
    eventually("the proxy's kernel acknowledges", || unacknowledged(&near) == 0);
    assert!(is_silent(&far));
    lab.heal("split");
    let began = Instant::now();
    pass(&near, &far, "");
    let mut bytes = [0; 4];
    (&mut &far).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"held");
    assert!(began.elapsed() < Duration::from_millis(150), "held bytes arrive at once");
}

#[test]
fn a_grade_that_cannot_be_had_is_refused_with_the_reason() {
    let mut lab = Lab::start(&["x", "y"]);
    lab.inject("oneway", cut(Cut::Bytes), &["x>y"]).grade = Some(Grade::Packet);
    let applied = lab.apply();
    let state = &applied.faults[&fault("oneway")];
    assert!(!state.active);
    assert!(state.why.as_ref().unwrap().contains("cannot be had"), "{:?}", state.why);
    let (near, far) = lab.join("x", "y");
    pass(&near, &far, "passes");
}

#[test]
fn a_fault_ends_at_its_deadline_with_nobody_there() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("split", cut(Cut::Packets), &BOTH);
    lab.end_in("split", Duration::from_millis(250));
    lab.apply();
    (&mut &near).write_all(b"late").unwrap();
    assert!(is_silent(&far));
    let mut bytes = [0; 4];
    (&mut &far).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"late");
    let state = &lab.report().faults[&fault("split")];
    assert!(state.expired && !state.active, "{state:?}");

    // The same revision again does not begin again; a newer one does.
    lab.end_in("split", Duration::from_secs(60));
    assert!(!lab.apply().faults[&fault("split")].active);
    let name = fault("split");
    lab.file.spec.faults.get_mut(&name).unwrap().revision = FaultRevision(2);
    lab.file.deadlines.get_mut(&name).unwrap().revision = FaultRevision(2);
    assert!(lab.apply().faults[&name].active);
}

#[test]
fn a_proxy_that_starts_again_during_a_cut_is_never_open() {
    let mut lab = Lab::start(&["x", "y", "z"]);
    lab.inject("split", cut(Cut::Packets), &BOTH);
    lab.apply();
    lab.halt();
    assert!(lab.dial("x", "y").is_err(), "nobody listens");
    // Dials of x meet each moment of the start; not one of them may be answered.
    let stop = AtomicBool::new(false);
    let (stop, to) = (&stop, lab.listen("y"));
    let from = lab.file.spec.diallers.iter().find(|(_, node)| node.as_str() == "x");
    let from = *from.expect("x dials").0;
    thread::scope(|scope| {
        let diallers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(move || {
                    let mut answered = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let dial = begin(Some(from), to);
                        let dial = dial.and_then(|dial| finish(dial, Duration::from_millis(3)));
                        answered += u32::from(dial.is_ok());
                    }
                    answered
                })
            })
            .collect();
        lab.run();
        let unanswered = lab.is_unanswered("x", "y", "z");
        stop.store(true, Ordering::Relaxed);
        assert!(unanswered);
        for dialler in diallers {
            assert_eq!(dialler.join().unwrap(), 0, "a dial of x was answered");
        }
    });
    let server = lab.server("y");
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_err(), "not even an empty connection reaches the node");
}

#[test]
fn heal_policies_reset_or_close_what_met_the_fault() {
    let mut lab = Lab::start(&["x", "y"]);
    for (policy, expected) in
        [(HealPolicy::Reset, Err(io::ErrorKind::ConnectionReset)), (HealPolicy::Close, Ok(0))]
    {
        let (near, far) = lab.join("x", "y");
        pass(&near, &far, "hello");
        lab.inject("split", cut(Cut::Packets), &BOTH).heal = policy;
        lab.apply();
        lab.heal("split");
        for end in [&near, &far] {
            assert_eq!((&mut &*end).read(&mut [0]).map_err(|error| error.kind()), expected);
        }
        let (near, far) = lab.join("x", "y");
        pass(&near, &far, "what came later goes on");
    }
}

#[test]
fn a_connection_whose_dialler_dies_during_a_cut_is_reaped_after_the_heal() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    pass(&near, &far, "hello");
    lab.inject("split", cut(Cut::Packets), &BOTH);
    lab.apply();
    // Its RST is lost for good, as on a real network.
    rustix::net::sockopt::set_socket_linger(&near, Some(Duration::ZERO)).unwrap();
    drop(near);
    thread::scope(|scope| {
        let reader = scope.spawn(|| (&mut &far).read(&mut [0]).map_err(|error| error.kind()));
        assert!(!reader.is_finished(), "news of the death does not cross");
        lab.heal("split");
        assert_eq!(reader.join().unwrap(), Err(io::ErrorKind::ConnectionReset));
    });
}

#[test]
fn clients_are_cut_by_name_and_nodes_are_not_taken_for_them() {
    let mut lab = Lab::start(&["x", "y"]);
    let client = || begin(None, lab.listen("y"));
    let mut near = finish(client().unwrap(), PATIENCE).unwrap();
    let (far, _) = lab.server("y").accept().unwrap();
    pass(&near, &far, "before");
    let pending = {
        let links = ["clients>y", "y>clients"];
        lab.inject("lonely", cut(Cut::Packets), &links);
        lab.apply();
        eventually("the proxy learns whose it is", || {
            lab.evidence("lonely", "clients>y").connections == 1
        });
        near.write_all(b"during").unwrap();
        eventually("it is sent again", || retransmissions(&near) > 0);
        assert!(is_silent(&far));
        let pending = begin(None, lab.listen("y")).unwrap();
        drop(lab.join("x", "y"));
        pending
    };
    let pending = finish(pending, Duration::from_millis(50));
    assert_eq!(pending.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(lab.evidence("lonely", "clients>y").attempts_refused > 0);
    lab.heal("lonely");
    let mut bytes = [0; 6];
    (&mut &far).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"during");
}

#[test]
fn a_node_that_dials_from_another_address_is_found_by_its_process() {
    let mut lab = Lab::prepare(&["x", "y"]);
    lab.file.lab = Some("demo".parse().unwrap());
    lab.run();
    let to = lab.listen("y");
    let script =
        format!("exec 3<>/dev/tcp/{}/{}; echo hello >&3; exec cat <&3", to.ip(), to.port());
    let mut child = Command::new("bash")
        .args(["-c", &script])
        .env("FAULTBED_NODE", "demo/x/1")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (far, _) = lab.server("y").accept().unwrap();
    let mut bytes = [0; 6];
    (&mut &far).read_exact(&mut bytes).unwrap();
    eventually("the proxy learns whose it is", || lab.report().unnamed_nodes);
    lab.inject("split", cut(Cut::Packets), &BOTH);
    lab.apply();
    (&mut &far).write_all(b"during").unwrap();
    eventually("it is sent again", || retransmissions(&far) > 0);
    assert_eq!(lab.evidence("split", "x>y").connections, 1);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Dials as a node whose address does not name it; only another process can be such a node.
#[test]
fn connections_that_cannot_be_kept_out_are_held_and_are_few() {
    const DIALS: usize = 70;
    if !in_child(
        "cuts::connections_that_cannot_be_kept_out_are_held_and_are_few",
        ("FAULTBED_NODE", "demo/x/1"),
    ) {
        return;
    }
    let mut lab = Lab::prepare(&["x", "y"]);
    lab.file.lab = Some("demo".parse().unwrap());
    lab.inject("split", cut(Cut::Packets), &BOTH);
    lab.run();
    let dial = || finish(begin(None, lab.listen("y")).unwrap(), PATIENCE).unwrap();
    let dials: Vec<_> = (0..DIALS).map(|_| dial()).collect();
    let counted = || lab.evidence("split", "x>y").attempts_refused;
    eventually("all are known to be of x", || counted() == DIALS as u64);
    assert_eq!(lab.report().report.connections, 64);
    lab.server("y").set_nonblocking(true).unwrap();
    assert!(lab.server("y").accept().is_err(), "the node is not dialled");
    for mut near in &dials {
        // Some were reset: their dialler learns it when it speaks.
        let _reset = near.write_all(b"x");
    }
    assert!(lab.server("y").accept().is_err(), "nor when the dialler speaks");
    lab.heal("split");
    let mut arrived = Vec::new();
    eventually("those that were held go on", || {
        arrived.extend(lab.server("y").accept());
        arrived.len() == 64
    });
    for (mut far, _) in arrived {
        far.set_nonblocking(false).unwrap();
        far.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn a_dialler_of_the_newer_protocol_is_cut_as_well() {
    let mut lab = Lab::prepare(&["x", "y"]);
    let to = SocketAddr::from((Ipv6Addr::LOCALHOST, lab.listen("y").port()));
    lab.file.spec.listeners[1].listen = to;
    lab.file.spec.diallers.insert(to.ip(), "x".parse().unwrap());
    lab.run();
    let dial = || begin(Some(to.ip()), to).unwrap();
    let near = finish(dial(), PATIENCE).unwrap();
    let (far, _) = lab.server("y").accept().unwrap();
    pass(&near, &far, "before");
    lab.inject("split", cut(Cut::Packets), &BOTH);
    assert_eq!(lab.apply().faults[&fault("split")].why, None);
    (&mut &near).write_all(b"during").unwrap();
    eventually("it is sent again", || retransmissions(&near) > 0);
    let pending = dial();
    eventually("the SYN is dropped", || lab.evidence("split", "x>y").attempts_refused > 0);
    lab.heal("split");
    let mut bytes = [0; 6];
    (&mut &far).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"during");
    drop(finish(pending, PATIENCE).unwrap());
}
