//! Steering programs, run as the kernel runs them.

use super::*;

/// Runs a program on the addresses of one packet, as the kernel would.
fn run(program: &[Instruction], source: IpAddr) -> u32 {
    let header = match source {
        IpAddr::V4(address) => [&[0; 12][..], &address.octets()].concat(),
        IpAddr::V6(address) => [&[0; 8][..], &address.octets()].concat(),
    };
    let (mut at, mut word) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        match code {
            LOAD_WORD => {
                let offset = (k - NET) as usize;
                let bytes = header[offset..offset + 4].try_into().unwrap();
                word = u32::from_be_bytes(bytes);
            }
            JUMP_IF_EQUAL => at += usize::from(if word == k { jt } else { jf }),
            JUMP => at += k as usize,
            RETURN => return k,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn check(steering: &[(&str, u32)], others: u32, expected: &[(&str, u32)]) {
    let parse = |text: &str| -> IpAddr { text.parse().unwrap() };
    let places = steering.iter().map(|(text, place)| (parse(text), *place)).collect();
    let steering = Steering { places, others };
    for (source, place) in expected {
        let program = program(&steering, parse(source).is_ipv4()).unwrap();
        assert_eq!(run(&program, parse(source)), *place, "{source}");
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
    let program = program(&Steering { places, others: REAL }, false).unwrap();
    for n in 0..500 {
        assert_eq!(run(&program, address(n)), u32::from(n) + 2);
    }
    assert_eq!(run(&program, address(501)), REAL);
}

#[test]
fn a_program_that_is_too_long_is_an_error() {
    let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(0x7f80_0000 + n));
    let steering =
        |count| Steering { places: (0..count).map(|n| (address(n), 2)).collect(), others: REAL };
    assert!(program(&steering(2047), true).is_ok());
    assert!(program(&steering(2048), true).is_err());
}
