//! `set TARGET FIELD=VALUE`: one field of a cluster, of a role or of single nodes.

use std::collections::{BTreeMap, BTreeSet};

use faultbed_common::{
    name::{ClusterName, NodeName, RoleName},
    spec::{ClusterSpec, NodeOverride, OnCrash, RoleSpec},
    target,
};

use super::{
    Refusal,
    change::{Change, did_you_mean},
    cluster, invalid, lease,
};

/// Fields that can be set, for errors.
const FIELDS: [&str; 7] = ["path", "config", "args", "env.NAME", "on_crash", "lease", "count"];

/// A field and its new value, parsed.
#[derive(Debug, Clone)]
enum Field {
    /// `None` takes it back to the default.
    Path(Option<String>),
    Config(Option<String>),
    Args(Vec<String>),
    Env(String, String),
    OnCrash(OnCrash),
    Count(u32),
}

/// Where a field is set.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Cluster(ClusterName),
    Role(ClusterName, RoleName),
    Nodes(BTreeSet<NodeName>),
}

pub(super) fn set(
    change: &mut Change<'_>,
    targets: &[String],
    field: &str,
    value: &str,
) -> Result<(), Refusal> {
    if field == "lease" {
        return set_lease(change, targets, value);
    }
    let field = parse(field, value)?;
    let mut specs: BTreeMap<ClusterName, ClusterSpec> = BTreeMap::new();
    for text in targets.iter().flat_map(|target| target.split(',')) {
        let place = place(change, text.trim())?;
        put(change, &mut specs, &place, text, &field)?;
    }
    for (name, spec) in specs {
        let Some(old) = change.lab.clusters.get(&name) else { continue };
        change.own(&format!("cluster {name}"), &old.origin)?;
        if old.spec == spec {
            let hint = match &field {
                Field::Path(_) => "; `faultbed restart` takes the file now at its path",
                _ => "",
            };
            change.note(format!("cluster {name} has this already{hint}"));
            continue;
        }
        let origin = old.origin.clone();
        cluster::accept(change, &name, &spec, origin)?;
    }
    Ok(())
}

/// A lease is set for whole clusters, and begins anew whatever it was.
fn set_lease(change: &mut Change<'_>, targets: &[String], value: &str) -> Result<(), Refusal> {
    let lasts = lease::parse(value)?;
    for text in targets.iter().flat_map(|target| target.split(',')) {
        let Place::Cluster(name) = place(change, text.trim())? else {
            return Err(invalid(format!("{text}: a lease is set for a whole cluster")));
        };
        let Some(cluster) = change.lab.clusters.get(&name) else { continue };
        change.own(&format!("cluster {name}"), &cluster.origin)?;
        lease::set(change, &name, lasts);
    }
    Ok(())
}

fn parse(field: &str, value: &str) -> Result<Field, Refusal> {
    let given = (!value.is_empty()).then(|| value.to_owned());
    if let Some(name) = field.strip_prefix("env.") {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(invalid(format!("{name:?} is no name of an environment variable")));
        }
        return Ok(Field::Env(name.to_owned(), value.to_owned()));
    }
    match field {
        "path" => Ok(Field::Path(given)),
        "config" => Ok(Field::Config(given)),
        "args" => arguments(value).map(Field::Args),
        "on_crash" => match value {
            "stay" => Ok(Field::OnCrash(OnCrash::Stay)),
            "restart" => Ok(Field::OnCrash(OnCrash::Restart)),
            _ => Err(invalid(format!("on_crash is \"stay\" or \"restart\", not {value:?}"))),
        },
        "count" => {
            value.parse().map(Field::Count).map_err(|_| invalid(format!("{value:?} is no count")))
        }
        _ => {
            let near = did_you_mean(field, FIELDS);
            Err(invalid(format!("there is no field {field:?} to set{near}")))
        }
    }
}

/// A JSON array, or words between spaces.
fn arguments(value: &str) -> Result<Vec<String>, Refusal> {
    if value.trim_start().starts_with('[') {
        return serde_json::from_str(value)
            .map_err(|error| invalid(format!("read args: {error}; write [\"--a\", \"--b\"]")));
    }
    Ok(value.split_whitespace().map(str::to_owned).collect())
}

fn place(change: &Change<'_>, text: &str) -> Result<Place, Refusal> {
    if let Ok(name) = ClusterName::parse(text)
        && change.lab.clusters.contains_key(&name)
    {
        return Ok(Place::Cluster(name));
    }
    // Resolving also refuses what is malformed or unknown.
    let nodes = target::nodes(&change.lab, change.reports, &[text.to_owned()]);
    if let Some((cluster, role)) = text.split_once('/')
        && !text.contains(':')
        && let (Ok(name), Ok(role)) = (ClusterName::parse(cluster), RoleName::parse(role))
        && let Some(there) = change.lab.clusters.get(&name)
        && there.blueprint.roles.contains_key(&role)
    {
        return Ok(Place::Role(name, role));
    }
    Ok(Place::Nodes(nodes.map_err(invalid)?.into_iter().collect()))
}

fn put(
    change: &Change<'_>,
    specs: &mut BTreeMap<ClusterName, ClusterSpec>,
    place: &Place,
    text: &str,
    field: &Field,
) -> Result<(), Refusal> {
    match (place, field) {
        (Place::Cluster(name), Field::OnCrash(on_crash)) => {
            spec_of(change, specs, name)?.on_crash = Some(*on_crash);
        }
        (Place::Role(..) | Place::Nodes(_), Field::OnCrash(_)) => {
            return Err(invalid(format!("{text}: on_crash is set for a whole cluster")));
        }
        (Place::Nodes(_), Field::Count(_)) => {
            return Err(invalid(format!(
                "{text}: count is set for a role: CLUSTER/ROLE; `faultbed scale CLUSTER N` changes it"
            )));
        }
        (Place::Cluster(name), _) => {
            let role = only_role(change, name)?;
            put_role(spec_of(change, specs, name)?.roles.entry(role).or_default(), field);
        }
        (Place::Role(name, role), _) => {
            put_role(spec_of(change, specs, name)?.roles.entry(role.clone()).or_default(), field);
        }
        (Place::Nodes(nodes), _) => {
            for node in nodes.iter().filter_map(|node| change.lab.node(node)) {
                let spec = spec_of(change, specs, node.cluster_name)?;
                let role = spec.roles.entry(node.placement.role.clone()).or_default();
                put_node(role.node.entry(node.placement.index).or_default(), field);
            }
        }
    }
    Ok(())
}

/// The spec as it becomes, begun from the one that is there.
fn spec_of<'s>(
    change: &Change<'_>,
    specs: &'s mut BTreeMap<ClusterName, ClusterSpec>,
    name: &ClusterName,
) -> Result<&'s mut ClusterSpec, Refusal> {
    let old = change.lab.clusters.get(name);
    let old = old.ok_or_else(|| invalid(format!("there is no cluster {name}")))?;
    Ok(specs.entry(name.clone()).or_insert_with(|| old.spec.clone()))
}

fn only_role(change: &Change<'_>, name: &ClusterName) -> Result<RoleName, Refusal> {
    let cluster = change.lab.clusters.get(name);
    let roles = cluster.into_iter().flat_map(|cluster| cluster.blueprint.roles.keys());
    let roles: Vec<&RoleName> = roles.collect();
    match roles.as_slice() {
        [one] => Ok((*one).clone()),
        many => {
            let choices: Vec<String> = many.iter().map(|role| format!("{name}/{role}")).collect();
            Err(invalid(format!("cluster {name} has several roles; say {}", choices.join(" or "))))
        }
    }
}

/// Sets a field of every node of a role: what single nodes had of their own goes, or a node would
/// stay behind without a word.
fn put_role(role: &mut RoleSpec, field: &Field) {
    for own in role.node.values_mut() {
        match field {
            Field::Path(_) => own.path = None,
            Field::Config(_) => own.config = None,
            Field::Args(_) => own.args = None,
            Field::Env(name, _) => {
                own.env.remove(name);
            }
            Field::Count(_) | Field::OnCrash(_) => {}
        }
    }
    role.node.retain(|_, own| *own != NodeOverride::default());
    match field.clone() {
        Field::Path(path) => role.path = path,
        Field::Config(config) => role.config = config,
        Field::Args(args) => role.args = args,
        Field::Env(name, value) => {
            role.env.insert(name, value);
        }
        Field::Count(count) => role.count = Some(count),
        Field::OnCrash(_) => {}
    }
}

fn put_node(node: &mut NodeOverride, field: &Field) {
    match field.clone() {
        Field::Path(path) => node.path = path,
        Field::Config(config) => node.config = config,
        Field::Args(args) => node.args = Some(args),
        Field::Env(name, value) => {
            node.env.insert(name, value);
        }
        Field::Count(_) | Field::OnCrash(_) => {}
    }
}
