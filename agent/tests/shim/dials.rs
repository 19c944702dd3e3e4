//! Where a node's connections come from.

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use faultbed_agent::node::{
    self, IdentityRecord, LaunchSpec, ShimOrders,
    records::{IDENTITY_FILE, read_record},
};
use faultbed_common::report::Identity;
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketFlags, SocketType, bind, connect, socket_with, sockopt,
};

use crate::lab::{self, Lab, Run, eventually};

const PRIVATE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 128, 128, 5));

/// A node that is this test binary as a helper.
pub(crate) fn dialler(lab: &Lab, verb: &str, arguments: &[&str]) -> LaunchSpec {
    let command = lab::helper(verb, arguments);
    let mut spec = lab.spec("");
    let text = |text: &std::ffi::OsStr| text.to_str().unwrap().to_owned();
    spec.program = command.get_program().into();
    spec.args = command.get_args().map(text).collect();
    spec.env = command.get_envs().map(|(name, value)| (text(name), text(value.unwrap()))).collect();
    spec
}

fn orders(dials: &[SocketAddr]) -> ShimOrders {
    ShimOrders {
        dials: std::sync::Arc::new(dials.iter().copied().collect()),
        ..ShimOrders::default()
    }
}

fn listener(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Where the next connection comes from, and what it says.
fn accept(listener: &TcpListener) -> (IpAddr, String) {
    let (mut stream, from) = listener.accept().unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    (from.ip().to_canonical(), said)
}

fn identity(run: &Run) -> IdentityRecord {
    read_record(&run.dir, IDENTITY_FILE).unwrap().unwrap_or_default()
}

/// Dials once in some way, and says where the peer saw it come from.
fn source_of(verb: &str, target: &str, ours: bool, user: Option<&str>) -> (IpAddr, IdentityRecord) {
    let lab = Lab::new();
    let (listener, address) = listener(target);
    let mut spec = dialler(&lab, verb, &[&address.to_string()]);
    if let Some(user) = user {
        // The helper lies where only root may look; a copy of it does not.
        let copy =
            std::env::temp_dir().join(format!("shim-dials-{}-{user}-{verb}", std::process::id()));
        std::fs::copy(&spec.program, &copy).unwrap();
        (spec.program, spec.cwd, spec.user) = (copy, "/".into(), Some(user.to_owned()));
    }
    let dials = [address];
    let run = lab.launch_with_orders(&spec, &orders(if ours { &dials } else { &[] }));
    let (from, said) = accept(&listener);
    assert_eq!(said, "hello", "the connection works as any other");
    let exit = lab::last_exit(&run.dir);
    assert_eq!(exit.code, Some(0), "{:#?}", node::last_lines(&run.dir, 99));
    if user.is_some() {
        std::fs::remove_file(&spec.program).unwrap();
    }
    (from, identity(&run))
}

#[test]
fn a_proxy_of_the_lab_sees_the_private_address() {
    for verb in ["dial", "dial-later", "dial-mapped", "dial-fastopen", "dial-fastopen-message"] {
        let (from, identity) = source_of(verb, "127.77.9.1:0", true, None);
        assert_eq!(from, PRIVATE, "{verb}");
        assert_eq!((identity.identity, identity.bound), (Identity::Address, 1), "{verb}");
    }
}

#[test]
fn what_binds_the_address_that_it_advertises_listens_at_its_private_one() {
    let lab = Lab::new();
    // The proxy has the advertised address.
    let (_proxy, advertised) = listener("127.77.9.1:0");
    let spec = dialler(&lab, "listen", &[&advertised.to_string()]);
    let run = lab.launch_with_orders(&spec, &orders(&[advertised]));
    let private = SocketAddr::new(PRIVATE, advertised.port());
    let mut stream = None;
    assert!(eventually(|| {
        stream = std::net::TcpStream::connect(private).ok();
        stream.is_some()
    }));
    let mut stream = stream.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello");
    assert_eq!(lab::last_exit(&run.dir).code, Some(0));
}

#[test]
fn who_asks_whether_its_own_address_is_taken_hears_of_itself_and_not_of_the_proxy() {
    let lab = Lab::new();
    let (_proxy, advertised) = listener("127.77.9.1:0");
    let (other, elsewhere) = listener("127.77.9.1:0");
    // Refused at its own address, it dials the other one.
    let arguments = [advertised.to_string(), elsewhere.to_string()];
    let spec = dialler(&lab, "dial-again", &[&arguments[0], &arguments[1]]);
    let told = ShimOrders { own: [advertised].into(), ..orders(&[advertised, elsewhere]) };
    let run = lab.launch_with_orders(&spec, &told);
    assert_eq!(accept(&other), (PRIVATE, "hello".to_owned()));
    assert_eq!(lab::last_exit(&run.dir).code, Some(0), "{:?}", node::last_lines(&run.dir, 99));

    // Where something of it listens, the proxy leads there.
    let (proxy, advertised) = listener("127.77.9.1:0");
    let _behind = TcpListener::bind(SocketAddr::new(PRIVATE, advertised.port())).unwrap();
    let spec = dialler(&lab, "dial", &[&advertised.to_string()]);
    let told = ShimOrders { own: [advertised].into(), ..orders(&[advertised]) };
    let run = lab.launch_with_orders(&spec, &told);
    assert_eq!(accept(&proxy), (PRIVATE, "hello".to_owned()));
    assert_eq!(lab::last_exit(&run.dir).code, Some(0), "{:?}", node::last_lines(&run.dir, 99));
}

#[test]
fn others_are_dialled_as_without_a_shim() {
    for verb in ["dial", "dial-later", "dial-mapped"] {
        let (from, identity) = source_of(verb, "127.77.9.1:0", false, None);
        assert_eq!(from, IpAddr::V4(Ipv4Addr::LOCALHOST), "{verb}");
        assert_eq!((identity.identity, identity.bound), (Identity::Address, 0), "{verb}");
    }
    let (from, _) = source_of("dial", "[::1]:0", false, None);
    assert_eq!(from, IpAddr::V6(Ipv6Addr::LOCALHOST));
}

#[test]
fn a_node_of_another_user_is_named_too() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for verb in ["dial", "dial-mapped"] {
        let (from, _) = source_of(verb, "127.77.9.1:0", true, Some("65534"));
        assert_eq!(from, PRIVATE);
    }
}

#[test]
fn what_the_program_bound_itself_is_left_alone_and_told() {
    let (from, identity) = source_of("dial-bound", "127.77.9.1:0", true, None);
    assert_eq!(from.to_string(), "127.0.0.9");
    assert_eq!(identity.app_bound, 1);
    assert!(matches!(&identity.identity, Identity::Lookup(why) if why.starts_with("app-bound")));
}

#[test]
fn new_destinations_take_effect_while_the_node_runs() {
    let lab = Lab::new();
    let (listener, address) = listener("127.77.9.1:0");
    let run = lab.launch_spec(&dialler(&lab, "dial-on-and-on", &[&address.to_string()]));
    assert_eq!(accept(&listener).0, IpAddr::V4(Ipv4Addr::LOCALHOST));
    node::set_orders(&run.dir, &run.record, &orders(&[address])).unwrap();
    assert!(eventually(|| accept(&listener).0 == PRIVATE));
    assert!(eventually(|| identity(&run).bound > 0));
    run.end();
}

#[test]
fn a_refused_socket_can_be_used_again() {
    let lab = Lab::new();
    let (open, address) = listener("127.77.9.1:0");
    let (closed, refusing) = listener("127.77.9.1:0");
    drop(closed);
    let arguments = [refusing.to_string(), address.to_string()];
    let spec = dialler(&lab, "dial-again", &[&arguments[0], &arguments[1]]);
    let run = lab.launch_with_orders(&spec, &orders(&[address, refusing]));
    assert_eq!(accept(&open), (PRIVATE, "hello".to_owned()));
    assert_eq!(lab::last_exit(&run.dir).code, Some(0), "{:?}", node::last_lines(&run.dir, 99));
}

#[test]
fn what_the_kernel_refuses_it_refuses_as_ever() {
    let lab = Lab::new();
    let (_listener, address) = listener("127.77.9.1:0");
    let spec = dialler(&lab, "dial-wrong", &[&address.to_string()]);
    let run = lab.launch_with_orders(&spec, &orders(&[address]));
    assert_eq!(lab::last_exit(&run.dir).code, Some(0), "{:#?}", node::last_lines(&run.dir, 99));
    assert_eq!(identity(&run).bound, 0);
}

/// In the node: dials in the way that `verb` says.
pub(crate) fn helper(verb: &str, arguments: &[String]) {
    let (counts, targets): (Vec<&String>, _) =
        arguments.iter().partition(|text| text.parse::<u32>().is_ok());
    let count: u32 = counts.first().map_or(1, |text| text.parse().unwrap());
    let targets: Vec<SocketAddr> = targets.iter().map(|text| text.parse().unwrap()).collect();
    let target = targets[0];
    let stream =
        |family| socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let family = |address: SocketAddr| match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let say =
        |socket: &rustix::fd::OwnedFd| assert_eq!(rustix::io::write(socket, b"hello").unwrap(), 5);
    match verb {
        "dial" => {
            let socket = stream(family(target));
            connect(&socket, &target).unwrap();
            say(&socket);
        }
        "listen" => {
            let socket = stream(family(target));
            bind(&socket, &target).unwrap();
            rustix::net::listen(&socket, 1).unwrap();
            let (mut accepted, _) = TcpListener::from(socket).accept().unwrap();
            std::io::Write::write_all(&mut accepted, b"hello").unwrap();
        }
        "dial-later" => say(&dial_later(family(target), target)),
        "dial-mapped" => {
            let IpAddr::V4(v4) = target.ip() else { panic!() };
            let socket = stream(AddressFamily::INET6);
            connect(&socket, &SocketAddr::new(v4.to_ipv6_mapped().into(), target.port())).unwrap();
            say(&socket);
        }
        "dial-fastopen" | "dial-fastopen-message" => {
            send_fastopen(verb, &stream(family(target)), target)
        }
        "dial-bound" => {
            let socket = stream(family(target));
            bind(&socket, &"127.0.0.9:0".parse::<SocketAddr>().unwrap()).unwrap();
            connect(&socket, &target).unwrap();
            say(&socket);
        }
        "dial-on-and-on" => loop {
            let socket = stream(family(target));
            connect(&socket, &target).unwrap();
            drop(socket);
            std::thread::sleep(std::time::Duration::from_millis(5));
        },
        "dial-many" => {
            for _ in 0..count {
                let socket = stream(family(target));
                connect(&socket, &target).unwrap();
                rustix::net::shutdown(&socket, rustix::net::Shutdown::Write).unwrap();
                assert_eq!(rustix::io::read(&socket, &mut [0; 8]).unwrap(), 0);
            }
        }
        "dial-and-hold" => {
            let open = |target: SocketAddr| {
                let socket = stream(family(target));
                connect(&socket, &target).unwrap();
                socket
            };
            let held: Vec<_> = (0..count).map(|_| open(target)).collect();
            let _other = targets.get(1).map(|target| open(*target));
            std::thread::park();
            drop(held);
        }
        "dial-again" => {
            let socket = stream(family(target));
            assert_eq!(connect(&socket, &target), Err(rustix::io::Errno::CONNREFUSED));
            connect(&socket, &targets[1]).unwrap();
            say(&socket);
        }
        "dial-wrong" => dial_wrong(target),
        verb => panic!("no such helper: {verb}"),
    }
}

/// Dials without waiting, then waits until the dial is over.
fn dial_later(family: AddressFamily, target: SocketAddr) -> rustix::fd::OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None).unwrap();
    // On loopback it may also succeed at once.
    let begun = connect(&socket, &target);
    assert!(matches!(begun, Ok(()) | Err(rustix::io::Errno::INPROGRESS)), "{begun:?}");
    let mut fds = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::OUT)];
    rustix::event::poll(&mut fds, None).unwrap();
    assert_eq!(sockopt::socket_error(&socket).unwrap(), Ok(()));
    socket
}

/// Sends with the connection: where the kernel knows no cookie, it connects first as ever.
#[allow(unsafe_code, reason = "MSG_FASTOPEN is in no safe wrapper")]
fn send_fastopen(verb: &str, socket: &rustix::fd::OwnedFd, target: SocketAddr) {
    use std::os::fd::AsRawFd;
    let address: SocketAddrAny = target.into();
    let mut iov = libc::iovec { iov_base: b"hello".as_ptr().cast_mut().cast(), iov_len: 5 };
    // SAFETY: all pointers are to values that live through the calls, with their lengths.
    let sent = unsafe {
        if verb == "dial-fastopen" {
            let (pointer, length) = (address.as_ptr().cast(), address.addr_len());
            libc::sendto(socket.as_raw_fd(), iov.iov_base, 5, libc::MSG_FASTOPEN, pointer, length)
        } else {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_name = address.as_ptr().cast_mut().cast();
            message.msg_namelen = address.addr_len();
            message.msg_iov = &raw mut iov;
            message.msg_iovlen = 1;
            libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_FASTOPEN)
        }
    };
    assert_eq!(sent, 5, "{}", std::io::Error::last_os_error());
}

/// Calls that must fail just as they do without a shim.
#[allow(unsafe_code, reason = "these calls are wrong on purpose")]
fn dial_wrong(target: SocketAddr) {
    use std::os::fd::AsRawFd;
    let errno = || std::io::Error::last_os_error().raw_os_error();
    let address: SocketAddrAny = target.into();
    let (pointer, length) = (address.as_ptr().cast::<libc::sockaddr>(), address.addr_len());
    let flags = SocketFlags::CLOEXEC;
    let udp = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None).unwrap();
    let tcp = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    // SAFETY: the kernel checks every pointer; those that are bad are refused, which is the test.
    unsafe {
        assert_eq!(libc::connect(-1, pointer, length), -1);
        assert_eq!(errno(), Some(libc::EBADF));
        assert_eq!(libc::connect(tcp.as_raw_fd(), std::ptr::without_provenance(8), length), -1);
        assert_eq!(errno(), Some(libc::EFAULT));
        assert_eq!(libc::connect(0, pointer, length), -1);
        assert_eq!(errno(), Some(libc::ENOTSOCK));
        // Datagrams have no connection to name.
        assert_eq!(libc::connect(udp.as_raw_fd(), pointer, length), 0);
        let ring = libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null_mut::<u8>());
        assert_eq!((ring, errno()), (-1, Some(libc::ENOSYS)));
    }
}
