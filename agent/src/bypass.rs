//! Connections to private addresses that no proxy made: with one of them no cut is a cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use faultbed_common::{name::NodeName, report::Bypass};

use crate::{
    node::tags,
    reconcile::hands::SurveyOrder,
    sockets::{self, ESTABLISHED},
};

/// Whom a connection belongs to.
#[derive(Debug)]
enum Owner {
    /// The agent, its probes, or the node itself: nothing to report.
    Innocent,
    /// Another node, or somebody outside the lab.
    Stranger(String),
}

/// Whose the connections are that were looked up before, by inode: looking at every process is not
/// cheap, and some nodes keep connections to themselves.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<u64, Owner>);

/// The connections around the proxy, with both ends named.
#[must_use]
pub fn find(order: &SurveyOrder, proxy: Option<u32>, known: &mut Known) -> Vec<Bypass> {
    if order.private.is_empty() {
        return Vec::new();
    }
    // On one machine a connection has two sockets here: the dialler's names the node as its peer.
    let dialled: BTreeMap<u64, SocketAddr> = sockets::in_state(ESTABLISHED)
        .into_iter()
        .filter(|socket| socket.inode != 0 && order.private.contains_key(&socket.remote))
        .map(|socket| (socket.inode, socket.remote))
        .collect();
    known.0.retain(|inode, _| dialled.contains_key(inode));
    if dialled.is_empty() {
        return Vec::new();
    }
    let mut ours = proxy.map(sockets::held_by).unwrap_or_default();
    ours.append(&mut sockets::held_by(std::process::id()));
    let unexplained: BTreeSet<u64> = dialled
        .keys()
        .copied()
        .filter(|inode| !ours.contains(inode) && !known.0.contains_key(inode))
        .collect();
    look_up(&unexplained, &dialled, order, proxy, known);
    let found: BTreeSet<Bypass> = known
        .0
        .iter()
        .filter(|(inode, _)| !ours.contains(inode))
        .filter_map(|(inode, owner)| match owner {
            Owner::Innocent => None,
            Owner::Stranger(from) => {
                let address = dialled[inode];
                let to = order.private[&address].clone();
                Some(Bypass { from: from.clone(), to, address })
            }
        })
        .collect();
    found.into_iter().collect()
}

fn look_up(
    unexplained: &BTreeSet<u64>,
    dialled: &BTreeMap<u64, SocketAddr>,
    order: &SurveyOrder,
    proxy: Option<u32>,
    known: &mut Known,
) {
    let holders = sockets::holders(unexplained);
    // What ended meanwhile has no holder and is in no table.
    let still: BTreeSet<u64> = match unexplained.iter().any(|inode| !holders.contains_key(inode)) {
        true => sockets::in_state(ESTABLISHED).iter().map(|socket| socket.inode).collect(),
        false => BTreeSet::new(),
    };
    for inode in unexplained {
        let holder = holders.get(inode).copied();
        if holder.is_some() || still.contains(inode) {
            let to = &order.private[&dialled[inode]];
            known.0.insert(*inode, owner(holder, to, order, proxy));
        }
    }
}

fn owner(holder: Option<u32>, to: &NodeName, order: &SurveyOrder, proxy: Option<u32>) -> Owner {
    let Some(pid) = holder else { return Owner::Stranger(sockets::describe(None)) };
    for ancestor in sockets::ancestors(pid) {
        // The other hosts of a simulated lab are on this machine too.
        let elsewhere = || tags::node_of(ancestor, Some(order.lab.as_ref()?));
        match order.shims.get(&ancestor).cloned().or_else(elsewhere) {
            Some(node) if node == *to => return Owner::Innocent,
            Some(node) => return Owner::Stranger(node.to_string()),
            None if ancestor == std::process::id() || Some(ancestor) == proxy => {
                return Owner::Innocent;
            }
            None => {}
        }
    }
    Owner::Stranger(sockets::describe(Some(pid)))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_of_a_stranger_is_named_with_both_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut child = std::process::Command::new("bash")
            .args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{}; read -u 3", address.port())])
            .spawn()
            .unwrap();
        let _accepted = listener.accept().unwrap();
        let node: NodeName = "kv-1".parse().unwrap();
        let order = SurveyOrder {
            private: BTreeMap::from([(address, node.clone())]),
            ..SurveyOrder::default()
        };
        // A child of ours is a probe command, unless it is somebody else's shim.
        assert!(find(&order, None, &mut Known::default()).is_empty());
        let other: NodeName = "kv-2".parse().unwrap();
        let shims = BTreeMap::from([(child.id(), other)]);
        let found = find(&SurveyOrder { shims, ..order.clone() }, None, &mut Known::default());
        assert_eq!(found, [Bypass { from: "kv-2".to_owned(), to: node.clone(), address }]);
        let own = BTreeMap::from([(child.id(), node)]);
        assert!(
            find(&SurveyOrder { shims: own, ..order.clone() }, None, &mut Known::default())
                .is_empty()
        );
        assert!(find(&order, Some(child.id()), &mut Known::default()).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_node_of_another_host_of_this_machine_is_named_by_its_tag() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut child = std::process::Command::new("bash")
            .args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{}; read -u 3", address.port())])
            .env("FAULTBED_NODE", "demo/kv-2/1")
            .spawn()
            .unwrap();
        let _accepted = listener.accept().unwrap();
        let found = |to: &str, lab: &str| {
            let private = BTreeMap::from([(address, to.parse().unwrap())]);
            let lab = Some(lab.parse().unwrap());
            let order = SurveyOrder { private, lab, ..SurveyOrder::default() };
            let found = find(&order, None, &mut Known::default());
            found.into_iter().map(|bypass| bypass.from).collect::<Vec<_>>()
        };
        assert_eq!(found("kv-1", "demo"), ["kv-2"]);
        assert!(found("kv-2", "demo").is_empty(), "a node may reach itself");
        assert!(found("kv-1", "other").is_empty(), "here it is a probe command of ours");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn our_own_questions_are_no_bypass() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _asking = TcpStream::connect(address).unwrap();
        let private = BTreeMap::from([(address, "kv-1".parse().unwrap())]);
        let order = SurveyOrder { private, ..SurveyOrder::default() };
        assert!(find(&order, None, &mut Known::default()).is_empty());
    }
}
