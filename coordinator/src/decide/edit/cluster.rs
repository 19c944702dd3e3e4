//! Clusters come, change and go.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    blueprint::{Blueprint, Role},
    file::{SHIPPED, parse_blueprint},
    generation::Incarnation,
    host_spec::{StopBy, Wanted},
    lab::{Cluster, Origin, Placement, Relist},
    name::{ClusterName, HostName, NodeName, RoleName},
    place::{counts, next_blocks, place},
    program::{Source, Web, source},
    spec::{ClusterSpec, RoleSpec, SPEC_BYTES_MAX},
    tls::ClusterAuthority,
};

use super::{
    Refusal,
    change::{Change, did_you_mean},
    control, invalid, kept, lease,
};

/// `start cluster`: a new one, or exactly the one that is there.
pub(super) fn start(
    change: &mut Change<'_>,
    name: &ClusterName,
    spec: &ClusterSpec,
) -> Result<(), Refusal> {
    if let Some(cluster) = change.lab.clusters.get(name) {
        if lease::is_asked_again(&cluster.spec, spec) {
            change.own(&format!("cluster {name}"), &cluster.origin)?;
            lease::set(change, name, spec.lease);
            return Ok(());
        }
        let same = ClusterSpec { lease: cluster.spec.lease, ..spec.clone() };
        if cluster.spec == same {
            change.note(format!("cluster {name} is there already, exactly so"));
            return Ok(());
        }
        return Err(invalid(format!(
            "cluster {name} is there already with another spec; change it with \
             `faultbed set {name}[/ROLE] FIELD=VALUE` or `faultbed apply -f FILE`"
        )));
    }
    let origin = change.origin();
    accept(change, name, spec, origin)
}

/// `delete cluster`.
pub(super) fn delete(
    change: &mut Change<'_>,
    name: &ClusterName,
    wipe: bool,
) -> Result<(), Refusal> {
    let Some(cluster) = change.lab.clusters.get(name) else {
        if wipe && kept::wipe(change, name) {
            change.note(format!("the data that an earlier {name} left is deleted"));
            return Ok(());
        }
        let names = change.lab.clusters.keys().map(|name| name.as_str());
        let near = did_you_mean(name.as_str(), names);
        return Err(invalid(format!("there is no cluster {name}{near}")));
    };
    change.own(&format!("cluster {name}"), &cluster.origin)?;
    remove(change, name, wipe);
    Ok(())
}

/// Takes a cluster out of the lab. Faults are settled at the end of the change.
pub(super) fn remove(change: &mut Change<'_>, name: &ClusterName, wipe: bool) {
    let Some(cluster) = change.lab.clusters.remove(name) else { return };
    if wipe {
        kept::keep(change, name, &cluster);
        kept::wipe(change, name);
    } else if !cluster.nodes.is_empty() {
        kept::keep(change, name, &cluster);
        change.note(format!("the data of cluster {name} is kept on its hosts"));
    }
}

/// Makes a cluster what `spec` says: new, or changed with every choice kept that still fits.
pub(super) fn accept(
    change: &mut Change<'_>,
    name: &ClusterName,
    spec: &ClusterSpec,
    origin: Origin,
) -> Result<(), Refusal> {
    accept_with(change, name, spec, origin, Moves::default())
}

/// Nodes of a cluster that are named to come or go, where else only so many are asked for.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// They are taken out.
    pub(super) going: BTreeSet<NodeName>,
    /// They are members again, where they were.
    pub(super) coming: BTreeMap<NodeName, Placement>,
}

/// The same with nodes that come or go, which `spec` counts already: what follows is the same whether
/// they are named or not.
pub(super) fn accept_with(
    change: &mut Change<'_>,
    name: &ClusterName,
    spec: &ClusterSpec,
    origin: Origin,
    moves: Moves,
) -> Result<(), Refusal> {
    let held = change.lab.clusters.get(name).cloned();
    let old = held.as_deref();
    let blueprint = find_blueprint(change, name, spec, old)?;
    check(change, name, spec, &blueprint)?;
    let mut next = match old {
        Some(old) => Cluster { spec: spec.clone(), blueprint, origin, ..old.clone() },
        None => Cluster {
            spec: spec.clone(),
            blueprint,
            origin,
            nodes: BTreeMap::new(),
            last_index: BTreeMap::new(),
            been_ready: BTreeSet::new(),
            relist: Relist::default(),
            token: token(name, change.asked.dice),
            lease: None,
            authority: None,
        },
    };
    next.nodes.retain(|node, _| !moves.going.contains(node));
    let back: BTreeSet<NodeName> = moves.coming.keys().cloned().collect();
    next.nodes.extend(moves.coming);
    next.authority = authority(change, name, &next, old)?;
    if old.as_ref().is_none_or(|old| old.spec.lease != spec.lease) {
        next.lease = spec.lease.map(|lasts| lease::begin(change, lasts));
    }
    let is_same =
        old.as_ref().is_some_and(|old| old.spec == next.spec && old.blueprint == next.blueprint);
    if !is_same {
        let mut foreign: BTreeMap<_, _> = change
            .reports
            .iter()
            .map(|(host, report)| (host.clone(), report.foreign.clone()))
            .collect();
        for (name, host) in &change.lab.hosts {
            let control = control::listeners(host, change.asked);
            foreign.entry(name.clone()).or_default().extend(control);
        }
        place(&change.lab, name, &mut next, &foreign).map_err(invalid)?;
        for (host, from) in next_blocks(&change.lab, name, &next) {
            if let Some(host) = change.lab.hosts.get_mut(&host) {
                host.next_block = Some(from);
            }
        }
        if old.is_none() {
            kept::take_up(change, name, &next)?;
        }
        may_leave(change, name, &next)?;
        if let Some(old) = &old {
            restart_changed(change, old, &mut next);
            relist(old, &mut next);
            note_removed(change, name, old, &next);
        }
        begin_new(change, old, &back, &mut next);
        if let Some(old) = old.filter(|_| back.is_empty()) {
            note_leaving(change, name, old, &next);
        }
        let roles: BTreeSet<RoleName> = next.blueprint.roles.keys().cloned().collect();
        next.been_ready.retain(|role| roles.contains(role));
        note_overrides(change, name, &next);
    }
    change.lab.clusters.insert(name.clone(), next.into());
    Ok(())
}

/// The blueprint that a spec names: shipped, sent along by its path, or the one held already.
fn find_blueprint(
    change: &Change<'_>,
    name: &ClusterName,
    spec: &ClusterSpec,
    old: Option<&Cluster>,
) -> Result<Blueprint, Refusal> {
    let wanted = spec.blueprint.as_str();
    if let Some(sent) = change.blueprints.and_then(|sent| sent.get(wanted)) {
        return Ok(sent.clone());
    }
    if let Some(old) = old.filter(|old| old.spec.blueprint == wanted) {
        // A file of the user's is only read by `apply`; other edits keep what was accepted.
        return Ok(old.blueprint.clone());
    }
    if wanted.contains('/') {
        return Err(invalid(format!(
            "cluster {name}: blueprint {wanted:?} is a file, and its text is not at hand here; \
             use `faultbed apply -f FILE`"
        )));
    }
    if let Some((_, text)) = SHIPPED.iter().find(|(shipped, _)| *shipped == wanted) {
        return parse_blueprint(text).map_err(|problems| {
            let first = problems.first().map(|problem| problem.message.clone());
            invalid(format!("parse shipped blueprint {wanted}: {}", first.unwrap_or_default()))
        });
    }
    let near = did_you_mean(wanted, SHIPPED.iter().map(|(shipped, _)| *shipped));
    Err(invalid(format!(
        "cluster {name}: there is no blueprint {wanted:?}{near}; a file of your own is named by \
         a path with a slash, such as ./{}.toml",
        if wanted.is_empty() { "mykv" } else { wanted }
    )))
}

/// What placing does not check, or says with less help.
fn check(
    change: &Change<'_>,
    name: &ClusterName,
    spec: &ClusterSpec,
    blueprint: &Blueprint,
) -> Result<(), Refusal> {
    let bytes = serde_json::to_string(spec).map_or(0, |text| text.len());
    if bytes > SPEC_BYTES_MAX {
        return Err(invalid(format!(
            "cluster {name}: its spec has {bytes} bytes; at most {SPEC_BYTES_MAX} are allowed"
        )));
    }
    if change.lab.hosts.is_empty() {
        return Err(invalid(format!("cluster {name}: the lab has no host yet to place it on")));
    }
    for (role, wanted) in &spec.roles {
        if holds_nul(wanted) {
            return Err(invalid(format!("cluster {name}: a field of {role} holds a NUL byte")));
        }
        if wanted.path.as_deref() == Some("") {
            return Err(invalid(format!("cluster {name}: {role}.path is empty; leave it out")));
        }
        let own = wanted.node.values().filter_map(|node| node.path.as_deref());
        for path in own.chain(wanted.path.as_deref()) {
            if let Source::Web(url) = source(path) {
                let wrong = |why| invalid(format!("cluster {name}: {role}.path {url}: {why}"));
                url.parse::<Web>().map_err(wrong)?;
            }
        }
    }
    for (role, count) in counts(spec, blueprint) {
        let Some(of) = blueprint.roles.get(&role) else { continue };
        let most = of.most.filter(|most| count > *most).map(|most| format!("{most} at most"));
        // None at all is answered below, or by `place`.
        let least = of.least.filter(|least| (1..*least).contains(&count));
        let least = least.map(|least| format!("{least} at least"));
        if let Some(bound) = most.or(least) {
            return Err(invalid(format!(
                "cluster {name}: count of {role} is {count}; blueprint {} has {bound}",
                blueprint.name
            )));
        }
    }
    // For a cluster that is new, `place` says what a count may be.
    if change.lab.clusters.contains_key(name)
        && let Some((role, _)) = counts(spec, blueprint).iter().find(|(role, count)| {
            **count == 0 && !blueprint.roles.get(*role).is_some_and(Role::may_be_none)
        })
    {
        return Err(invalid(format!(
            "cluster {name}: count of {role} is 0; `faultbed stop {name}` stops its nodes, \
             `faultbed delete cluster {name}` ends it"
        )));
    }
    Ok(())
}

/// No path, argument or variable of a process can hold one.
fn holds_nul(role: &RoleSpec) -> bool {
    let own = role.node.values();
    let paths = own.clone().filter_map(|node| node.path.as_ref()).chain(&role.path);
    let args = own.clone().flat_map(|node| node.args.iter().flatten()).chain(&role.args);
    let env = own.flat_map(|node| &node.env).chain(&role.env);
    let mut texts = paths.chain(args).chain(env.flat_map(|(key, value)| [key, value]));
    texts.any(|text| text.contains('\0'))
}

/// Who signs for the members of a cluster: chosen when it begins, for members that speak TLS and some that
/// do not would not find each other.
fn authority(
    change: &Change<'_>,
    name: &ClusterName,
    next: &Cluster,
    old: Option<&Cluster>,
) -> Result<Option<ClusterAuthority>, Refusal> {
    if let Some(old) = old {
        if old.authority.is_some() != next.spec.tls {
            return Err(invalid(format!(
                "cluster {name}: tls is chosen when a cluster begins: `faultbed delete cluster {name} --wipe`, \
                 then start it anew"
            )));
        }
        return Ok(old.authority.clone());
    }
    if !next.spec.tls {
        return Ok(None);
    }
    if let Some(role) = next.blueprint.without_tls() {
        return Err(invalid(format!(
            "cluster {name}: blueprint {} does not say how {role} speaks TLS: leave tls out, or give the role a \
             table tls in a blueprint of your own",
            next.blueprint.name
        )));
    }
    change
        .asked
        .authority
        .clone()
        .map(Some)
        .map_err(|why| invalid(format!("cluster {name}: {why}")))
}

/// What of a node's definition makes it restart when it changes.
#[derive(PartialEq)]
struct Definition<'a> {
    role: Option<&'a Role>,
    path: Option<&'a String>,
    config: Option<&'a String>,
    args: &'a [String],
    env: BTreeMap<&'a String, &'a String>,
}

fn definition<'a>(cluster: &'a Cluster, role: &RoleName, index: u32) -> Definition<'a> {
    let of_role = cluster.spec.roles.get(role);
    let own = of_role.and_then(|of_role| of_role.node.get(&index));
    let path = own.and_then(|own| own.path.as_ref());
    let config = own.and_then(|own| own.config.as_ref());
    let args = own.and_then(|own| own.args.as_ref());
    let mut env: BTreeMap<_, _> = of_role.iter().flat_map(|of_role| &of_role.env).collect();
    env.extend(own.iter().flat_map(|own| &own.env));
    Definition {
        role: cluster.blueprint.roles.get(role),
        path: path.or(of_role.and_then(|of_role| of_role.path.as_ref())),
        config: config.or(of_role.and_then(|of_role| of_role.config.as_ref())),
        args: args.or(of_role.map(|of_role| &of_role.args)).map_or(&[], Vec::as_slice),
        env,
    }
}

/// Raises the incarnation of every running node whose own definition changed, and of no other:
/// scaling must not restart everybody, although it changes the list of members in their arguments.
fn restart_changed(change: &Change<'_>, old: &Cluster, next: &mut Cluster) {
    let is_changed = |node: &NodeName, role: &RoleName, index: u32| {
        old.nodes.contains_key(node)
            && definition(old, role, index) != definition(next, role, index)
    };
    let changed: Vec<NodeName> = next
        .nodes
        .iter()
        .filter(|(_, placement)| placement.wanted == Wanted::Running)
        .filter(|(node, placement)| is_changed(node, &placement.role, placement.index))
        .map(|(node, _)| node.clone())
        .collect();
    for node in changed {
        let seen = change.seen(&node).map_or(Incarnation::default(), |seen| seen.incarnation);
        if let Some(placement) = next.nodes.get_mut(&node) {
            placement.incarnation = placement.incarnation.max(seen).next();
            placement.stop_by = StopBy::Grace;
        }
    }
}

/// Notes whose files list nodes that come or go now; a chore restarts them when that is done.
fn relist(old: &Cluster, next: &mut Cluster) {
    for role in next.blueprint.roles.keys().cloned().collect::<Vec<_>>() {
        let lists = |placement: &Placement| {
            let of_role = next.blueprint.roles.get(&role);
            of_role.is_some_and(|of_role| of_role.restart_with.contains(&placement.role))
        };
        let listed = |cluster: &Cluster| -> BTreeSet<NodeName> {
            let nodes = cluster.nodes.iter().filter(|(_, placement)| lists(placement));
            nodes.map(|(node, _)| node.clone()).collect()
        };
        let moved: Vec<NodeName> =
            listed(old).symmetric_difference(&listed(next)).cloned().collect();
        if moved.is_empty() {
            continue;
        }
        let stay = next.nodes.keys().filter(|node| old.of_role(&role).any(|(of, _)| of == *node));
        let stay: Vec<NodeName> = stay.cloned().collect();
        next.relist.moved.extend(moved);
        next.relist.restart.extend(stay);
    }
}

/// Refuses to take away a node that its database has no safe way to let go.
fn may_leave(change: &Change<'_>, name: &ClusterName, next: &Cluster) -> Result<(), Refusal> {
    let Some(old) = change.before.clusters.get(name).filter(|_| !change.force) else {
        return Ok(());
    };
    for (node, placement) in old.nodes.iter().filter(|(node, _)| !next.nodes.contains_key(*node)) {
        let role = old.blueprint.roles.get(&placement.role);
        let leave = role.and_then(|role| role.leave.as_ref());
        let Some(why) = leave.and_then(|leave| leave.refuse.as_ref()) else { continue };
        return Err(invalid(format!(
            "taking {node} away could lose data: {why}; afterwards `faultbed remove {node} --force`"
        )));
    }
    Ok(())
}

fn note_removed(change: &mut Change<'_>, name: &ClusterName, old: &Cluster, next: &Cluster) {
    let gone = old.nodes.iter().filter(|(node, _)| !next.nodes.contains_key(*node));
    let gone: Vec<&str> = gone
        .map(|(node, placement)| {
            kept::keep_node(change, name, node, placement);
            node.as_str()
        })
        .collect();
    if !gone.is_empty() {
        change.note(format!("the data of {} is kept", gone.join(", ")));
    }
}

/// Whoever asks for more nodes may want one back that is on its way out: it goes all the same.
fn note_leaving(change: &mut Change<'_>, name: &ClusterName, old: &Cluster, next: &Cluster) {
    let new = next.nodes.keys().filter(|node| !old.nodes.contains_key(*node));
    let new: Vec<&str> = new.map(AsRef::as_ref).collect();
    let Some(kept) = change.lab.kept.get(name).filter(|_| !new.is_empty()) else { return };
    let is_here = |(node, host): &(&NodeName, &HostName)| {
        let report = change.reports.get(*host).filter(|_| change.lab.hosts.contains_key(*host));
        report.is_some_and(|report| report.nodes.contains_key(*node))
    };
    let left = kept.left.iter().filter(|(node, _)| !old.nodes.contains_key(*node));
    let leaving: Vec<&str> = left.filter(is_here).map(|(node, _)| node.as_ref()).collect();
    if leaving.is_empty() {
        return;
    }
    let (leave, goes, leave_it) =
        if leaving.len() > 1 { ("are", "go", "them") } else { ("is", "goes", "it") };
    let what = if new.len() > 1 { "are new nodes" } else { "is a new node" };
    let back = format!("`faultbed start {}` calls {leave_it} back", leaving.join(","));
    let (leaving, new) = (leaving.join(", "), new.join(", "));
    change.note(format!("{leaving} {leave} still leaving, and {goes}: {new} {what}; {back}"));
}

/// A new node may have the name of an earlier one that its host still remembers: it must not be
/// taken for it, nor find data that was to be wiped. One that was called `back` is the same node.
fn begin_new(
    change: &mut Change<'_>,
    old: Option<&Cluster>,
    back: &BTreeSet<NodeName>,
    next: &mut Cluster,
) {
    for (node, placement) in &mut next.nodes {
        if back.contains(node) || old.is_some_and(|old| old.nodes.contains_key(node)) {
            continue;
        }
        let seen = change.reports.get(&placement.host).and_then(|report| report.nodes.get(node));
        if let Some(seen) = seen {
            placement.incarnation = placement.incarnation.max(seen.incarnation.next());
            placement.wipes = placement.wipes.max(seen.wipes);
        }
        let Some(wiped) = change.lab.removed_wiped.get_mut(&placement.host) else { continue };
        if wiped.remove(node) {
            placement.wipes += 1;
        }
        if wiped.is_empty() {
            change.lab.removed_wiped.remove(&placement.host);
        }
    }
}

fn note_overrides(change: &mut Change<'_>, name: &ClusterName, next: &Cluster) {
    for (role, spec) in &next.spec.roles {
        for index in spec.node.keys() {
            // Placing refuses a number that never was; this one was.
            if !next.of_role(role).any(|(_, placement)| placement.index == *index) {
                change.note(format!(
                    "cluster {name}: {role}.node.{index} is no node now; numbers are never used \
                     again"
                ));
            }
        }
    }
}

/// Tells a cluster from an earlier one of the same name, and from itself before all its data went.
pub(super) fn token(name: &ClusterName, dice: u64) -> String {
    format!("{name}-{:08x}", dice & 0xffff_ffff)
}
