//! Loss that the kernel makes, where it lets the proxy; and what is said where it does not.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use faultbed_common::{effect::Loss, fault::Grade, proxy_spec::LinkEffect};

use super::harness::{
    Lab, eventually, fault, may_filter, may_load_programs, noise, pass, segments_sent,
};

const BOTH: [&str; 2] = ["x>y", "y>x"];

fn losing(text: &str) -> LinkEffect {
    LinkEffect { loss: vec![text.parse().expect("a loss")], ..LinkEffect::default() }
}

/// Sends this many bytes one way, which must arrive whole; returns the segments that took.
fn send(from: &TcpStream, to: &TcpStream, length: usize) -> u32 {
    let before = segments_sent(from);
    let bytes = noise(11, length);
    for end in [from, to] {
        let patience = Some(Duration::from_secs(60));
        end.set_read_timeout(patience).unwrap();
        end.set_write_timeout(patience).unwrap();
    }
    thread::scope(|scope| {
        scope.spawn(|| (&mut &*from).write_all(&bytes).unwrap());
        let mut arrived = vec![0; length];
        (&mut &*to).read_exact(&mut arrived).unwrap();
        assert!(arrived == bytes, "whole");
    });
    segments_sent(from) - before
}

/// What a loss that needs privilege does: drops as many as it should, or is refused with the reason.
fn drops_its_share(text: &str, share: f64, privileged: bool) {
    let mut lab = Lab::start(&["x", "y", "z"]);
    let (near, far) = lab.join("x", "y");
    let (other, other_far) = lab.join("z", "y");
    lab.inject("lossy", losing(text), &["x>y"]).grade = Some(Grade::Packet);
    let applied = lab.apply();
    let state = &applied.faults[&fault("lossy")];
    if !privileged {
        assert!(!state.active);
        let why = state.why.as_ref().unwrap();
        assert!(why.contains("cannot be had") && why.contains("CAP_NET_ADMIN"), "{why}");
        pass(&near, &far, "passes");
        return;
    }
    assert_eq!((state.active, state.grade, &state.why), (true, Some(Grade::Packet), &None));
    let (near_new, far_new) = lab.join("x", "y");
    let sent = send(&near, &far, 60 << 20) + send(&near_new, &far_new, 60 << 20);
    send(&other, &other_far, 1 << 20);
    let evidence = lab.evidence("lossy", "x>y");
    let measured = f64::from(u32::try_from(evidence.dropped_segments).unwrap()) / f64::from(sent);
    println!("{text}: {} of {sent} segments, {measured:.4}", evidence.dropped_segments);
    assert!((share * 0.6..share * 1.4).contains(&measured), "{measured} of {sent}, not {share}");
    lab.heal("lossy");
    let dropped = lab.evidence("lossy", "x>y").dropped_segments;
    send(&near, &far, 4 << 20);
    assert_eq!(lab.evidence("lossy", "x>y").dropped_segments, dropped, "healed");
}

#[test]
fn single_segments_are_lost() {
    drops_its_share("5%", 0.05, may_filter());
}

#[test]
fn segments_are_lost_with_memory() {
    // In the bad state one in 17 is spent: 4% / (4% + 64%).
    drops_its_share("p=4% r=64%", 0.0588, may_load_programs());
}

#[test]
fn what_node_dialled_does_not_matter_for_loss() {
    if !may_filter() {
        // Said by the other tests: it is refused.
        return;
    }
    let mut lab = Lab::start(&["x", "y"]);
    let (far_back, near_back) = lab.join("y", "x");
    lab.inject("lossy", losing("20%"), &["x>y"]);
    lab.apply();
    send(&near_back, &far_back, 4 << 20);
    eventually("some are lost", || lab.evidence("lossy", "x>y").dropped_segments > 0);
}

#[test]
fn bursts_take_no_privilege_and_lose_nothing_for_good() {
    let mut lab = Lab::start(&["x", "y"]);
    let (near, far) = lab.join("x", "y");
    lab.inject("bursts", losing("burst=5ms every=25ms"), &BOTH);
    let applied = lab.apply();
    let state = &applied.faults[&fault("bursts")];
    assert_eq!((state.grade, &state.why), (Some(Grade::Packet), &None));
    eventually("some are lost", || {
        send(&near, &far, 4 << 20);
        lab.evidence("bursts", "x>y").dropped_segments > 0
    });
    lab.heal("bursts");
    let dropped = lab.evidence("bursts", "x>y").dropped_segments;
    send(&near, &far, 4 << 20);
    assert_eq!(lab.evidence("bursts", "x>y").dropped_segments, dropped, "healed");
}

#[test]
fn without_a_grade_loss_is_made_where_it_can_be() {
    let mut lab = Lab::start(&["x", "y"]);
    for text in ["1%", "p=1% r=20%"] {
        let Ok(loss) = text.parse::<Loss>() else { panic!("a loss") };
        let by_kernel = match loss {
            Loss::Gilbert { .. } => may_load_programs(),
            Loss::Bernoulli(_) | Loss::Burst { .. } => may_filter(),
        };
        lab.inject("lossy", losing(text), &BOTH);
        let state = lab.apply().faults.remove(&fault("lossy")).unwrap();
        assert!(state.active);
        let grade = if by_kernel { Grade::Packet } else { Grade::Stream };
        assert_eq!((state.grade, state.why.is_some()), (Some(grade), !by_kernel), "{text}");
    }
}
