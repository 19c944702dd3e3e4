//! Resolves a checked shape to links or nodes.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ShapeError,
    chance::{self, Drawn},
    check::Shape,
};
use crate::{
    fault::{FaultSpec, Targets},
    lab::{Lab, Resolved},
    link::{Link, Party},
    name::{ClusterName, NodeName},
    target::{self, Reports},
};

type Side = BTreeSet<Party>;

pub(super) fn resolve(
    lab: &Lab,
    reports: &Reports,
    spec: &FaultSpec,
    shape: &Shape<'_>,
    seed: u64,
) -> Result<Resolved, ShapeError> {
    // An unknown name is worse than a leader that is not known yet, on whichever side it is.
    target::clusters(lab, &super::targets(spec))?;
    let side = |targets: &Targets| -> Result<Side, ShapeError> {
        Ok(target::parties(lab, reports, &targets.0)?.into_iter().collect())
    };
    match shape {
        Shape::Partition(groups) => {
            let groups = groups.iter().map(side).collect::<Result<Vec<_>, _>>()?;
            partition(lab, spec, groups)
        }
        Shape::Isolate(targets) => {
            let nodes = target::nodes(lab, reports, &targets.0)?;
            isolate(lab, spec, &nodes)
        }
        Shape::Chance(chance, targets) => {
            let nodes = target::nodes(lab, reports, &targets.0)?;
            let drawn = chance::draw(*chance, lab, &nodes, spec.across, seed)?;
            Ok(by_chance(lab, spec, drawn))
        }
        Shape::FromTo(from, to) => pairs(lab, [side(from)?, side(to)?], true),
        Shape::Between(a, b) => pairs(lab, [side(a)?, side(b)?], spec.one_way.is_some()),
        Shape::On(targets) => on(lab, spec, target::nodes(lab, reports, &targets.0)?),
    }
}

fn partition(lab: &Lab, spec: &FaultSpec, groups: Vec<Side>) -> Result<Resolved, ShapeError> {
    let mut seen = Side::new();
    for party in groups.iter().flatten() {
        if !seen.insert(party.clone()) {
            return Err(ShapeError::Empty(format!(
                "{party} is in two groups of the partition; it can be on one side only"
            )));
        }
    }
    let mut links = BTreeSet::new();
    for (at, first) in groups.iter().enumerate() {
        for second in &groups[at + 1..] {
            let parts = match spec.across {
                true => vec![[first.clone(), second.clone()]],
                false => within_clusters(lab, first, second),
            };
            for [first, second] in parts {
                connect(&mut links, &first, &second, spec.one_way.is_some());
            }
        }
    }
    if links.is_empty() {
        return Err(ShapeError::Empty(
            "no two groups have nodes of the same cluster; `across` also cuts between clusters"
                .to_owned(),
        ));
    }
    Ok(of_links(lab, groups, links))
}

fn by_chance(lab: &Lab, spec: &FaultSpec, drawn: Drawn) -> Resolved {
    let mut links = drawn.links;
    if spec.one_way.is_none() {
        let back: Vec<Link> = links.iter().map(Link::reversed).collect();
        links.extend(back);
    }
    of_links(lab, drawn.groups, links)
}

/// Each node alone: from every other node of its cluster, also from the others that are named.
fn isolate(lab: &Lab, spec: &FaultSpec, nodes: &[NodeName]) -> Result<Resolved, ShapeError> {
    let mut links = BTreeSet::new();
    let mut rest = Side::new();
    let cluster_of = |name: &NodeName| lab.node(name).map(|node| node.cluster_name);
    for name in nodes {
        let home = cluster_of(name);
        let mut others: Side = lab
            .nodes()
            .filter(|other| other.name != name)
            .filter(|other| spec.across || Some(other.cluster_name) == home)
            .map(|other| Party::Node(other.name.clone()))
            .collect();
        if spec.clients {
            others.insert(Party::Clients);
        }
        if others.is_empty() {
            return Err(ShapeError::Empty(format!(
                "{name} is the only node of its cluster: there is nothing to isolate it from"
            )));
        }
        let alone = [Party::Node(name.clone())].into();
        connect(&mut links, &alone, &others, spec.one_way.is_some());
        rest.append(&mut others);
    }
    let mut groups: Vec<Side> =
        nodes.iter().map(|name| [Party::Node(name.clone())].into()).collect();
    rest.retain(|party| !party.node().is_some_and(|name| nodes.contains(name)));
    if !rest.is_empty() {
        groups.push(rest);
    }
    Ok(of_links(lab, groups, links))
}

fn pairs(lab: &Lab, sides: [Side; 2], one_way: bool) -> Result<Resolved, ShapeError> {
    let mut links = BTreeSet::new();
    connect(&mut links, &sides[0], &sides[1], one_way);
    if links.is_empty() {
        return Err(ShapeError::Empty(format!(
            "both sides are only {}: a node's links to itself are never met",
            sides[0].iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        )));
    }
    let groups = told_once(&sides, one_way);
    Ok(of_links(lab, groups, links))
}

/// The sides for people, each party once: one that is on both sides is met on its links to all others of
/// both, so it stands alone. One way, that can be told in two sides only of one such party.
fn told_once(sides: &[Side; 2], one_way: bool) -> Vec<Side> {
    let [first, second] = sides;
    let common: Side = first & second;
    let (only_first, only_second) = (first - &common, second - &common);
    let alone = |party: &Party| Side::from([party.clone()]);
    let groups: Vec<Side> = match (one_way, common.len()) {
        // The same parties on both sides: each link is there both ways.
        (true, 2..) if only_first.is_empty() && only_second.is_empty() => {
            common.iter().map(alone).collect()
        }
        (true, 1) if only_first.is_empty() => vec![common, only_second],
        (true, 1) if only_second.is_empty() => vec![only_first, common],
        (true, _) => sides.to_vec(),
        (false, _) => {
            let each = common.iter().map(alone);
            [only_first].into_iter().chain(each).chain([only_second]).collect()
        }
    };
    groups.into_iter().filter(|group| !group.is_empty()).collect()
}

fn on(lab: &Lab, spec: &FaultSpec, mut nodes: Vec<NodeName>) -> Result<Resolved, ShapeError> {
    if let Some(wanted) = &spec.effect {
        for name in &nodes {
            let Some(node) = lab.node(name) else { continue };
            let effects = &node.cluster.blueprint.effects;
            let Some(effect) = effects.get(wanted) else {
                return Err(ShapeError::Empty(no_effect(wanted, node.cluster, name)));
            };
            effect
                .values(&spec.values)
                .map_err(|why| ShapeError::Empty(format!("effect {wanted}: {why}")))?;
        }
        // An effect of some roles only, on a whole cluster, means the nodes of these roles.
        nodes.retain(|name| {
            lab.node(name).is_some_and(|node| {
                let roles = node.cluster.blueprint.effects.get(wanted).map(|effect| &effect.roles);
                roles.is_some_and(|r| r.is_empty() || r.contains(&node.placement.role))
            })
        });
        if nodes.is_empty() {
            return Err(ShapeError::Empty(format!(
                "no node named has a role that effect {wanted:?} is for"
            )));
        }
    }
    let group = nodes.iter().map(ToString::to_string).collect();
    Ok(Resolved { groups: vec![group], nodes: nodes.into_iter().collect(), ..Resolved::default() })
}

fn no_effect(wanted: &str, cluster: &crate::lab::Cluster, node: &NodeName) -> String {
    let known: Vec<&str> = cluster.blueprint.effects.keys().map(String::as_str).collect();
    let blueprint = &cluster.blueprint.name;
    if known.is_empty() {
        return format!("{node}: blueprint {blueprint} defines no effects, so none is {wanted:?}");
    }
    format!("{node}: blueprint {blueprint} has no effect {wanted:?}; it has {}", known.join(", "))
}

/// Adds the links from `first` to `second`, and back unless `one_way`. Never from a party to itself.
fn connect(links: &mut BTreeSet<Link>, first: &Side, second: &Side, one_way: bool) {
    for a in first {
        for b in second {
            if a == b {
                continue;
            }
            let link = Link { from: a.clone(), to: b.clone() };
            if !one_way {
                links.insert(link.reversed());
            }
            links.insert(link);
        }
    }
}

/// The parts of two sides that a shape acts between without `across`: cluster by cluster, since of all
/// pairs of a large lab only few are of one. Clients have no cluster of their own and meet everybody.
fn within_clusters(lab: &Lab, first: &Side, second: &Side) -> Vec<[Side; 2]> {
    let mut clusters: BTreeMap<&ClusterName, [Side; 2]> = BTreeMap::new();
    for (at, side) in [first, second].into_iter().enumerate() {
        for party in side {
            if let Some(node) = party.node().and_then(|name| lab.node(name)) {
                clusters.entry(node.cluster_name).or_default()[at].insert(party.clone());
            }
        }
    }
    let clients = || Side::from([Party::Clients]);
    let mut parts: Vec<[Side; 2]> = clusters.into_values().collect();
    parts.extend(first.contains(&Party::Clients).then(|| [clients(), second.clone()]));
    parts.extend(second.contains(&Party::Clients).then(|| [first.clone(), clients()]));
    parts
}

fn of_links(lab: &Lab, groups: Vec<Side>, links: BTreeSet<Link>) -> Resolved {
    let named: BTreeSet<&NodeName> = groups.iter().flatten().filter_map(Party::node).collect();
    let touched: BTreeSet<&ClusterName> =
        named.iter().filter_map(|name| Some(lab.node(name)?.cluster_name)).collect();
    let untouched = lab
        .nodes()
        .filter(|node| touched.contains(node.cluster_name) && !named.contains(node.name))
        .map(|node| node.name.clone())
        .collect();
    let words = |side: &Side| side.iter().map(ToString::to_string).collect();
    Resolved {
        groups: groups.iter().map(words).collect(),
        links,
        nodes: BTreeSet::new(),
        untouched,
    }
}
