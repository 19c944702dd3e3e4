//! Network namespaces joined by a bridge, each with addresses of its own on one network.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::kernel::ground::{lacking, move_into, new_network, open_network};

/// The device in each namespace.
const DEVICE: &str = "eth0";
/// The bridge, in a namespace that has nothing else.
const BRIDGE: &str = "br0";

/// A network that nothing else is on, with as many places as are plugged in.
#[derive(Debug)]
pub struct Net {
    switch: OwnedFd,
    ipv6: bool,
}

/// One place on a network: a machine, as far as the network knows.
#[derive(Debug)]
pub struct Place {
    number: u8,
    network: OwnedFd,
    ipv6: bool,
}

impl Net {
    /// A network without places, of one family of addresses. The calling thread stays where it was.
    ///
    /// # Panics
    /// Where namespaces cannot be made.
    #[must_use]
    pub fn new(ipv6: bool) -> Self {
        let home = open_network();
        let switch = new_network();
        move_into(&home);
        let net = Self { switch, ipv6 };
        feed(
            &net.switch,
            "ip",
            &["-batch", "-"],
            &format!("link add {BRIDGE} type bridge\nlink set {BRIDGE} up\n"),
        );
        net
    }

    /// Plugs in a place: `10.77.0.NUMBER` or `fd77::NUMBER`.
    ///
    /// # Panics
    /// Where the number is taken.
    #[must_use]
    pub fn place(&self, number: u8) -> Place {
        let home = open_network();
        let network = new_network();
        move_into(&home);
        let place = Place { number, network, ipv6: self.ipv6 };
        let peer = format!("/proc/{}/fd/{}", std::process::id(), place.network.as_raw_fd());
        let port = port(number);
        feed(
            &self.switch,
            "ip",
            &["-batch", "-"],
            &format!(
                "link add {port} type veth peer name {DEVICE} netns {peer}\n\
                 link set {port} master {BRIDGE}\nlink set {port} up\n"
            ),
        );
        let own = match place.address() {
            IpAddr::V4(own) => format!("{own}/24"),
            // Nobody else has it, so nothing waits until that is known.
            IpAddr::V6(own) => format!("{own}/64 nodad"),
        };
        feed(
            &place.network,
            "ip",
            &["-batch", "-"],
            // The hardware address is a machine's: the same after a reboot, or it is asked for in vain.
            &format!(
                "link set lo up\nlink set {DEVICE} address 02:00:00:00:77:{number:02x}\n\
                 address add dev {DEVICE} {own}\nlink set {DEVICE} up\n"
            ),
        );
        place
    }

    /// Pulls the cable of a place out, or puts it back.
    ///
    /// # Panics
    /// Where there is no such place.
    pub fn plug(&self, number: u8, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        feed(&self.switch, "ip", &["link", "set", &port(number), state], "");
    }

    /// Takes a place's cable away for good: another one may have its number.
    fn forget(&self, number: u8) {
        feed(&self.switch, "ip", &["link", "delete", &port(number)], "");
    }
}

impl Place {
    /// Where others reach it.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        match self.ipv6 {
            false => Ipv4Addr::new(10, 77, 0, self.number).into(),
            // Read as a number of hexadecimal digits, it looks as the other one does.
            true => format!("fd77::{}", self.number).parse().expect("an address"),
        }
    }

    /// A port of it.
    #[must_use]
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(), port)
    }

    /// Its number on the network.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Does something with the calling thread in this place: sockets and processes that it makes
    /// belong there.
    pub fn inside<T>(&self, act: impl FnOnce() -> T) -> T {
        let home = open_network();
        move_into(&self.network);
        let result = act();
        move_into(&home);
        result
    }

    /// Another handle on the same place.
    ///
    /// # Panics
    /// Without descriptors.
    #[must_use]
    pub fn again(&self) -> Self {
        let network = self.network.try_clone().expect("copy a descriptor");
        Self { number: self.number, network, ipv6: self.ipv6 }
    }

    /// Starts a process here.
    ///
    /// # Panics
    /// Where the program cannot be run.
    #[must_use]
    pub fn spawn(&self, command: &mut Command) -> Child {
        let spawned = self.inside(|| command.spawn());
        spawned.unwrap_or_else(|error| {
            lacking(&format!("run {command:?}: {error} (deploy/setup.sh test installs it)"))
        })
    }

    /// Drops what goes to and comes from these places, or nothing any more.
    ///
    /// # Panics
    /// Where nftables refuses, or the network is of IPv6.
    pub fn drop_packets(&self, others: &[u8]) {
        assert!(!self.ipv6, "written for IPv4");
        let mut text = "table ip cut\ndelete table ip cut\n".to_owned();
        if !others.is_empty() {
            let list: Vec<_> = others.iter().map(|number| format!("10.77.0.{number}")).collect();
            let list = list.join(", ");
            text.push_str(&format!(
                "table ip cut {{\n chain in {{ type filter hook input priority 0; ip saddr {{ {list} }} drop; }}\n \
                 chain out {{ type filter hook output priority 0; ip daddr {{ {list} }} drop; }}\n}}\n"
            ));
        }
        feed(&self.network, "nft", &["-f", "-"], &text);
    }

    /// Every process that is in this place now.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<i32> {
        let own = fs::metadata(format!("/proc/self/fd/{}", self.network.as_raw_fd()));
        let own = own.expect("look at a namespace").ino();
        let entries = fs::read_dir("/proc").expect("list processes").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| {
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns.ino() == own)
        })
        .collect()
    }

    /// Ends everything here without a word.
    pub fn end(&self) {
        // Until there are none: who was about to start another one has been killed by then.
        loop {
            let pids = self.processes();
            if pids.is_empty() {
                break;
            }
            for pid in pids.into_iter().filter_map(Pid::from_raw) {
                let _gone = kill_process(pid, Signal::KILL);
            }
            std::thread::yield_now();
        }
    }

    /// Ends everything here without a word and pulls the cable; what stands at this number afterwards
    /// is a machine that has just started.
    pub fn reboot(&mut self, net: &Net) {
        self.end();
        net.forget(self.number);
        *self = net.place(self.number);
    }
}

fn port(number: u8) -> String {
    format!("p{number}")
}

/// Runs a program in a namespace with a text on its standard input.
fn feed(network: &OwnedFd, program: &str, arguments: &[&str], text: &str) {
    // Where Debian keeps these programs is not on the path of an ordinary user.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let home = open_network();
    move_into(network);
    let spawned = Command::new(program)
        .args(arguments)
        .env("PATH", &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    move_into(&home);
    let mut child = spawned.unwrap_or_else(|error| {
        lacking(&format!("run {program}: {error} (deploy/setup.sh test installs it)"))
    });
    let mut input = child.stdin.take().expect("has an input");
    input.write_all(text.as_bytes()).expect("feed program");
    drop(input);
    let output = child.wait_with_output().expect("wait for program");
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        lacking(&format!("{program} {}: {}", arguments.join(" "), said.trim()));
    }
}
