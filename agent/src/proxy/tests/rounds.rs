//! Many rounds and many links: nothing grows with the number of faults there ever were, and a change of rules is quick.

use std::{
    fs,
    io::{Read, Write},
    time::{Duration, Instant},
};

use faultbed_common::proxy_spec::Cut;

use super::harness::{Lab, cut, eventually, in_child, late, node, pass};

const BOTH: [&str; 2] = ["x>y", "y>x"];

/// Bytes that this process has allocated and not given back.
#[allow(unsafe_code, reason = "asks the allocator")]
fn allocated() -> usize {
    // SAFETY: it only reads counters of the allocator.
    unsafe { libc::mallinfo2() }.uordblks
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("list descriptors").count()
}

/// In a process of its own: other tests allocate as well.
#[test]
fn rounds_of_injecting_and_healing_leave_nothing_behind() {
    const NAME: &str = "rounds::rounds_of_injecting_and_healing_leave_nothing_behind";
    if !in_child(NAME, ("MALLOC_ARENA_MAX", "1")) {
        return;
    }
    let mut lab = Lab::start(&["x", "y"]);
    let pairs: Vec<_> = (0..20).map(|_| lab.join("x", "y")).collect();
    // One that stays, so that what ended is not forgotten only because nothing is left.
    lab.inject("stays", late(Duration::from_micros(10), Duration::ZERO), &BOTH);
    let mut rounds = |count: u32| {
        for _ in 0..count {
            lab.inject("split", cut(Cut::Packets), &BOTH);
            lab.apply();
            lab.heal("split");
            lab.report();
        }
        (allocated(), descriptors())
    };
    // The evidence of a hundred ended faults, and the alarms of three seconds, have their place first.
    let (before, open) = rounds(450);
    let (after, open_after) = rounds(450);
    println!("{before} bytes after 450 rounds, {after} after 900");
    assert!(open.abs_diff(open_after) < 10, "{open} descriptors, then {open_after}");
    // Alarms that wait for the time after a heal are allowed to be there for that time.
    eventually("what the rounds took is given back", || allocated() < before + 450 * 100);
    drop(pairs);
}

/// Numbers for a person; bounds that only a mistake of the wrong order of magnitude breaks.
#[test]
fn a_thousand_links_change_at_once_and_one_change_is_quick() {
    const LINKS: usize = 1_000;
    let mut lab = Lab::start(&["x", "y", "z"]);
    let mut links = Vec::new();
    for number in 0..LINKS / 2 {
        let name = format!("peer-{number}");
        let bytes = u16::try_from(number).unwrap().to_be_bytes();
        lab.file.spec.diallers.insert([127, 150, bytes[0], bytes[1]].into(), node(&name));
        links.extend([format!("{name}>x"), format!("x>{name}")]);
    }
    lab.apply();
    let links: Vec<&str> = links.iter().map(String::as_str).collect();
    let pairs: Vec<_> = (0..200).map(|_| lab.join("y", "x")).collect();
    let effects =
        [("cut", cut(Cut::Packets)), ("late", late(Duration::from_millis(1), Duration::ZERO))];
    for (what, effect) in effects {
        let mut times = Vec::new();
        for _ in 0..3 {
            lab.inject("many", effect.clone(), &links);
            let began = Instant::now();
            let applied = lab.apply();
            times.push(began.elapsed());
            let why = &applied.faults.values().next().unwrap().why;
            assert!(why.is_none(), "{why:?}");
            lab.heal("many");
        }
        times.sort_unstable();
        println!("{LINKS} links, {what}: {times:?}");
        assert!(times[1] < Duration::from_secs(2), "{times:?}");
    }
    // From the request to the first byte that is held.
    let mut times = Vec::new();
    let (near, far) = &pairs[0];
    for _ in 0..20 {
        lab.inject("one", cut(Cut::Bytes), &["y>x"]);
        lab.write();
        let began = Instant::now();
        lab.client().apply().unwrap();
        times.push(began.elapsed());
        (&mut &*near).write_all(b"held").unwrap();
        lab.heal("one");
        (&mut &*far).read_exact(&mut [0; 4]).unwrap();
    }
    times.sort_unstable();
    println!("one rule, applied: {times:?}");
    assert!(times[10] < Duration::from_millis(500), "{times:?}");
    pass(near, far, "healed");
}
