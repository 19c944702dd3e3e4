//! Our proxy between the load's client and server, with rules that a test changes.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use faultbed_common::{link::Link, proxy_spec::LinkEffect};
use faultbed_tests::bins;

use crate::bench::{
    load::{
        client::Route,
        server::{self, Seen, door},
    },
    proxy::{Orders, listener},
};

const START_MAX: Duration = Duration::from_secs(10);
const START_POLL: Duration = Duration::from_millis(2);
/// Door 0 of node n-1; the next node's is a hundred ports further.
const PORT: u16 = 8000;

/// The proxy, its orders, and who dials through it.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) orders: Orders,
    pub(crate) seen: Arc<Seen>,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Rig {
    /// A proxy for nodes n-1, n-2 and so on, each with the first `doors`, and diallers c-1, c-2 and so on.
    ///
    /// # Errors
    /// Where it does not come up.
    pub(crate) fn start(nodes: u16, diallers: u16, doors: u16) -> anyhow::Result<Self> {
        // One server serves every rig.
        static SEEN: OnceLock<Arc<Seen>> = OnceLock::new();
        let seen = match SEEN.get() {
            Some(seen) => Arc::clone(seen),
            None => Arc::clone(SEEN.get_or_init(|| server::start().unwrap_or_default())),
        };
        let dir = tempfile::tempdir()?;
        let mut listeners = Vec::new();
        for node in 1..=nodes {
            for number in 0..doors {
                let name = format!("n-{node}");
                let listen = address(node, number);
                listeners.push(listener(&name, usize::from(number), listen, door(number))?);
            }
        }
        let sources: Vec<IpAddr> = (1..=diallers).map(|at| IpAddr::V4(source(at))).collect();
        let orders = Orders::new(dir.path(), listeners, &sources)?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let mut command: Command = orders.command(&bins::path("faultbed-agent"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().context("start the proxy")?;
        let rig = Self { orders, seen, child, _dir: dir };
        let end = Instant::now() + START_MAX;
        while TcpStream::connect(address(nodes, doors - 1)).is_err() {
            anyhow::ensure!(Instant::now() < end, "the proxy did not come up");
            std::thread::sleep(START_POLL);
        }
        Ok(rig)
    }

    /// The way of one dialler to one node.
    pub(crate) fn route(&self, dialler: u16, node: u16) -> Route {
        Route { first: address(node, 0), sources: vec![source(dialler)] }
    }

    /// Puts an effect on links in force, instead of what was; `None` heals.
    ///
    /// # Errors
    /// Where the proxy does not obey.
    pub(crate) fn set(
        &mut self,
        effect: Option<&LinkEffect>,
        links: &[Link],
    ) -> anyhow::Result<()> {
        self.orders.set(effect, links)?;
        self.orders.apply()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// The link from a dialler to a node.
pub(crate) fn link(dialler: u16, node: u16) -> anyhow::Result<Link> {
    Ok(format!("c-{dialler}>n-{node}").parse()?)
}

fn address(node: u16, number: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, PORT + (node - 1) * 100 + number).into()
}

fn source(dialler: u16) -> Ipv4Addr {
    let [high, low] = dialler.to_be_bytes();
    Ipv4Addr::new(127, 66, high, low)
}
