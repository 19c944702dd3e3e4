//! Where a node's connections to other hosts come from: a block of ports of its host's address.

use std::{
    collections::BTreeSet,
    io::Read,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
};

use faultbed_agent::node::{
    self, IdentityRecord, LaunchSpec, ShimOrders,
    records::{IDENTITY_FILE, read_record},
};
use faultbed_common::{
    port_block::{FarDials, PortBlock},
    report::Identity,
};

use crate::{
    dials::dialler,
    lab::{self, Lab, Run, eventually},
};

/// Stands for the address of the node's host.
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
const PRIVATE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 128, 128, 5));
/// Connects of the test of ports that were used just before.
const CHURN: usize = 2000;

fn orders(address: IpAddr, block: (u16, u16), far: &[SocketAddr]) -> ShimOrders {
    let block = Some(PortBlock { first: block.0, count: block.1 });
    let dials = Arc::new(far.iter().copied().collect());
    ShimOrders { far: Some(FarDials { address, block, dials }), ..ShimOrders::default() }
}

fn listener(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// The next connection, and where it comes from.
fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, from) = listener.accept().unwrap();
    (stream, SocketAddr::new(from.ip().to_canonical(), from.port()))
}

fn said(mut stream: TcpStream) -> String {
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

fn identity(run: &Run) -> IdentityRecord {
    read_record(&run.dir, IDENTITY_FILE).unwrap().unwrap_or_default()
}

fn spec(lab: &Lab, verb: &str, arguments: &[String]) -> LaunchSpec {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    dialler(lab, verb, &arguments)
}

fn ended_well(run: &Run) {
    let exit = lab::last_exit(&run.dir);
    assert_eq!(exit.code, Some(0), "{:#?}", node::last_lines(&run.dir, 99));
}

#[test]
fn a_proxy_of_another_host_sees_a_port_of_the_block() {
    for (verb, target, host) in [
        ("dial", "127.77.9.2:0", "127.0.0.9"),
        ("dial-later", "127.77.9.2:0", "127.0.0.9"),
        ("dial-mapped", "127.77.9.2:0", "127.0.0.9"),
        ("dial-fastopen", "127.77.9.2:0", "127.0.0.9"),
        ("dial", "[::1]:0", "::1"),
    ] {
        let lab = Lab::new();
        let (listener, address) = listener(target);
        let orders = orders(host.parse().unwrap(), (21000, 16), &[address]);
        let run = lab.launch_with_orders(&spec(&lab, verb, &[address.to_string()]), &orders);
        let (stream, from) = accept(&listener);
        assert_eq!(said(stream), "hello", "the connection works as any other");
        assert_eq!((from.ip().to_string().as_str(), from.port()), (host, 21000), "{verb} {target}");
        ended_well(&run);
        assert_eq!((identity(&run).identity, identity(&run).bound), (Identity::Address, 1));
    }
}

#[test]
fn when_all_ports_are_in_use_the_node_connects_without_one_and_it_is_told() {
    let lab = Lab::new();
    let (listener, address) = listener("127.77.9.2:0");
    let (other, elsewhere) = self::listener("127.77.9.3:0");
    let orders = orders(HOST, (21100, 4), &[address, elsewhere]);
    let arguments = ["6".to_owned(), address.to_string(), elsewhere.to_string()];
    let run = lab.launch_with_orders(&spec(&lab, "dial-and-hold", &arguments), &orders);
    let held: Vec<_> = (0..6).map(|_| accept(&listener)).collect();
    let ports: BTreeSet<u16> =
        held.iter().filter(|(_, from)| from.ip() == HOST).map(|(_, from)| from.port()).collect();
    assert_eq!(ports, (21100..21104).collect(), "each port once");
    assert_eq!(held.iter().filter(|(_, from)| from.ip() != HOST).count(), 2);
    // To another destination the same ports are free.
    let (_stream, from) = accept(&other);
    assert_eq!(from.ip(), HOST);
    assert!(eventually(|| identity(&run).no_port == 2));
    let why = identity(&run).identity;
    assert!(matches!(&why, Identity::Lookup(why) if why.starts_with("no-port: 2")), "{why:?}");
    run.end();
}

#[test]
fn a_port_is_taken_again_at_once_when_its_connection_has_ended() {
    let lab = Lab::new();
    let (listener, address) = listener("127.77.9.2:0");
    let orders = orders(HOST, (21200, 8), &[address]);
    let arguments = [CHURN.to_string(), address.to_string()];
    let run = lab.launch_with_orders(&spec(&lab, "dial-many", &arguments), &orders);
    for _ in 0..CHURN {
        let (stream, from) = accept(&listener);
        assert_eq!(from.ip(), HOST);
        assert!((21200..21208).contains(&from.port()));
        // The dialler ended it first, so that the time of waiting is its own.
        assert_eq!(said(stream), "");
    }
    ended_well(&run);
    assert_eq!(identity(&run).no_port, 0);
}

#[test]
fn a_port_that_somebody_listens_on_is_passed_over() {
    let lab = Lab::new();
    let _stranger = TcpListener::bind("127.0.0.9:21300").unwrap();
    let (listener, address) = listener("127.77.9.2:0");
    let orders = orders(HOST, (21300, 4), &[address]);
    let run = lab.launch_with_orders(&spec(&lab, "dial", &[address.to_string()]), &orders);
    assert_eq!(accept(&listener).1, SocketAddr::new(HOST, 21301));
    ended_well(&run);
}

#[test]
fn a_socket_refused_by_one_host_still_names_the_node_to_the_next() {
    let lab = Lab::new();
    let (closed, refusing) = listener("127.77.9.2:0");
    drop(closed);
    let (near, address) = listener("127.77.9.1:0");
    // Refused by another host, then on to this one: the port stays, and names it here too.
    let mut told = orders(HOST, (21400, 4), &[refusing]);
    told.dials = Arc::new([address].into());
    let arguments = [refusing.to_string(), address.to_string()];
    let run = lab.launch_with_orders(&spec(&lab, "dial-again", &arguments), &told);
    assert_eq!(accept(&near).1, SocketAddr::new(HOST, 21400));
    ended_well(&run);
    // And the other way round it comes from the block.
    let mut told = orders(HOST, (21400, 4), &[address]);
    told.dials = Arc::new([refusing].into());
    let run = lab.launch_with_orders(&spec(&lab, "dial-again", &arguments), &told);
    let from = accept(&near).1;
    assert_eq!((from.ip(), (21400..21404).contains(&from.port())), (HOST, true));
    ended_well(&run);
    assert_ne!(from.ip(), PRIVATE);
}

#[test]
fn a_node_without_a_block_is_told_of_as_unnamed() {
    let lab = Lab::new();
    let (listener, address) = listener("127.77.9.2:0");
    let far = FarDials { address: HOST, block: None, dials: Arc::new([address].into()) };
    let told = ShimOrders { far: Some(far), ..ShimOrders::default() };
    let run = lab.launch_with_orders(&spec(&lab, "dial", &[address.to_string()]), &told);
    assert_eq!(accept(&listener).1.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    ended_well(&run);
    assert_eq!((identity(&run).bound, identity(&run).no_port), (0, 1));
}
