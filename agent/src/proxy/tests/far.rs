//! Diallers of another host: known by their ports, cut by them, in both protocols.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use faultbed_common::{
    port_block::PortBlock,
    proxy_spec::{BlockOwner, Cut, Dials, LinkEffect},
};

use super::{
    ground::{Ground, HERE, THERE, in_network, ip},
    harness::{Lab, PATIENCE, cut, eventually, fault, finish, node, pass},
};

/// Long enough that an answer would have come, short enough to wait for one that must not.
const NO_ANSWER: Duration = Duration::from_millis(300);

/// A lab of y, which x-1 and x-2 dial from one address, at which nobody else is.
fn lab_of_two(family: usize) -> (Lab, SocketAddr) {
    let mut lab = Lab::prepare(&["y"]);
    let to = SocketAddr::new(ip(HERE[family]), lab.listen("y").port());
    lab.file.spec.listeners[0].listen = to;
    own(&mut lab, THERE[family], 10240, "x-1");
    own(&mut lab, THERE[family], 10368, "x-2");
    (lab, to)
}

fn own(lab: &mut Lab, address: &str, first: u16, name: &str) {
    let owner = BlockOwner { block: PortBlock { first, count: 128 }, node: node(name) };
    Arc::make_mut(&mut lab.file.spec.blocks).entry(ip(address)).or_default().push(owner);
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

fn times_out(dial: TcpStream) -> bool {
    let timed_out = |error: io::Error| error.kind() == io::ErrorKind::TimedOut;
    finish(dial, NO_ANSWER).is_err_and(timed_out)
}

#[test]
fn of_two_nodes_behind_one_address_exactly_one_is_cut() {
    if !in_network("far::of_two_nodes_behind_one_address_exactly_one_is_cut") {
        return;
    }
    let ground = Ground::new();
    for (family, there) in THERE.into_iter().enumerate() {
        let (mut lab, to) = lab_of_two(family);
        lab.run();
        let dial = |port| ground.begin(at(there, port), to).unwrap();
        let join = |port| {
            let near = finish(dial(port), PATIENCE).unwrap();
            (near, lab.server("y").accept().unwrap().0)
        };
        let (near_1, far_1) = join(10240);
        let (near_2, far_2) = join(10368);
        pass(&near_1, &far_1, "before");
        let links = ["x-1>y", "y>x-1"];
        lab.inject("split", cut(Cut::Packets), &links);
        assert_eq!(lab.apply().faults[&fault("split")].why, None, "and it was tried");
        // What is open stands still for the one and goes on for the other.
        (&near_1).write_all(b"during").unwrap();
        pass(&near_2, &far_2, "during");
        pass(&far_2, &near_2, "during");
        // New dials, first and last port of each block.
        let pending: Vec<_> = [10241, 10367].map(dial).into_iter().collect();
        for port in [10369, 10495] {
            drop(finish(dial(port), PATIENCE).unwrap());
            drop(lab.server("y").accept().unwrap());
        }
        for dial in pending {
            assert!(times_out(dial));
        }
        eventually("they are counted", || lab.evidence("split", "x-1>y").attempts_refused >= 2);
        assert_eq!(lab.evidence("split", "x-1>y").connections, 1);
        let waiting = dial(10242);
        lab.heal("split");
        let mut bytes = [0; 6];
        (&far_1).read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"during");
        drop(finish(waiting, PATIENCE).unwrap());
        assert_eq!(lab.report().report.unknown_reset, 0);
    }
}

#[test]
fn a_port_that_was_cut_connects_at_once_after_the_heal() {
    if !in_network("far::a_port_that_was_cut_connects_at_once_after_the_heal") {
        return;
    }
    let ground = Ground::new();
    let (mut lab, to) = lab_of_two(0);
    lab.run();
    let from = at(THERE[0], 10240);
    let near = finish(ground.begin(from, to).unwrap(), PATIENCE).unwrap();
    let (far, _) = lab.server("y").accept().unwrap();
    pass(&near, &far, "before");
    lab.inject("split", cut(Cut::Packets), &["x-1>y", "y>x-1"]);
    lab.apply();
    // The dialler gives up in the cut: its reset is lost, and our socket of it is still there.
    rustix::net::sockopt::set_socket_linger(&near, Some(Duration::ZERO)).unwrap();
    drop(near);
    lab.heal("split");
    // A socket that were still deaf would swallow this SYN, and the next comes a second later.
    let again = finish(ground.begin(from, to).unwrap(), Duration::from_millis(900)).unwrap();
    let (far, _) = lab.server("y").accept().unwrap();
    pass(&again, &far, "after");
}

#[test]
fn clients_of_another_host_are_cut_and_its_nodes_are_not() {
    if !in_network("far::clients_of_another_host_are_cut_and_its_nodes_are_not") {
        return;
    }
    let ground = Ground::new();
    for (family, there) in THERE.into_iter().enumerate() {
        let (mut lab, to) = lab_of_two(family);
        lab.run();
        lab.inject("lonely", cut(Cut::Packets), &["clients>y", "y>clients"]);
        assert_eq!(lab.apply().faults[&fault("lonely")].why, None);
        let dial = |port| ground.begin(at(there, port), to).unwrap();
        for port in [10240, 10495] {
            drop(finish(dial(port), PATIENCE).unwrap());
        }
        assert!(times_out(dial(0)));
        eventually("it is counted", || lab.evidence("lonely", "clients>y").attempts_refused > 0);
    }
}

#[test]
fn refusals_meet_the_chosen_node_of_an_address_only() {
    if !in_network("far::refusals_meet_the_chosen_node_of_an_address_only") {
        return;
    }
    let ground = Ground::new();
    for (family, there) in THERE.into_iter().enumerate() {
        let (mut lab, to) = lab_of_two(family);
        lab.run();
        let refuse = LinkEffect { dials: Some(Dials::Refuse), ..LinkEffect::default() };
        lab.inject("no", refuse, &["x-1>y"]);
        assert!(lab.apply().faults[&fault("no")].active);
        let dial = |port| ground.begin(at(there, port), to);
        // By the kernel where it takes such a program; else it is accepted and then reset.
        let refused = |port| match dial(port).and_then(|dial| finish(dial, PATIENCE)) {
            Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            Ok(mut near) => near.read(&mut [0]).is_err(),
        };
        assert!(refused(10240) && refused(10367));
        drop(finish(dial(10368).unwrap(), PATIENCE).unwrap());
        drop(lab.server("y").accept().unwrap());
    }
}

#[test]
fn five_hundred_rules_on_one_listener_are_all_exact() {
    const NODES: u16 = 500;
    const HOSTS: u16 = 5;
    if !in_network("far::five_hundred_rules_on_one_listener_are_all_exact") {
        return;
    }
    let ground = Ground::new();
    ground.add_addresses();
    for prefix in ["10.77.0.", "fd77::"] {
        let mut lab = Lab::prepare(&["y"]);
        let here = HERE[usize::from(prefix == "fd77::")];
        let to = SocketAddr::new(ip(here), lab.listen("y").port());
        lab.file.spec.listeners[0].listen = to;
        let name = |n: u16| format!("n-{n}");
        let host = |n: u16| format!("{prefix}{}", 11 + n % HOSTS);
        let first = |n: u16| 1024 + n / HOSTS * 128;
        for n in 0..NODES {
            own(&mut lab, &host(n), first(n), &name(n));
        }
        lab.run();
        // Every second one is cut off, and every block has two neighbours that are not.
        let cut_off = |n: u16| (n / HOSTS).is_multiple_of(2);
        let links: Vec<String> =
            (0..NODES).filter(|n| cut_off(*n)).map(|n| format!("{}>y", name(n))).collect();
        let mut links: Vec<&str> = links.iter().map(String::as_str).collect();
        links.push("clients>y");
        lab.inject("split", cut(Cut::Packets), &links);
        assert_eq!(lab.apply().faults[&fault("split")].why, None);
        let dial = |n: u16, at: u16| {
            ground.begin(SocketAddr::new(ip(&host(n)), first(n) + at), to).unwrap()
        };
        // All of them begin, then none of the wrong ones may have been answered.
        let (mut kept_out, mut let_in) = (Vec::new(), Vec::new());
        for n in (0..NODES).filter(|n| n.is_multiple_of(9)) {
            for at in [0, 127] {
                if cut_off(n) { &mut kept_out } else { &mut let_in }.push(dial(n, at));
            }
        }
        for dial in let_in {
            drop(finish(dial, PATIENCE).unwrap());
        }
        let mut counted = 0;
        eventually("all are counted", || {
            let of = |n: &u16| lab.evidence("split", &format!("{}>y", name(*n))).attempts_refused;
            counted = (0..NODES)
                .filter(|n| n.is_multiple_of(9) && cut_off(*n))
                .filter(|n| of(n) > 0)
                .count();
            // The first 256 parties have counters of their own.
            counted >= 20
        });
        for dial in kept_out {
            assert!(finish(dial, Duration::ZERO).is_err());
        }
    }
}
