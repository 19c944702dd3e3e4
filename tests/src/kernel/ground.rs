//! Two network namespaces joined by veth, and the right to make them.

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
};

use rustix::{
    io::Errno,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::kernel::sys;

/// The device in each namespace.
pub(super) const DEVICE: &str = "veth0";
/// The client's address.
pub(super) const CLIENT: &str = "10.77.0.1";
pub(super) const CLIENT_V6: &str = "fd77::1";
/// The server's address, and our proxy's where it stands before the server.
pub(super) const SERVER: &str = "10.77.0.2";
pub(super) const SERVER_V6: &str = "fd77::2";
/// Says in the environment that this process has been started again in a user namespace.
const MARK: &str = "FAULTBED_KERNEL_USERNS";
const OWN_NETWORK: &str = "/proc/thread-self/ns/net";

/// Which of the two namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Where the client dials.
    Client,
    /// Where the server listens, with our proxy before it or not.
    Server,
}

/// Two namespaces. They go when the last socket and process in them has gone.
#[derive(Debug)]
pub(super) struct Ground {
    client: OwnedFd,
    server: OwnedFd,
}

impl Ground {
    /// Makes both, with one address each and segments of one packet: no offload joins them, so that
    /// what is dropped is one segment on either path. The calling thread stays where it was.
    pub(super) fn new() -> Self {
        let home = open_network();
        let client = new_network();
        let server = new_network();
        move_into(&home);
        let ground = Self { client, server };
        let peer = format!("/proc/{}/fd/{}", std::process::id(), ground.client.as_raw_fd());
        let make = format!(
            "link set lo up\nlink add {DEVICE} type veth peer name {DEVICE} netns {peer}\n\
             address add {SERVER}/24 dev {DEVICE}\n\
             address add {SERVER_V6}/64 dev {DEVICE} nodad\nlink set {DEVICE} up\n"
        );
        ground.feed(Place::Server, "ip", &["-batch", "-"], &make);
        let join = format!(
            "link set lo up\naddress add {CLIENT}/24 dev {DEVICE}\n\
             address add {CLIENT_V6}/64 dev {DEVICE} nodad\nlink set {DEVICE} up\n"
        );
        ground.feed(Place::Client, "ip", &["-batch", "-"], &join);
        for place in [Place::Client, Place::Server] {
            let offloads = ["-K", DEVICE, "tso", "off", "gso", "off", "gro", "off"];
            ground.feed(place, "ethtool", &offloads, "");
            ground.inside(place, || {
                // What one connection learned of the path must not help the next one.
                let file = "/proc/sys/net/ipv4/tcp_no_metrics_save";
                std::fs::write(file, "1").expect("set tcp_no_metrics_save");
            });
        }
        ground
    }

    /// Does something with the calling thread in one of the namespaces: sockets and processes that
    /// it makes belong there.
    pub(super) fn inside<T>(&self, place: Place, act: impl FnOnce() -> T) -> T {
        let home = open_network();
        move_into(match place {
            Place::Client => &self.client,
            Place::Server => &self.server,
        });
        let result = act();
        move_into(&home);
        result
    }

    /// What a program says that runs in one of the namespaces.
    pub(super) fn ask(&self, place: Place, program: &str, arguments: &[&str]) -> String {
        self.feed(place, program, arguments, "")
    }

    /// Runs a program in one of the namespaces with a text on its standard input; what it said.
    pub(super) fn feed(
        &self,
        place: Place,
        program: &str,
        arguments: &[&str],
        text: &str,
    ) -> String {
        self.try_feed(place, program, arguments, text).unwrap_or_else(|error| lacking(&error))
    }

    /// As [`Self::feed`]; what it complained of, where it fails.
    pub(super) fn try_feed(
        &self,
        place: Place,
        program: &str,
        arguments: &[&str],
        text: &str,
    ) -> Result<String, String> {
        // Where Debian keeps these programs is not on the path of an ordinary user.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let mut child = self.inside(place, || {
            Command::new(program)
                .args(arguments)
                .env("PATH", &path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| {
                    lacking(&format!("run {program}: {error} (deploy/setup.sh test installs it)"))
                })
        });
        let mut input = child.stdin.take().expect("has an input");
        input.write_all(text.as_bytes()).expect("feed program");
        drop(input);
        let output = child.wait_with_output().expect("wait for program");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program} {}: {}", arguments.join(" "), said.trim()))
    }
}

#[allow(
    clippy::panic,
    reason = "a comparison that cannot be made is a failed one, never a skipped one"
)]
pub(crate) fn lacking(what: &str) -> ! {
    panic!("{what}")
}

/// The network namespace of the calling thread.
pub(crate) fn open_network() -> OwnedFd {
    File::open(OWN_NETWORK).expect("open own network namespace").into()
}

/// A new network namespace, in which the calling thread now is.
pub(crate) fn new_network() -> OwnedFd {
    sys::leave_network().expect("make a network namespace");
    open_network()
}

/// Moves the calling thread into a network namespace.
pub(crate) fn move_into(network: &OwnedFd) {
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("enter a network namespace");
}

/// Makes sure that this process may make network namespaces; starts it again in a user namespace
/// where that is what it takes, and then does not return.
///
/// # Panics
/// With what to do, where neither is allowed.
pub fn demand_root() {
    // On a thread of its own, whose namespace goes with it.
    let tried = std::thread::spawn(sys::leave_network).join().expect("try a network namespace");
    let error = match tried {
        Ok(()) => return,
        Err(error) => error,
    };
    let again = std::env::var_os(MARK).is_some();
    if error == Errno::PERM && !again {
        let own = std::env::current_exe().expect("find own binary");
        let error = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "--"])
            .arg(own)
            .args(std::env::args_os().skip(1))
            .env(MARK, "1")
            .exec();
        lacking(&format!("run unshare (package util-linux): {error}"));
    }
    lacking(&format!(
        "the comparison with the kernel needs network namespaces, and this user may not make them \
         ({error}). Run it as root, or allow user namespaces: sysctl -w user.max_user_namespaces=100 \
         and, where that exists, kernel.unprivileged_userns_clone=1 or \
         kernel.apparmor_restrict_unprivileged_userns=0"
    ));
}

/// Starts this process again with networks, processes and mounts of its own, as root of a user
/// namespace where it is not root; in there it returns. Whatever it starts ends with it, daemons too.
///
/// # Panics
/// With what to do, where that is not allowed.
pub fn demand_own_machine() {
    if std::env::var_os(MARK).is_some() {
        return;
    }
    let own = std::env::current_exe().expect("find own binary");
    let mut again = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        again.args(["--user", "--map-root-user"]);
    }
    // The shell is the first process in there: it takes in the daemons whose parents are gone.
    let error = again
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .args(["sh", "-c", "\"$@\"; exit $?", "sh"])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .env(MARK, "1")
        .exec();
    lacking(&format!("run unshare (package util-linux): {error}"));
}
