//! Finds ports that cannot be split: what a node is told leaves its proxy no address to listen at, or
//! itself none to bind.

use std::net::IpAddr;

use crate::{blueprint::Role, host_spec::NodeSpec, lab::Placement, name::PortName};

/// How programs write every address of a machine.
const EVERYWHERE: [&str; 3] = ["0.0.0.0", "[::]", "*"];

/// Where a rendered text of what a node is told says every address for a port that its proxy listens
/// at too: which port, and what the text says.
///
/// A file may say so of something else, so there the port must follow.
pub(super) fn everywhere(
    (role, node): (&Role, &Placement),
    place: &str,
    text: &str,
) -> Option<(PortName, String)> {
    let in_file = place.starts_with("files.");
    if !in_file && !["args", "env", "join.args", "tls."].iter().any(|told| place.starts_with(told))
    {
        return None;
    }
    let proxied = || role.ports.iter().filter(|(_, rule)| rule.proxied).map(|(name, _)| name);
    for name in proxied() {
        let number = node.ports.get(name)?;
        for every in EVERYWHERE {
            let with_port = format!("{every}:{number}");
            let ends = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_digit());
            if text.match_indices(&with_port).any(|(at, _)| ends(&text[at + with_port.len()..])) {
                return Some((name.clone(), with_port));
            }
        }
    }
    let value = text.rsplit('=').next().unwrap_or_default();
    let alone = !in_file && EVERYWHERE[..2].contains(&value);
    alone.then(|| Some((proxied().next()?.clone(), value.to_owned()))).flatten()
}

/// Whether nothing of what a node is told names an address of its own: then it binds every address, or one
/// that nobody can know. The address of its host is one: what binds that gets the private one. A node
/// that is told nothing at all may listen nowhere.
pub(super) fn is_untold(node: &NodeSpec) -> bool {
    let launch = &node.launch;
    let once = launch.bootstrap.iter().map(|rule| &rule.command).chain(&launch.join);
    let told: Vec<&String> = launch
        .args
        .iter()
        .chain(launch.env.values())
        .chain(launch.files.values())
        .chain(launch.init.iter().flatten())
        .chain(once.flatten())
        .collect();
    let names = |text: &String, address: IpAddr| text.contains(&address.to_string());
    !told.is_empty()
        && !told.iter().any(|text| names(text, node.private) || names(text, node.address))
}
