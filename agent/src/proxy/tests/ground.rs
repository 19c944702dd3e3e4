//! Two hosts for a test: network namespaces joined by veth, in a process of their own.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
    process::{Command, Stdio},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The other host, and this one, where the proxy and the test run.
pub(super) const THERE: [&str; 2] = ["10.77.0.1", "fd77::1"];
pub(super) const HERE: [&str; 2] = ["10.77.0.2", "fd77::2"];

/// Runs a test again in a process whose threads are in a network of their own; says whether this is
/// that process. Where it takes a user namespace to have one, that too.
pub(super) fn in_network(test: &str) -> bool {
    const MARK: &str = "FAULTBED_TEST_NETWORK";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let child = command
        .arg("--net")
        .arg(std::env::current_exe().expect("know the program"))
        .args(["--exact", &format!("proxy::tests::{test}"), "--nocapture"])
        .env(MARK, "1")
        .output()
        .expect("run the test");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&child.stderr));
    false
}

/// The network of the other host. This one's is that of the process.
#[derive(Debug)]
pub(super) struct Ground {
    there: OwnedFd,
}

impl Ground {
    /// Joins the two.
    pub(super) fn new() -> Self {
        // That of a test before in this process goes only when its last socket has gone.
        let _none = try_run("link delete veth0");
        let there = std::thread::spawn(|| {
            leave_network();
            own_network()
        });
        let ground = Self { there: there.join().expect("make a network") };
        let target = format!("/proc/{}/fd/{}", std::process::id(), raw(&ground.there));
        run("link set lo up");
        run(&format!("link add veth0 type veth peer name veth0 netns {target}"));
        run(&format!("address add {}/24 dev veth0", HERE[0]));
        run(&format!("address add {}/64 dev veth0 nodad", HERE[1]));
        run("link set veth0 up");
        ground.there(|| {
            run("link set lo up");
            run(&format!("address add {}/24 dev veth0", THERE[0]));
            run(&format!("address add {}/64 dev veth0 nodad", THERE[1]));
            run("link set veth0 up");
        });
        ground
    }

    /// Gives the other host more addresses: 10.77.0.11 to 10.77.0.15 and fd77::11 to fd77::15.
    pub(super) fn add_addresses(&self) {
        self.there(|| {
            for more in 11..=15 {
                run(&format!("address add 10.77.0.{more}/24 dev veth0"));
                run(&format!("address add fd77::{more}/64 dev veth0 nodad"));
            }
        });
    }

    /// Does something on the other host.
    pub(super) fn there<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let network = self.there.try_clone().expect("clone");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("enter the network");
                act()
            });
            thread.join().expect("act there")
        })
    }

    /// Begins to dial from a port of the other host.
    pub(super) fn begin(&self, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
        self.there(|| begin_from(from, to))
    }
}

/// Begins to dial as a shim lets a node do: from an exact port, if any, which may be in use.
pub(super) fn begin_from(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    use rustix::net::{
        AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt,
    };
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    bind(&fd, &from)?;
    match connect(&fd, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(fd)),
        Err(error) => Err(error.into()),
    }
}

/// An address of a test as the addresses of the two hosts are written.
pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn raw(fd: &OwnedFd) -> i32 {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd()
}

fn own_network() -> OwnedFd {
    File::open("/proc/thread-self/ns/net").expect("open own network").into()
}

#[allow(unsafe_code, reason = "the one call of these tests that changes what a thread sees")]
fn leave_network() {
    // SAFETY: takes a number; only the calling thread is moved.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
}

fn run(arguments: &str) {
    if let Err(why) = try_run(arguments) {
        panic!("ip {arguments}: {why}");
    }
}

fn try_run(arguments: &str) -> Result<(), String> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .expect("run ip (package iproute2; deploy/setup.sh test installs it)");
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(said.into_owned()) }
}
