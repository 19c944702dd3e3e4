//! A real proxy process between nodes that are sockets of this process.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use faultbed_agent::{
    clock,
    node::ProcessId,
    proxy::{Applied, ProxyClient, ProxyState, spawn_program},
};
use faultbed_common::{
    fault::HealPolicy,
    generation::FaultRevision,
    name::NodeName,
    proxy_spec::{LinkEffect, LinkFault, Listener, ProxyFile},
};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
    process::{Pid, Resource, Rlimit, Signal},
};

/// Nothing in these tests takes longer, on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Buffers of the test's own sockets: ten thousand of them must fit into the kernel's memory for TCP.
const BUFFER_BYTES: usize = 16 * 1024;

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a number has come down to `most`.
#[track_caller]
pub(crate) fn at_most(what: &str, most: usize, number: impl Fn() -> usize) {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = number();
        if now <= most {
            return;
        }
        assert!(Instant::now() < end, "not in time: {now} {what} are not yet {most}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Without so many descriptors for each process these tests show nothing.
const DESCRIPTORS_LEAST: u64 = 20_000;

/// Lets this process, and the proxies it starts, have `wanted` descriptors, or as many as is allowed.
/// Returns how many that is.
pub(crate) fn raise_descriptor_limit(wanted: u64) -> u64 {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(u64::MAX);
    // Only the privileged may raise what is allowed.
    let raised = Rlimit { current: Some(wanted), maximum: Some(hard.max(wanted)) };
    if rustix::process::setrlimit(Resource::Nofile, raised).is_ok() {
        return wanted;
    }
    assert!(
        hard >= DESCRIPTORS_LEAST,
        "at most {hard} descriptors are allowed: run `ulimit -Hn {wanted}` as root in the shell that \
         runs the tests, or raise `nofile` in /etc/security/limits.conf"
    );
    let raised = Rlimit { current: Some(hard), maximum: Some(hard) };
    rustix::process::setrlimit(Resource::Nofile, raised).expect("raise the limit of descriptors");
    hard
}

/// The proxy, its file and the nodes.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
    file: ProxyFile,
    process: ProcessId,
    nodes: Vec<Node>,
}

struct Node {
    name: &'static str,
    private: IpAddr,
    listen: SocketAddr,
    server: TcpListener,
    /// What fills its backlog.
    fillers: Vec<OwnedFd>,
}

impl Lab {
    /// Nodes that all listen, each with a backlog of its own, behind one proxy.
    pub(crate) fn start(names: &[&'static str]) -> Self {
        static LAST: AtomicU8 = AtomicU8::new(0);
        let dir = tempfile::tempdir().expect("make a directory");
        let boot_id = clock::boot_id().expect("read the boot id");
        let mut file = ProxyFile { version: 1, boot_id, ..ProxyFile::default() };
        let place = u8::try_from(std::process::id() % 251).expect("a byte");
        let mut nodes = Vec::new();
        for name in names {
            let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            let private = IpAddr::V4(Ipv4Addr::new(127, 141, place, number));
            let server = listener(SocketAddr::new(private, 0), 4096);
            let upstream = server.local_addr().expect("have an address");
            let advertised = IpAddr::V4(Ipv4Addr::new(127, 89, place, number));
            let listen = SocketAddr::new(advertised, upstream.port());
            let port = "client".parse().expect("a port");
            file.spec.listeners.push(Listener { node: node(name), port, listen, upstream });
            file.spec.diallers.insert(private, node(name));
            nodes.push(Node { name, private, listen, server, fillers: Vec::new() });
        }
        write(dir.path(), &file);
        let program = Path::new(env!("CARGO_BIN_EXE_faultbed-agent"));
        let process =
            spawn_program(program, dir.path(), &socket(dir.path())).expect("start a proxy");
        Self { dir, file, process, nodes }
    }

    pub(crate) fn client(&self) -> ProxyClient {
        ProxyClient::new(&socket(self.dir.path()))
    }

    /// Makes the file true; returns how long that took.
    pub(crate) fn apply(&mut self) -> (Applied, Duration) {
        self.file.spec.generation = self.file.spec.generation.next();
        write(self.dir.path(), &self.file);
        let began = Instant::now();
        let applied = self.client().apply().expect("apply");
        (applied, began.elapsed())
    }

    pub(crate) fn report(&self) -> ProxyState {
        self.client().report().expect("report")
    }

    /// Puts a fault without an end into the file.
    pub(crate) fn inject(&mut self, name: &str, effect: LinkEffect, links: &[&str]) {
        let links = links.iter().map(|link| link.parse().expect("a link"));
        let fault = LinkFault {
            revision: FaultRevision(1),
            lasts: None,
            effect,
            grade: None,
            heal: HealPolicy::Resume,
            links: links.collect::<BTreeSet<_>>(),
            seed: 7,
            probability: None,
            canary: false,
            fast_heal: false,
        };
        self.file.spec.faults.insert(name.parse().expect("a fault"), fault);
    }

    /// Takes a fault out of the file.
    pub(crate) fn remove(&mut self, name: &str) {
        self.file.spec.faults.remove(&name.parse().expect("a fault"));
    }

    fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).expect("a node of the lab")
    }

    pub(crate) fn server(&self, name: &str) -> &TcpListener {
        &self.node(name).server
    }

    /// Fills the backlog of a node that accepts nobody: dials of it stay without an answer.
    pub(crate) fn fill_backlog(&mut self, name: &str) {
        let node = self.nodes.iter_mut().find(|node| node.name == name).expect("a node of the lab");
        rustix::net::listen(&node.server, 0).expect("listen");
        let address = node.server.local_addr().expect("have an address");
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        for _ in 0..2 {
            let fd = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
            let fd = fd.expect("a socket");
            let _in_progress = connect(&fd, &address);
            node.fillers.push(fd);
        }
    }

    /// Begins to dial as a node does, from its address.
    pub(crate) fn begin_dial(&self, from: &str, to: &str) -> io::Result<TcpStream> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd: OwnedFd = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_send_buffer_size(&fd, BUFFER_BYTES)?;
        sockopt::set_socket_recv_buffer_size(&fd, BUFFER_BYTES)?;
        bind(&fd, &SocketAddr::new(self.node(from).private, 0))?;
        match connect(&fd, &self.node(to).listen) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(fd)),
            Err(error) => Err(error.into()),
        }
    }

    /// Connections from one node to another, and the acceptor's ends of them, in no order.
    pub(crate) fn join(
        &self,
        from: &str,
        to: &str,
        count: usize,
    ) -> (Vec<TcpStream>, Vec<TcpStream>) {
        /// Fewer than a listener's backlog.
        const AT_ONCE: usize = 500;
        let server = self.server(to);
        let (mut near, mut far) = (Vec::new(), Vec::new());
        while near.len() < count {
            let more = AT_ONCE.min(count - near.len());
            for _ in 0..more {
                near.push(self.begin_dial(from, to).expect("dial"));
            }
            eventually("all are accepted", || {
                while let Ok((stream, _)) = server.accept() {
                    stream.set_nonblocking(true).expect("set mode");
                    far.push(stream);
                }
                far.len() == near.len()
            });
        }
        (near, far)
    }

    /// Descriptors that the proxy has open.
    pub(crate) fn descriptors(&self) -> usize {
        let dir = fs::read_dir(format!("/proc/{}/fd", self.process.pid));
        dir.expect("list descriptors").count()
    }

    /// The proxy's share of memory, in bytes.
    pub(crate) fn pss_bytes(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.process.pid);
        let text = fs::read_to_string(path).expect("read the memory map");
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a share");
        let kib = line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number");
        kib * 1024
    }

    /// Lets the proxy have no more than so many descriptors.
    pub(crate) fn limit_descriptors(&self, most: u64) {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        let pid = Pid::from_raw(self.process.pid);
        rustix::process::prlimit(pid, Resource::Nofile, limit).expect("limit descriptors");
    }

    /// What the proxy has written to its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("proxy.log")).expect("read the log")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let (Err(_), Some(pid)) = (self.client().stop(), Pid::from_raw(self.process.pid)) {
            let _gone = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// A listener with a backlog, whose connections have small buffers.
pub(crate) fn listener(address: SocketAddr, backlog: i32) -> TcpListener {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket");
    sockopt::set_socket_recv_buffer_size(&fd, BUFFER_BYTES).expect("set a buffer");
    sockopt::set_socket_send_buffer_size(&fd, BUFFER_BYTES).expect("set a buffer");
    bind(&fd, &address).expect("bind");
    rustix::net::listen(&fd, backlog).expect("listen");
    TcpListener::from(fd)
}

fn node(name: &str) -> NodeName {
    name.parse().expect("a node")
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("s")
}

fn write(dir: &Path, file: &ProxyFile) {
    let text = serde_json::to_vec(file).expect("write the file");
    fs::write(dir.join("proxy.json"), text).expect("write the file");
}
