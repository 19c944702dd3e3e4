//! Steering programs, run as the kernel runs them.

use std::collections::BTreeMap;

use super::{
    program::{
        JUMP, JUMP_IF_ABOVE, JUMP_IF_AT_LEAST, JUMP_IF_EQUAL, LOAD_HALF, LOAD_HALF_BEHIND,
        LOAD_HEADER_LENGTH, LOAD_WORD, NET, RETURN,
    },
    *,
};
use crate::proxy::sys::Instruction;

/// Runs a program on the headers of one SYN, as the kernel would. A load behind them ends it.
fn run_from(program: &[Instruction], source: SocketAddr, options: &[u8]) -> u32 {
    let mut header = match source.ip() {
        IpAddr::V4(address) => [&[0; 12][..], &address.octets(), &[0; 4], options].concat(),
        IpAddr::V6(address) => [&[0; 8][..], &address.octets(), &[0; 16]].concat(),
    };
    if source.is_ipv4() {
        header[0] = 0x45 + u8::try_from(options.len() / 4).unwrap();
    }
    header.extend(source.port().to_be_bytes());
    let (mut at, mut word, mut index) = (0, 0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let load = |offset: usize, bytes: usize| {
            let found = &header[offset..offset + bytes];
            found.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
        };
        let jump = |met: bool| usize::from(if met { jt } else { jf });
        match code {
            LOAD_WORD => word = load((k - NET) as usize, 4),
            LOAD_HALF => word = load((k - NET) as usize, 2),
            LOAD_HALF_BEHIND => word = load((k - NET) as usize + index, 2),
            LOAD_HEADER_LENGTH => index = 4 * (load((k - NET) as usize, 1) as usize & 15),
            JUMP_IF_EQUAL => at += jump(word == k),
            JUMP_IF_AT_LEAST => at += jump(word >= k),
            JUMP_IF_ABOVE => at += jump(word > k),
            JUMP => at += k as usize,
            RETURN => return k,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn run(program: &[Instruction], source: IpAddr) -> u32 {
    run_from(program, SocketAddr::new(source, 40000), &[])
}

fn steering(places: BTreeMap<IpAddr, u32>, others: u32) -> Steering {
    Steering { places, ranges: BTreeMap::new(), others }
}

fn block(first: u16, count: u16) -> PortBlock {
    PortBlock { first, count }
}

fn check(places: &[(&str, u32)], others: u32, expected: &[(&str, u32)]) {
    let parse = |text: &str| -> IpAddr { text.parse().unwrap() };
    let places = places.iter().map(|(text, place)| (parse(text), *place)).collect();
    let steering = steering(places, others);
    for (source, place) in expected {
        let program = program(&steering, parse(source).is_ipv4()).unwrap();
        assert_eq!(run(&program, parse(source)), *place, "{source}");
    }
}

#[test]
fn nodes_behind_one_address_are_told_apart_by_port_in_both_protocols() {
    for address in ["10.0.0.1", "fd77::1"].map(|text| text.parse::<IpAddr>().unwrap()) {
        let other: IpAddr = if address.is_ipv4() { "10.0.0.2" } else { "fd77::2" }.parse().unwrap();
        let ranges = vec![(block(10240, 128), 2), (block(10368, 128), 3), (block(65500, 36), 4)];
        let mut steering = Steering {
            places: [(other, 7)].into(),
            ranges: [(address, ranges)].into(),
            others: REAL,
        };
        let ports = [
            (10239, REAL),
            (10240, 2),
            (10367, 2),
            (10368, 3),
            (10495, 3),
            (10496, REAL),
            (65535, 4),
        ];
        for options in [&[][..], &[1, 1, 1, 1], &[1; 40]] {
            let program = program(&steering, address.is_ipv4()).unwrap();
            for (port, place) in ports {
                let options = if address.is_ipv4() { options } else { &[] };
                let from = SocketAddr::new(address, port);
                assert_eq!(run_from(&program, from, options), place, "{from} {options:?}");
            }
            assert_eq!(run_from(&program, SocketAddr::new(other, 10240), options), 7);
        }
        // What is said of the whole address holds for the other ports.
        steering.places.insert(address, 9);
        let program = program(&steering, address.is_ipv4()).unwrap();
        assert_eq!(run_from(&program, SocketAddr::new(address, 10240), &[]), 2);
        assert_eq!(run_from(&program, SocketAddr::new(address, 10239), &[]), 9);
    }
}

#[test]
fn five_hundred_rules_fit_however_they_are_spread_and_more_on_one_address() {
    let blocks = |count: u16| -> Vec<_> {
        (0..count).map(|n| (block(1024 + n * 40, 40), u32::from(n) + 2)).collect()
    };
    let address = |n: u16| -> [IpAddr; 2] {
        let [high, low] = n.to_be_bytes();
        [IpAddr::from([10, 0, high, low]), IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, n])]
    };
    for family in 0..2 {
        for hosts in [1, 5, 50, 500] {
            let one = |n| (address(n)[family], blocks(500 / hosts));
            let ranges = (1..=hosts).map(one).collect();
            let steering = Steering { places: BTreeMap::new(), ranges, others: REAL };
            let program = program(&steering, family == 0).unwrap();
            for n in 1..=hosts {
                for at in 0..500 / hosts {
                    let from = SocketAddr::new(address(n)[family], 1024 + at * 40 + 39);
                    assert_eq!(run_from(&program, from, &[]), u32::from(at) + 2);
                }
            }
        }
        let many = |count| Steering {
            places: BTreeMap::new(),
            ranges: [(address(1)[family], blocks(count))].into(),
            others: REAL,
        };
        assert!(program(&many(1300), family == 0).is_ok());
        assert!(program(&many(1400), family == 0).is_err());
    }
}

#[test]
fn each_address_goes_to_its_place_and_others_go_on() {
    check(
        &[("127.128.0.1", 2), ("127.128.0.2", 3)],
        REAL,
        &[("127.128.0.1", 2), ("127.128.0.2", 3), ("127.128.0.3", 1), ("127.0.0.1", 1)],
    );
    check(&[("127.128.0.1", REAL)], 2, &[("127.128.0.1", 1), ("127.0.0.1", 2)]);
}

#[test]
fn addresses_of_the_newer_protocol_are_compared_whole() {
    check(
        &[("fd77::1", 2), ("fd77::1:0:0:2", 3)],
        REAL,
        &[
            ("fd77::1", 2),
            ("fd77::1:0:0:2", 3),
            ("fd77::2", 1),
            ("fd77::1:0:0:1", 1),
            ("fd78::1", 1),
        ],
    );
}

#[test]
fn five_hundred_parties_of_the_newer_protocol_fit() {
    let address = |n: u16| IpAddr::from([0xfd77, 0, 0, n % 7, 0, 0, 0, n]);
    let places = (0..500).map(|n| (address(n), u32::from(n) + 2)).collect();
    let program = program(&steering(places, REAL), false).unwrap();
    for n in 0..500 {
        assert_eq!(run(&program, address(n)), u32::from(n) + 2);
    }
    assert_eq!(run(&program, address(501)), REAL);
}

#[test]
fn a_program_that_is_too_long_is_an_error() {
    let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(0x7f80_0000 + n));
    let many = |count| steering((0..count).map(|n| (address(n), 2)).collect(), REAL);
    assert!(program(&many(2047), true).is_ok());
    assert!(program(&many(2048), true).is_err());
}
