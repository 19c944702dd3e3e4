//! What canaries conclude from what they see, over pretended time.

use std::{collections::BTreeMap, time::Duration};

use faultbed_common::{
    blueprint::DialSource,
    duration::Span,
    effect::Ratio,
    host_spec::NodePort,
    probe::Probe,
    proxy_spec::{Deadline, Delay, Dials, LinkEffect},
    report::CanaryVerdict,
};

use super::*;
use crate::{
    ledger::merge,
    reconcile::testing::{BOOT, host_spec, link_fault, node, node_spec, orders, probe},
};

const MS: u64 = 1_000_000;

fn at(ms: u64) -> BootTime {
    BootTime::from_ns(ms * MS)
}

fn link(text: &str) -> Link {
    text.parse().unwrap()
}

fn key() -> Key {
    ("split".parse().unwrap(), link("kv-1>kv-2"))
}

fn cut() -> LinkEffect {
    LinkEffect { cut: Some(Cut::Packets), ..LinkEffect::default() }
}

fn late(base_us: u64) -> LinkEffect {
    let delay = Delay { base_us, ..Delay::default() };
    LinkEffect { delay: Some(delay), ..LinkEffect::default() }
}

fn http() -> Probe {
    let ask = Ask::Http {
        method: "GET".to_owned(),
        url: "127.128.0.2:2379/health".to_owned(),
        body: String::new(),
    };
    Probe { ask, ..probe() }
}

/// A host with kv-2, and a canary fault between kv-1, which is elsewhere, and kv-2.
fn accepted(effect: LinkEffect, ends: Option<u64>) -> Accepted {
    let port = NodePort { port: 2379, proxied: true, url: None, source: DialSource::Proxy };
    let mut kv2 = node_spec();
    kv2.private = "127.128.0.2".parse().unwrap();
    kv2.ports.insert("client".parse().unwrap(), port);
    kv2.ready = Some(http());
    let mut spec = host_spec([(node("kv-2"), kv2)]);
    spec.proxy.diallers.insert("127.128.0.1".parse().unwrap(), node("kv-1"));
    spec.proxy.diallers.insert("127.128.0.2".parse().unwrap(), node("kv-2"));
    let fault = LinkFault {
        effect,
        canary: true,
        lasts: ends.map(|ms| Span(Duration::from_millis(ms))),
        links: [link("kv-1>kv-2"), link("kv-2>kv-1"), link("clients>kv-2")].into(),
        ..link_fault()
    };
    let deadline = Deadline { revision: fault.revision, boottime_ns: ends.map(|ms| ms * MS) };
    spec.proxy.faults.insert(key().0, fault);
    let accepted = merge(None, orders(spec), BOOT, at(0)).unwrap();
    Accepted { deadlines: [(key().0, deadline)].into(), ..accepted }
}

fn healed(mut accepted: Accepted) -> Accepted {
    accepted.spec.proxy.faults.clear();
    accepted
}

fn told(active: bool) -> BTreeMap<FaultName, FaultReport> {
    let report = FaultReport {
        revision: link_fault().revision,
        active,
        grade: Some(Grade::Packet),
        ..FaultReport::default()
    };
    [(key().0, report)].into()
}

fn one(began: u64, over: u64, answer: Answer) -> Try {
    Try { began: at(began), over: at(over), answer }
}

/// A canary that was answered before and whose fault is in force since 0 ms.
fn in_force(accepted: &Accepted) -> Canaries {
    let mut canaries = Canaries::default();
    canaries.take_orders(accepted, |_, _, _| None);
    for (key, _) in canaries.to_ask_before() {
        canaries.was_before(&key, &Answer::In(400));
    }
    canaries.proxy_says(&told(true), at(0));
    canaries
}

fn report(canaries: &Canaries) -> CanaryReport {
    let mut faults = told(true);
    canaries.fill(&mut faults);
    faults[&key().0].canary[&key().1].clone()
}

#[test]
fn only_links_from_nodes_to_nodes_of_this_host_are_asked_over() {
    let mut canaries = Canaries::default();
    canaries.take_orders(&accepted(cut(), None), |_, _, _| None);
    let first = canaries.to_ask_before();
    assert_eq!(first.len(), 1, "{first:?}");
    let question = Question {
        from: "127.128.0.1".parse().unwrap(),
        to: "127.77.1.1:2379".parse().unwrap(),
        is_http: true,
    };
    assert_eq!(first[0], (key(), question));
    assert!(canaries.to_ask_before().is_empty(), "each is named once");
    assert!(canaries.asking().is_empty(), "not before the fault is in force");
}

#[test]
fn silence_while_cut_and_an_answer_after_the_heal_agree() {
    let accepted = accepted(cut(), None);
    let mut canaries = in_force(&accepted);
    assert_eq!(canaries.asking().len(), 1);
    assert_eq!(report(&canaries).verdict, CanaryVerdict::Unproven, "nothing was asked yet");
    canaries.tried(&key(), &one(0, 1000, Answer::None), true);
    let seen = report(&canaries);
    assert_eq!((seen.verdict, seen.tries, seen.before), (CanaryVerdict::Agrees, 1, Some(true)));
    let round = canaries.asking()[&key()].clone();
    canaries.take_orders(&healed(accepted), |_, _, _| None);
    assert!(canaries.asking().is_empty(), "the heal is on its way");
    // One that was begun while cut and answered meanwhile counts for neither side.
    canaries.tried(&key(), &one(1000, 1500, Answer::In(500_000)), true);
    assert_eq!(report(&canaries).answers, 0);
    canaries.proxy_says(&told(false), at(1500));
    assert_ne!(canaries.asking()[&key()], round, "it is asked anew at once");
    canaries.tried(&key(), &one(1500, 1503, Answer::In(3_000)), true);
    let seen = report(&canaries);
    assert_eq!((seen.verdict, seen.healed_after_ms), (CanaryVerdict::Agrees, Some(3)));
    assert!(seen.is_over && canaries.asking().is_empty());
}

#[test]
fn an_answer_while_cut_contradicts_it_for_good() {
    let accepted = accepted(cut(), None);
    let mut canaries = in_force(&accepted);
    canaries.tried(&key(), &one(0, 1, Answer::In(900)), true);
    let seen = report(&canaries);
    assert_eq!(seen.verdict, CanaryVerdict::Contradicts);
    assert_eq!(seen.why.unwrap(), "kv-2 answered kv-1 while the fault was in force");
    canaries.take_orders(&healed(accepted), |_, _, _| None);
    canaries.proxy_says(&told(false), at(10));
    canaries.tried(&key(), &one(10, 11, Answer::In(900)), true);
    assert_eq!(report(&canaries).verdict, CanaryVerdict::Contradicts);
}

#[test]
fn a_heal_that_does_not_heal_is_a_contradiction_unless_something_else_explains_it() {
    let wanted = accepted(cut(), None);
    let never = |node_runs: bool, before: bool| {
        let mut canaries = Canaries::default();
        canaries.take_orders(&wanted, |_, _, _| None);
        for (key, _) in canaries.to_ask_before() {
            let answer = if before { Answer::In(1) } else { Answer::None };
            canaries.was_before(&key, &answer);
        }
        canaries.proxy_says(&told(true), at(0));
        canaries.tried(&key(), &one(0, 1000, Answer::None), true);
        canaries.take_orders(&healed(wanted.clone()), |_, _, _| None);
        canaries.proxy_says(&told(false), at(2000));
        for second in 2..13 {
            let (began, over) = (second * 1000, second * 1000 + 1000);
            canaries.tried(&key(), &one(began, over, Answer::None), node_runs);
        }
        assert!(canaries.asking().is_empty(), "it is given up");
        report(&canaries)
    };
    assert_eq!(never(true, true).verdict, CanaryVerdict::Contradicts);
    assert_eq!(never(false, true).verdict, CanaryVerdict::Unproven, "the node is down");
    assert_eq!(never(true, false).verdict, CanaryVerdict::Unproven, "it never answered");
}

#[test]
fn another_fault_on_the_link_excuses_silence_after_the_end() {
    let wanted = accepted(cut(), None);
    let mut canaries = in_force(&wanted);
    canaries.tried(&key(), &one(0, 1000, Answer::None), true);
    let mut other = healed(wanted.clone());
    let fault = wanted.spec.proxy.faults[&key().0].clone();
    other.spec.proxy.faults.insert("other".parse().unwrap(), LinkFault { canary: false, ..fault });
    canaries.take_orders(&other, |_, _, _| None);
    canaries.proxy_says(&told(false), at(2000));
    canaries.tried(&key(), &one(2000, 3000, Answer::None), true);
    let seen = report(&canaries);
    assert_eq!(seen.verdict, CanaryVerdict::Unproven);
    assert!(seen.is_over && seen.why.unwrap().contains("other is on the link too"));
}

#[test]
fn a_deadline_is_an_edge_that_nobody_tells() {
    let mut canaries = in_force(&accepted(cut(), Some(2000)));
    canaries.tried(&key(), &one(0, 1000, Answer::None), true);
    canaries.tried(&key(), &one(1900, 2100, Answer::In(200_000)), true);
    assert_eq!(report(&canaries).answers, 0, "it was answered after the deadline");
    canaries.tried(&key(), &one(2000, 2004, Answer::In(4_000)), true);
    let seen = report(&canaries);
    assert_eq!((seen.verdict, seen.healed_after_ms), (CanaryVerdict::Agrees, Some(4)));
}

#[test]
fn answers_over_a_delayed_link_must_be_late_both_ways() {
    let wanted = accepted(late(40_000), None);
    let mut canaries = in_force(&wanted);
    canaries.tried(&key(), &one(0, 81, Answer::In(80_500)), true);
    assert_eq!(report(&canaries).verdict, CanaryVerdict::Agrees);
    canaries.tried(&key(), &one(500, 550, Answer::In(50_300)), true);
    let seen = report(&canaries);
    assert_eq!(seen.verdict, CanaryVerdict::Contradicts);
    assert_eq!(
        seen.why.unwrap(),
        "kv-2 answered kv-1 in 50.3 ms, and the fault makes it 80.0 ms at least"
    );
}

#[test]
fn effects_that_a_canary_cannot_tell_prove_nothing() {
    let some = |effect: LinkEffect, probability: Option<Ratio>| {
        let mut wanted = accepted(effect, None);
        let fault = wanted.spec.proxy.faults.get_mut(&key().0).unwrap();
        fault.probability = probability;
        let mut canaries = in_force(&wanted);
        canaries.tried(&key(), &one(0, 1000, Answer::None), true);
        report(&canaries).verdict
    };
    let half = Ratio::from_ppm(500_000);
    assert_eq!(some(cut(), Some(half)), CanaryVerdict::Unproven, "some connections are spared");
    let lossy = LinkEffect { corrupt: Some(half), ..LinkEffect::default() };
    assert_eq!(some(lossy, None), CanaryVerdict::Unproven);
    let refused = LinkEffect { dials: Some(Dials::Refuse), ..LinkEffect::default() };
    assert_eq!(some(refused, None), CanaryVerdict::Agrees);
}

#[test]
fn a_connection_that_only_opens_proves_cuts_of_packets_and_nothing_else() {
    let bare = |effect: LinkEffect| {
        let mut wanted = accepted(effect, None);
        wanted.spec.nodes.get_mut(&node("kv-2")).unwrap().ready = None;
        let mut canaries = in_force(&wanted);
        assert!(!canaries.asking()[&key()].question.is_http);
        canaries.tried(&key(), &one(0, 1000, Answer::None), true);
        report(&canaries).verdict
    };
    assert_eq!(bare(cut()), CanaryVerdict::Agrees);
    let bytes = LinkEffect { cut: Some(Cut::Bytes), ..LinkEffect::default() };
    assert_eq!(bare(bytes), CanaryVerdict::Unproven);
}

#[test]
fn too_many_links_are_told_and_not_asked_over() {
    let mut wanted = accepted(cut(), None);
    for number in 3..40_u8 {
        let peer = node(&format!("kv-{number}"));
        let address = IpAddr::from([127, 128, 0, number]);
        wanted.spec.proxy.diallers.insert(address, peer.clone());
        let fault = wanted.spec.proxy.faults.get_mut(&key().0).unwrap();
        fault.links.insert(Link::between(&peer, &node("kv-2")));
    }
    let mut canaries = Canaries::default();
    canaries.take_orders(&wanted, |_, _, _| None);
    assert_eq!(canaries.to_ask_before().len(), LINKS_MAX);
    let mut faults = told(true);
    canaries.fill(&mut faults);
    assert_eq!(faults[&key().0].canary_skipped, 38 - LINKS_MAX as u64);
}
