//! Laws of the table: one rule for each link, deadlines that only a newer revision moves.

use std::time::Duration;

use faultbed_common::{
    duration::Span,
    effect::Ratio,
    fault::HealPolicy,
    proxy_spec::{Deadline, Delay, LinkEffect},
    rules::combine,
};
use proptest::prelude::*;

use super::*;

const BOOT: &str = "this boot";

fn here(now_ns: u64) -> Here<'static> {
    static UNKNOWN: BTreeMap<FaultName, String> = BTreeMap::new();
    let can = Abilities { deafness: true, ..Abilities::default() };
    Here { boot_id: BOOT, now_ns, can, unknown: &UNKNOWN }
}

fn file(faults: &[(&str, LinkFault)]) -> ProxyFile {
    let mut file = ProxyFile { version: 1, boot_id: BOOT.to_owned(), ..ProxyFile::default() };
    for (name, fault) in faults {
        file.spec.faults.insert(name.parse().unwrap(), fault.clone());
    }
    file
}

pub(super) fn cut(links: &[&str]) -> LinkFault {
    LinkFault {
        revision: FaultRevision(1),
        lasts: None,
        effect: LinkEffect { cut: Some(Cut::Packets), ..LinkEffect::default() },
        grade: None,
        heal: HealPolicy::Resume,
        links: links.iter().map(|link| link.parse().unwrap()).collect(),
        seed: 1,
        probability: None,
        canary: false,
        fast_heal: false,
    }
}

/// A fault's share in an order, for tests of others.
pub(crate) fn acting(life: u32) -> Arc<Acting> {
    Arc::new(Acting {
        life: Life(life),
        began_ns: 0,
        heal: HealPolicy::Resume,
        effect: LinkEffect::default(),
        kernel: Kernel::default(),
        probability: None,
        seed: u64::from(life),
    })
}

fn ends(file: &mut ProxyFile, name: &str, revision: u64, boottime_ns: Option<u64>) {
    let deadline = Deadline { revision: FaultRevision(revision), boottime_ns };
    file.deadlines.insert(name.parse().unwrap(), deadline);
}

fn standing(table: &Table, name: &str) -> Standing {
    table.faults[&name.parse::<FaultName>().unwrap()].standing.clone()
}

#[test]
fn a_fault_acts_until_its_deadline_and_no_longer() {
    let mut file = file(&[("split", cut(&["x>y"]))]);
    ends(&mut file, "split", 1, Some(100));
    let mut memory = Memory::default();
    let table = read(&file, &mut memory, here(99));
    assert_eq!((standing(&table, "split"), table.deadline_ns), (Standing::Active, Some(100)));
    assert_eq!(table.links.len(), 1);
    let table = read(&file, &mut memory, here(100));
    assert_eq!((standing(&table, "split"), table.deadline_ns), (Standing::Expired, None));
    assert!(table.links.is_empty());
}

#[test]
fn only_a_newer_revision_moves_a_deadline() {
    let mut file = file(&[("split", cut(&["x>y"]))]);
    let mut memory = Memory::default();
    ends(&mut file, "split", 1, Some(100));
    read(&file, &mut memory, here(0));
    ends(&mut file, "split", 1, Some(900));
    assert_eq!(read(&file, &mut memory, here(1)).deadline_ns, Some(100));
    file.spec.faults.values_mut().for_each(|fault| fault.revision = FaultRevision(2));
    ends(&mut file, "split", 2, Some(900));
    assert_eq!(read(&file, &mut memory, here(2)).deadline_ns, Some(900));
}

#[test]
fn deadlines_of_another_boot_do_not_end_a_fault() {
    let mut file = file(&[("split", cut(&["x>y"]))]);
    file.boot_id = "another boot".to_owned();
    ends(&mut file, "split", 1, Some(100));
    let mut memory = Memory::default();
    let table = read(&file, &mut memory, here(5000));
    assert_eq!((standing(&table, "split"), table.deadline_ns), (Standing::Active, None));
    // The agent has rewritten the file with what is left of the time.
    file.boot_id = BOOT.to_owned();
    ends(&mut file, "split", 1, Some(6000));
    assert_eq!(read(&file, &mut memory, here(5001)).deadline_ns, Some(6000));
}

#[test]
fn a_fault_without_a_deadline_in_the_file_ends_after_its_own_time() {
    let mut fault = cut(&["x>y"]);
    fault.lasts = Some(Span(Duration::from_nanos(50)));
    let file = file(&[("split", fault)]);
    let mut memory = Memory::default();
    assert_eq!(read(&file, &mut memory, here(100)).deadline_ns, Some(150));
    assert_eq!(read(&file, &mut memory, here(120)).deadline_ns, Some(150));
}

#[test]
fn a_fault_that_comes_back_has_another_life() {
    let with = file(&[("split", cut(&["x>y"]))]);
    let mut memory = Memory::default();
    let life = |table: &Table| table.faults.values().next().map(|state| state.life);
    let first = life(&read(&with, &mut memory, here(0)));
    assert_eq!(life(&read(&with, &mut memory, here(1))), first);
    read(&file(&[]), &mut memory, here(2));
    assert!(life(&read(&with, &mut memory, here(3))) > first);
}

#[test]
fn at_grade_stream_packets_are_held_like_bytes() {
    let mut fault = cut(&["x>y"]);
    fault.grade = Some(Grade::Stream);
    let table = read(&file(&[("split", fault)]), &mut Memory::default(), here(0));
    assert_eq!(table.links.values().next().unwrap().rule.cut, Some(Cut::Bytes));
    let cut_packets = file(&[("split", cut(&["x>y"]))]);
    let poor = Here { can: Abilities::default(), ..here(0) };
    let table = read(&cut_packets, &mut Memory::default(), poor);
    assert_eq!(table.links.values().next().unwrap().rule.cut, Some(Cut::Bytes));
}

#[test]
fn a_grade_the_host_does_not_have_is_refused() {
    let mut fault = cut(&["x>y"]);
    fault.grade = Some(Grade::Packet);
    let poor = Here { can: Abilities::default(), ..here(0) };
    let table = read(&file(&[("split", fault)]), &mut Memory::default(), poor);
    assert!(matches!(standing(&table, "split"), Standing::Refused(_)));
    assert!(table.links.is_empty());
}

#[test]
fn packets_cut_one_way_keep_diallers_out_both_ways() {
    let table = read(&file(&[("a", cut(&["x>y"]))]), &mut Memory::default(), here(0));
    for (node, dialler) in [("y", "x"), ("x", "y")] {
        let parties = &table.kept_out[&node.parse::<NodeName>().unwrap()];
        assert_eq!(parties.keys().map(Party::to_string).collect::<Vec<_>>(), [dialler]);
        assert_eq!(parties.values().collect::<Vec<_>>(), [&Dials::TimeOut]);
    }
    assert_eq!(table.kept_out.len(), 2, "nobody else's");
}

#[test]
fn dials_that_fail_do_so_in_their_direction_only() {
    let mut fault = cut(&["x>y"]);
    fault.effect = LinkEffect { dials: Some(Dials::Refuse), ..LinkEffect::default() };
    let refuse = file(&[("a", fault.clone())]);
    let table = read(&refuse, &mut Memory::default(), here(0));
    assert!(table.kept_out.is_empty(), "who cannot refuse a SYN does it after the accept");
    let can = Abilities { deafness: true, filters: true, programs: true };
    let rich = Here { can, ..here(0) };
    let table = read(&refuse, &mut Memory::default(), rich);
    let parties = &table.kept_out[&"y".parse::<NodeName>().unwrap()];
    assert_eq!((parties.len(), table.kept_out.len()), (1, 1));
    assert_eq!(parties.values().next(), Some(&Dials::Refuse));
    let table = read(&file(&[("a", fault), ("b", cut(&["x>y"]))]), &mut Memory::default(), rich);
    let parties = &table.kept_out[&"y".parse::<NodeName>().unwrap()];
    assert_eq!(parties.values().next(), Some(&Dials::TimeOut), "a cut wins");
}

#[test]
fn what_does_not_change_stays_the_same_order() {
    let mut memory = Memory::default();
    let both = [("a", cut(&["x>y", "y>x"])), ("b", cut(&["z>x"]))];
    let first = read(&file(&both), &mut memory, here(0));
    assert_eq!(first.changed.len(), 3);
    let again = read(&file(&both), &mut memory, here(1));
    assert!(Arc::ptr_eq(&first.links, &again.links) && again.changed.is_empty());
    let mut other = both.clone();
    other[1].1.effect.accept_delay_us = 7;
    let third = read(&file(&other), &mut memory, here(2));
    let changed: Vec<String> = third.changed.iter().map(ToString::to_string).collect();
    assert_eq!(changed, ["z>x"]);
    let link: Link = "x>y".parse().unwrap();
    assert!(Arc::ptr_eq(&first.links[&link], &third.links[&link]));
    let gone = read(&file(&other[..1]), &mut memory, here(3));
    assert_eq!(gone.changed.iter().map(ToString::to_string).collect::<Vec<_>>(), ["z>x"]);
    assert_eq!(gone.links.len(), 2);
}

#[test]
fn a_share_of_connections_is_fixed_by_seed_and_number() {
    let share = |seed, ppm| {
        let probability = Some(Ratio::from_ppm(ppm));
        let mut fault = LinkFault { seed, probability, ..cut(&["x>y"]) };
        fault.effect.accept_delay_us = 5;
        let always = LinkFault { seed: 1, ..cut(&["x>y"]) };
        let table =
            read(&file(&[("some", fault), ("each", always)]), &mut Memory::default(), here(0));
        Arc::clone(&table.links[&"x>y".parse::<Link>().unwrap()])
    };
    let met = |order: &Order, number| {
        let part = order.for_connection(number);
        let met = part.acting.len() == 2;
        assert_eq!(part.rule.accept_delay_us, if met { 5 } else { 0 });
        assert_eq!(part.rule.cut, Some(Cut::Packets), "the other fault acts on all");
        met
    };
    let order = share(7, 300_000);
    let count = (0..10_000).filter(|number| met(&order, *number)).count();
    assert!((2_800..3_200).contains(&count), "{count} of 10000 with seed 7");
    let again = share(7, 300_000);
    assert!((0..1_000).all(|number| met(&order, number) == met(&again, number)));
    let other = share(8, 300_000);
    assert!((0..1_000).any(|number| met(&order, number) != met(&other, number)));
    let (none, all) = (share(7, 0), share(7, 1_000_000));
    assert!((0..1_000).all(|number| !met(&none, number) && met(&all, number)));
}

fn faults() -> impl Strategy<Value = Vec<LinkFault>> {
    let links = proptest::sample::subsequence(vec!["x>y", "y>x", "x>z", "clients>x"], 0..=4);
    let cut_kind = prop_oneof![Just(None), Just(Some(Cut::Bytes)), Just(Some(Cut::Packets))];
    let base = proptest::option::of(1_u64..1000);
    let fault = (links, cut_kind, base, any::<u64>()).prop_map(|(links, kind, base, seed)| {
        let delay = base.map(|base_us| Delay { base_us, ..Delay::default() });
        LinkFault {
            effect: LinkEffect { cut: kind, delay, ..LinkEffect::default() },
            seed,
            ..cut(&links)
        }
    });
    proptest::collection::vec(fault, 0..5)
}

proptest! {
    #[test]
    fn each_link_has_exactly_the_rule_of_its_faults(all in faults()) {
        let named: Vec<(String, LinkFault)> =
            all.iter().enumerate().map(|(n, fault)| (format!("f{n}"), fault.clone())).collect();
        let named: Vec<(&str, LinkFault)> =
            named.iter().map(|(name, fault)| (name.as_str(), fault.clone())).collect();
        let table = read(&file(&named), &mut Memory::default(), here(0));
        let touched: BTreeSet<&Link> = all.iter().flat_map(|fault| &fault.links).collect();
        prop_assert_eq!(table.links.keys().collect::<BTreeSet<_>>(), touched);
        for (link, order) in &*table.links {
            let acting: Vec<_> = all.iter().filter(|f| f.links.contains(link)).collect();
            prop_assert_eq!(&order.rule, &combine(acting.iter().map(|fault| &fault.effect)));
            prop_assert_eq!(order.acting.len(), acting.len());
        }
    }

    #[test]
    fn injecting_and_healing_leaves_the_links_as_they_were(before in faults(), more in faults()) {
        let name = |prefix: &str, all: &[LinkFault]| -> Vec<(String, LinkFault)> {
            all.iter().enumerate().map(|(n, f)| (format!("{prefix}{n}"), f.clone())).collect()
        };
        fn file_of(all: &[(String, LinkFault)]) -> ProxyFile {
            file(&all.iter().map(|(n, f)| (n.as_str(), f.clone())).collect::<Vec<_>>())
        }
        let (old, new) = (name("a", &before), name("b", &more));
        let mut memory = Memory::default();
        let first = read(&file_of(&old), &mut memory, here(0));
        read(&file_of(&[old.clone(), new].concat()), &mut memory, here(1));
        let last = read(&file_of(&old), &mut memory, here(2));
        let orders = |table: &Table| -> Vec<_> {
            let order = |(link, o): (&Link, &Arc<Order>)| {
                (link.clone(), o.rule.clone(), o.acting.clone(), o.seed)
            };
            table.links.iter().map(order).collect()
        };
        prop_assert_eq!(orders(&first), orders(&last));
        prop_assert_eq!(first.faults, last.faults);
    }

    #[test]
    fn after_a_difference_is_made_there_is_none(
        open in proptest::collection::btree_map(1_u16..9, 1_u16..4, 0..6),
        wanted in proptest::collection::btree_map(1_u16..9, 1_u16..4, 0..6),
    ) {
        let listeners = |ports: BTreeMap<u16, u16>| -> BTreeMap<SocketAddr, Listener> {
            let listener = |(at, up): (u16, u16)| {
                let listen = SocketAddr::from(([127, 77, 0, 1], at));
                let upstream = SocketAddr::from(([127, 128, 0, 1], up));
                let (node, port) = ("x".parse().unwrap(), "client".parse().unwrap());
                (listen, Listener { node, port, listen, upstream })
            };
            ports.into_iter().map(listener).collect()
        };
        let (mut open, wanted) = (listeners(open), listeners(wanted));
        let Difference { close, open: missing } = diff(open.values(), &wanted);
        for address in close {
            prop_assert!(open.remove(&address).is_some(), "closes what is open");
        }
        for listener in missing {
            prop_assert!(open.insert(listener.listen, listener).is_none(), "closed before opened");
        }
        prop_assert_eq!(&open, &wanted);
        prop_assert_eq!(diff(open.values(), &wanted), Difference::default());
    }
}
