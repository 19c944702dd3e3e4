//! Ports of the lab's own control are no node's: nothing that serves as a fault's target may be one.

use std::net::SocketAddr;

use faultbed_common::{
    lab::{Host, Lab},
    place::used_ports,
    report::ForeignListener,
};

use super::{Asked, Refusal, invalid};

/// Refuses where a node, or what its program takes beside its ports, would have a control port of
/// its host from now on. What is so already stands in the way of no other change, least of a heal.
pub(super) fn check(before: &Lab, lab: &Lab, asked: &Asked) -> Result<(), Refusal> {
    for node in lab.nodes() {
        let Some(host) = lab.hosts.get(&node.placement.host) else { continue };
        let old_host = before.hosts.get(&node.placement.host);
        let stays = before.node(node.name).is_some_and(|old| {
            old.placement.ports == node.placement.ports
                && old.placement.block == node.placement.block
        });
        let same_desk = old_host.is_some_and(|old| {
            old.address == host.address && old.identity_port == host.identity_port
        });
        if stays && same_desk {
            continue;
        }
        let block = node.placement.block;
        let ports = used_ports(node.placement, &node.cluster.blueprint);
        for (address, whose) in of(host, asked) {
            let port = address.port();
            if ports.contains(&port) || block.is_some_and(|block| block.holds(port)) {
                return Err(invalid(format!(
                    "port {port} of node {} is that of {whose} at {address}; give {whose} another \
                     port, or delete cluster {} and start it again",
                    node.name, node.cluster_name
                )));
            }
        }
    }
    Ok(())
}

/// Control ports of a host as listeners of others, which placing keeps clear of.
pub(super) fn listeners(host: &Host, asked: &Asked) -> Vec<ForeignListener> {
    let listener = |(address, whose): (SocketAddr, &str)| ForeignListener {
        address,
        holder: whose.to_owned(),
    };
    of(host, asked).into_iter().map(listener).collect()
}

/// The addresses of control on a host, and whose they are.
fn of(host: &Host, asked: &Asked) -> Vec<(SocketAddr, &'static str)> {
    let own = host.identity_port.map(|port| SocketAddr::new(host.address, port));
    let here = asked.control.iter().filter(|address| address.ip() == host.address);
    own.map(|own| (own, "the identity listener"))
        .into_iter()
        .chain(here.map(|address| (*address, "a coordinator")))
        .collect()
}
