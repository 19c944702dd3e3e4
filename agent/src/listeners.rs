//! Listeners of others on this host's address or on every address: a port they hold cannot be given away.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::report::ForeignListener;

use crate::{
    reconcile::hands::SurveyOrder,
    sockets::{self, LISTEN, Socket},
};

/// More are not reported: a machine with so many has other troubles.
const FOREIGN_MAX: usize = 1000;

/// The holders that were looked up before, by inode: looking at every process is not cheap.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<u64, String>);

/// The listeners that are not ours, with their holders.
pub fn find(order: &SurveyOrder, proxy: Option<u32>, known: &mut Known) -> Vec<ForeignListener> {
    let ours = proxy.map(sockets::held_by).unwrap_or_default();
    let foreign: Vec<Socket> = sockets::in_state(LISTEN)
        .into_iter()
        .filter(|socket| {
            let ip = socket.local.ip();
            (ip.is_unspecified() || Some(ip) == order.address) && !ours.contains(&socket.inode)
        })
        .take(FOREIGN_MAX)
        .collect();
    known.0.retain(|inode, _| foreign.iter().any(|socket| socket.inode == *inode));
    let unknown: BTreeSet<u64> = foreign
        .iter()
        .map(|socket| socket.inode)
        .filter(|inode| !known.0.contains_key(inode))
        .collect();
    let holders = sockets::holders(&unknown);
    for inode in unknown {
        known.0.insert(inode, sockets::describe(holders.get(&inode).copied()));
    }
    let found: BTreeSet<ForeignListener> = foreign
        .iter()
        .map(|socket| ForeignListener {
            address: socket.local,
            holder: known.0.get(&socket.inode).cloned().unwrap_or_default(),
        })
        .collect();
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_named_and_one_of_the_proxy_is_not() {
        let everywhere = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let address = everywhere.local_addr().unwrap();
        let found = find(&SurveyOrder::default(), None, &mut Known::default());
        let ours = found.iter().find(|listener| listener.address == address).unwrap();
        assert!(ours.holder.starts_with(&format!("pid {} (", std::process::id())), "{ours:?}");
        let proxy = Some(std::process::id());
        let found = find(&SurveyOrder::default(), proxy, &mut Known::default());
        assert!(found.iter().all(|listener| listener.address != address));
    }
}
