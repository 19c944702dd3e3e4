//! Checks the clusters and faults of a lab file against the blueprints they name.

use std::collections::BTreeMap;

use crate::{
    blueprint::Blueprint,
    fault::Targets,
    file::{
        Problem,
        lab::OWN_COUNT,
        parse_tree,
        walk::{Item, Problems, Section},
    },
    nearest, render,
    spec::COUNT_MAX,
};

/// Checks the clusters of a parsed file against their blueprints: unknown blueprints, roles, effects.
/// `find` gives the blueprint of a name or path as it is written, `known` are the names to suggest.
///
/// # Errors
/// All mistakes, in the order of the text.
pub fn check_roles(
    text: &str,
    find: &dyn Fn(&str) -> Option<Blueprint>,
    known: &[String],
) -> Result<(), Vec<Problem>> {
    let problems = Problems::default();
    if let Some(tree) = parse_tree(text, &problems) {
        let root = Section::root(&tree, &problems);
        let clusters = tables(&root, "cluster");
        let found: BTreeMap<String, Blueprint> = clusters
            .iter()
            .filter_map(|item| Some((item.name.clone(), check_cluster(item, find, known)?)))
            .collect();
        for fault in tables(&root, "fault") {
            check_effect(&fault, &found);
        }
    }
    match problems.into_list() {
        list if list.is_empty() => Ok(()),
        list => Err(list),
    }
}

/// The tables of a table; what else is there was reported when the file was parsed.
fn tables<'a>(section: &Section<'a>, name: &'static str) -> Vec<Item<'a>> {
    let table = section.get(name).filter(Item::is_table).and_then(|item| item.section());
    table.iter().flat_map(Section::items).filter(Item::is_table).collect()
}

fn check_cluster(
    item: &Item<'_>,
    find: &dyn Fn(&str) -> Option<Blueprint>,
    known: &[String],
) -> Option<Blueprint> {
    let section = item.section()?;
    let named = section.get("blueprint").filter(Item::is_text)?;
    let name = named.text()?;
    let Some(blueprint) = find(name) else {
        let help = nearest::did_you_mean(name, known).unwrap_or_else(|| {
            format!("there are {}; a file of your own is written with a slash", known.join(", "))
        });
        named.wrong(format!("there is no blueprint {name:?}"), Some(help));
        return None;
    };
    for role in section.rest().into_iter().filter(Item::is_table) {
        let rule = blueprint.roles.iter().find(|(name, _)| name.as_str() == role.name);
        let Some((_, rule)) = rule else {
            let names: Vec<&str> = blueprint.roles.keys().map(AsRef::as_ref).collect();
            let help = nearest::did_you_mean(&role.name, &names)
                .unwrap_or_else(|| format!("it has {}", names.join(", ")));
            let message = format!("blueprint {} has no role {:?}", blueprint.name, role.name);
            role.wrong_key(message, Some(help));
            continue;
        };
        if !rule.may_be_none()
            && let Some(count) = role.section().and_then(|section| section.get("count"))
        {
            count.number(1, COUNT_MAX.into(), Some(OWN_COUNT));
        }
        if rule.config.is_none() {
            check_no_config(&role);
        }
    }
    Some(blueprint)
}

/// A role without a configuration file cannot be given one.
fn check_no_config(role: &Item<'_>) {
    let Some(section) = role.section() else { return };
    let nodes = tables(&section, "node").into_iter().filter_map(|node| node.section());
    let all = nodes.filter_map(|node| node.get("config")).chain(section.get("config"));
    for item in all {
        item.wrong_key(render::NO_CONFIG, None);
    }
}

/// An effect must be one of the blueprints of the clusters that its targets name. Clusters that are
/// not of this file are left to the coordinator.
fn check_effect(fault: &Item<'_>, clusters: &BTreeMap<String, Blueprint>) {
    let Some(section) = fault.section() else { return };
    let Some(effect) = section.get("effect").filter(Item::is_text) else { return };
    let Some(name) = effect.text() else { return };
    let targets = section.get("on").filter(|item| item.is_text() || item.is_list());
    let parts = targets.and_then(|item| item.one_or_more()).unwrap_or_default();
    let targets = parts.iter().filter(|part| part.is_text()).filter_map(Item::text);
    for target in targets.flat_map(|text| Targets::split(text).0) {
        let blueprint = clusters.iter().find(|(cluster, _)| names_cluster(&target, cluster));
        let Some((_, blueprint)) = blueprint else { continue };
        if !blueprint.effects.contains_key(name) {
            effect.wrong(render::unknown_effect(blueprint, name), None);
            return;
        }
    }
}

/// Whether a target is nodes of this cluster: `kv`, `kv/etcd`, `leader:kv`, `kv-1`.
fn names_cluster(target: &str, cluster: &str) -> bool {
    let word = target.split_once(':').map_or(target, |(_, rest)| rest);
    match word.strip_prefix(cluster) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || is_number(rest),
        None => false,
    }
}

/// `-1`, or `-tikv-1`: what follows a cluster's name in the name of its node.
fn is_number(rest: &str) -> bool {
    let last = rest.strip_prefix('-').and_then(|rest| rest.rsplit('-').next());
    last.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}
