//! Shapes that are left to chance: which nodes are on which side is drawn from the fault's seed.
//!
//! The names and their meaning are those that Jepsen's partitions have made common.

use std::collections::{BTreeMap, BTreeSet};

use super::ShapeError;
use crate::{
    lab::Lab,
    link::{Link, Party},
    name::{ClusterName, NodeName},
};

/// Which shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chance {
    /// The smaller half of the nodes against the others.
    Halves,
    /// As many as are still no majority against the others.
    Minority,
    /// Each sees a majority, and no two the same.
    Ring,
    /// Two halves, and one node that sees both.
    Bridge,
}

/// What was drawn.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Drawn {
    /// Two sides, or for a ring each node by itself in the order of the ring.
    pub(super) groups: Vec<BTreeSet<Party>>,
    /// The links that are met, one of each pair: from the earlier group to the later.
    pub(super) links: BTreeSet<Link>,
}

impl Chance {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Halves => "halves",
            Self::Minority => "minority",
            Self::Ring => "ring",
            Self::Bridge => "bridge",
        }
    }

    /// The least number of nodes that it can be drawn of.
    const fn nodes_min(self) -> usize {
        match self {
            Self::Halves => 2,
            Self::Minority | Self::Ring | Self::Bridge => 3,
        }
    }
}

/// Draws the shape: of the nodes of each cluster by themselves, or `across` clusters of all at once.
///
/// # Errors
/// There are too few nodes.
pub(super) fn draw(
    chance: Chance,
    lab: &Lab,
    nodes: &[NodeName],
    across: bool,
    seed: u64,
) -> Result<Drawn, ShapeError> {
    let mut crowds: BTreeMap<Option<&ClusterName>, Vec<NodeName>> = BTreeMap::new();
    for name in nodes {
        let home = lab.node(name).map(|node| node.cluster_name).filter(|_| !across);
        crowds.entry(home).or_default().push(name.clone());
    }
    let mut dice = Dice(seed);
    let mut drawn = Drawn::default();
    for mut crowd in crowds.into_values() {
        // The order in which targets were written must not matter.
        crowd.sort_unstable();
        crowd.dedup();
        if crowd.len() < chance.nodes_min() {
            let names: Vec<&str> = crowd.iter().map(NodeName::as_str).collect();
            return Err(ShapeError::Empty(format!(
                "`{}` needs {} nodes of a cluster or more and has {}",
                chance.word(),
                chance.nodes_min(),
                names.join(", ")
            )));
        }
        dice.shuffle(&mut crowd);
        if chance == Chance::Ring {
            ring(&mut drawn, &crowd);
        } else {
            sides(&mut drawn, chance, &crowd);
        }
    }
    Ok(drawn)
}

fn sides(drawn: &mut Drawn, chance: Chance, order: &[NodeName]) {
    let order = if chance == Chance::Bridge { &order[1..] } else { order };
    let smaller = match chance {
        Chance::Minority => (order.len() - 1) / 2,
        Chance::Halves | Chance::Bridge | Chance::Ring => order.len() / 2,
    };
    let (first, second) = order.split_at(smaller);
    drawn.groups.resize_with(2, BTreeSet::new);
    for (group, nodes) in drawn.groups.iter_mut().zip([first, second]) {
        group.extend(nodes.iter().cloned().map(Party::Node));
    }
    for (from, to) in first.iter().flat_map(|a| second.iter().map(move |b| (a, b))) {
        drawn.links.insert(link(from, to));
    }
}

/// Each keeps its links to the nearest on both sides, as few as make a majority with itself. Of three
/// nodes that is every link, so one is cut: two see a majority each, and one sees all.
fn ring(drawn: &mut Drawn, order: &[NodeName]) {
    let count = order.len();
    let reach = (count / 2).div_ceil(2);
    for (at, from) in order.iter().enumerate() {
        drawn.groups.push([Party::Node(from.clone())].into());
        for (other, to) in order.iter().enumerate().skip(at + 1) {
            let apart = (other - at).min(count - (other - at));
            if apart > reach || (count == 3 && at == 0 && other == 1) {
                drawn.links.insert(link(from, to));
            }
        }
    }
}

fn link(from: &NodeName, to: &NodeName) -> Link {
    Link { from: Party::Node(from.clone()), to: Party::Node(to.clone()) }
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Fisher and Yates. Labs are so small that the remainder favours no node to speak of.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let among = last as u64 + 1;
            let chosen = usize::try_from(self.next() % among).unwrap_or(last);
            items.swap(last, chosen);
        }
    }
}

#[cfg(test)]
mod tests;
