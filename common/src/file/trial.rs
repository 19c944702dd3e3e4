//! Renders a blueprint for a small cluster that nobody runs, so that a wrong name in a template is
//! found when the file is read and not when a cluster is started.

mod split;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::PathBuf,
};

use crate::{
    blueprint::Blueprint,
    file::{blueprint::Written, walk::Problems},
    generation::Generation,
    jinja,
    lab::{Cluster, Host, Lab, Means, Origin, Placement, Relist, Settings},
    name::{ClusterName, NodeName, PortName, RoleName},
    nearest, place,
    render::Scene,
    spec::{ClusterSpec, RoleSpec},
};

/// Nodes of each role in the sample before one more joins.
const SAMPLE_COUNT: u32 = 3;

/// Hosts of the sample: enough that no two nodes of a role share one.
const SAMPLE_HOSTS: u8 = 4;

/// Renders every template as each of its nodes would, and then every node as a whole. Gives the roles
/// whose nodes are not told where to bind their ports.
pub(super) fn render_all(
    blueprint: &Blueprint,
    text: &str,
    templates: &[Written],
    problems: &Problems,
) -> BTreeSet<RoleName> {
    let mut untold = BTreeSet::new();
    let Some((lab, name)) = sample(blueprint, problems) else { return untold };
    let cluster = &lab.clusters[&name];
    let scene = match Scene::new(&lab, &name, cluster) {
        Ok(scene) => scene,
        Err(error) => {
            problems.add(0..0, error.why, None);
            return untold;
        }
    };
    let before = problems.count();
    for written in templates {
        for node in nodes_of(cluster, written) {
            let scene = scene.with_values(&written.values);
            let error = match scene.raw(node, &written.text) {
                Ok(told)
                    if is_everywhere(blueprint, &cluster.nodes[node], written, &told, problems) =>
                {
                    break;
                }
                Ok(_) => continue,
                Err(error) => error,
            };
            let span = inside(text, &written.span, &written.text, error.range());
            let why = jinja::explain(&error);
            let help = help_for(blueprint, written, &why);
            problems.add(span, why, help);
            break;
        }
    }
    if problems.count() > before {
        return untold;
    }
    let mut shown = BTreeSet::new();
    for (node, place) in &cluster.nodes {
        let role = &place.role;
        let error = match scene.node(node) {
            Ok(spec) if !place.joined && split::is_untold(&spec) => {
                untold.insert(role.clone());
                continue;
            }
            Ok(_) => continue,
            Err(error) => error,
        };
        // Every node of the role has it; once is enough.
        if !shown.insert((role, error.place.clone())) {
            continue;
        }
        let at = templates
            .iter()
            .find(|written| written.place == error.place && written.roles.contains(role));
        let message = format!("{}: {}", error.place, error.why);
        problems.add(at.map_or(0..0, |written| written.span.clone()), message, None);
    }
    untold
}

/// Whether a template has a node bind a port at every address, which is noted as a mistake.
fn is_everywhere(
    blueprint: &Blueprint,
    node: &Placement,
    written: &Written,
    told: &str,
    problems: &Problems,
) -> bool {
    let Some(role) = blueprint.roles.get(&node.role) else { return false };
    let Some((port, every)) = split::everywhere((role, node), &written.place, told) else {
        return false;
    };
    let message = format!(
        "port {port} cannot be split: {every} is every address, also the one where its proxy listens"
    );
    problems.add(written.span.clone(), message, Some(split_help(&port)));
    true
}

/// What to do about a port that cannot be split.
pub(super) fn split_help(port: &PortName) -> String {
    format!(
        "bind {{{{ port.{port}.bind }}}} and tell others {{{{ port.{port}.advertise }}}}; \
         a port that no fault is for can have proxied = false"
    )
}

/// The nodes that render a template.
fn nodes_of<'a>(
    cluster: &'a Cluster,
    written: &'a Written,
) -> impl Iterator<Item = &'a NodeName> + 'a {
    let roles: &[RoleName] = &written.roles;
    cluster
        .nodes
        .iter()
        .filter(move |(_, node)| roles.is_empty() || roles.contains(&node.role))
        .filter(move |(_, node)| node.joined || !written.joined)
        .map(|(name, _)| name)
}

/// A lab with one placed cluster of the blueprint, to which one node of each role joined later.
fn sample(blueprint: &Blueprint, problems: &Problems) -> Option<(Lab, ClusterName)> {
    let name: ClusterName = "sample".parse().ok()?;
    let hosts = (1..=SAMPLE_HOSTS).map(|n| {
        let address = [127, 77, 0, n].into();
        let dir = PathBuf::from(format!("/sample/h{n}"));
        Some((format!("h{n}").parse().ok()?, Host::new(address, dir)))
    });
    let mut lab = Lab {
        name: "sample".parse().ok()?,
        octet: 0,
        generation: Generation(1),
        hosts: hosts.collect::<Option<_>>()?,
        clusters: BTreeMap::new(),
        faults: BTreeMap::new(),
        removed_wiped: BTreeMap::new(),
        settings: Settings::default(),
        removed_hosts: BTreeMap::new(),
        kept: BTreeMap::new(),
    };
    let mut cluster = Cluster {
        spec: ClusterSpec::default(),
        blueprint: blueprint.clone(),
        origin: Origin { owner: "sample".to_owned(), by: Means::Verb },
        nodes: BTreeMap::new(),
        last_index: BTreeMap::new(),
        been_ready: BTreeSet::new(),
        relist: Relist::default(),
        token: "sample".to_owned(),
        lease: None,
        authority: None,
    };
    for more in [0, 1] {
        let roles = blueprint.roles.iter().map(|(role, rule)| {
            let count = Some(rule.count.min(SAMPLE_COUNT) + more);
            (role.clone(), RoleSpec { count, ..RoleSpec::default() })
        });
        cluster.spec.roles = roles.collect();
        if let Err(error) = place::place(&lab, &name, &mut cluster, &BTreeMap::new()) {
            problems.add(0..0, format!("it cannot be placed: {}", error.why), None);
            return None;
        }
    }
    lab.clusters.insert(name.clone(), cluster.into());
    Some((lab, name))
}

/// Where a part of a template is in the file; the whole value where that cannot be told, as with
/// escapes in it.
pub(super) fn inside(
    text: &str,
    span: &Range<usize>,
    template: &str,
    part: Option<Range<usize>>,
) -> Range<usize> {
    let written = text.get(span.clone()).and_then(|raw| raw.find(template));
    match (written, part) {
        (Some(at), Some(part)) if part.end > part.start => {
            span.start + at + part.start..span.start + at + part.end
        }
        _ => span.clone(),
    }
}

/// The name that was meant, or which there are.
fn help_for(blueprint: &Blueprint, written: &Written, why: &str) -> Option<String> {
    let wrong = why.strip_prefix('"')?.strip_suffix("\" is undefined")?;
    let mut known: BTreeSet<String> = [
        "node",
        "port",
        "role",
        "cluster",
        "lab",
        "cluster.name",
        "cluster.token",
        "lab.name",
        "tls.on",
        "tls.ca",
        "tls.cert",
        "tls.key",
    ]
    .map(str::to_owned)
    .into();
    for field in ["name", "index", "host", "data", "dir", "private", "address", "joined", "wiped"] {
        known.insert(format!("node.{field}"));
    }
    for (role, rule) in &blueprint.roles {
        known.insert(format!("role.{role}"));
        if !written.roles.is_empty() && !written.roles.contains(role) {
            continue;
        }
        for port in rule.ports.keys() {
            for field in ["", ".bind", ".advertise", ".port", ".url"] {
                known.insert(format!("port.{port}{field}"));
                known.insert(format!("node.port.{port}{field}"));
            }
        }
    }
    known.extend(written.values.keys().map(|name| format!("value.{name}")));
    // A variable of a loop is a node of some role.
    let (first, rest) = wrong.split_once('.').unwrap_or((wrong, ""));
    if !rest.is_empty()
        && !["node", "port", "role", "cluster", "tls", "lab", "value"].contains(&first)
    {
        let meant = nearest::nearest(&format!("node.{rest}"), &known)?.strip_prefix("node")?;
        return Some(format!("did you mean \"{first}{meant}\"?"));
    }
    nearest::did_you_mean(wrong, &known)
        .or_else(|| Some("a template knows node, port, role, cluster, tls and lab".to_owned()))
}
