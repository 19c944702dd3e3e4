//! Reads a lab file: the lab, its hosts, its clusters.

use std::{collections::BTreeMap, fmt::Display, ops::Range, str::FromStr};

use crate::{
    file::{
        Checks,
        fault::read_fault,
        walk::{Item, Section},
    },
    lab::check_label,
    name::HostName,
    port_block::BLOCK_MAX,
    program::{Source, Web, source},
    spec::{
        COUNT_MAX, ClusterSpec, HOSTS_MAX, HostSection, LabFile, LabSection, NodeOverride, OnCrash,
        RoleSpec,
    },
};

/// The whole file. What could not be read is left out and was reported.
pub(super) fn read_lab(root: &Section<'_>, checks: &Checks) -> LabFile {
    let lab = root.get("lab").and_then(|item| Some(read_lab_section(&item.section()?)));
    let lab = lab.unwrap_or_default();
    let hosts = Hosts { count: lab.hosts };
    let file = LabFile {
        host: read_table(root, "host", |item| {
            hosts.check(&item.name, &item.key_span, item);
            read_host(item)
        }),
        cluster: read_table(root, "cluster", |item| read_cluster(item, &hosts)),
        fault: read_table(root, "fault", |item| read_fault(item, checks)),
        lab,
    };
    root.finish();
    file
}

/// A table of named tables. One with a wrong name is looked into like any other.
pub(super) fn read_table<K, V>(
    root: &Section<'_>,
    name: &'static str,
    mut read: impl FnMut(&Item<'_>) -> Option<V>,
) -> BTreeMap<K, V>
where
    K: Ord + FromStr<Err: Display>,
{
    let section = root.get(name).and_then(|item| item.section());
    let mut found = BTreeMap::new();
    for item in section.iter().flat_map(Section::items) {
        if let (Some(key), Some(value)) = (item.key(), read(&item)) {
            found.insert(key, value);
        }
    }
    found
}

fn read_lab_section(section: &Section<'_>) -> LabSection {
    let hosts = section.get("hosts").and_then(|item| item.number(1, HOSTS_MAX.into(), None));
    let dead_man = section.get("dead_man").and_then(|item| item.duration());
    section.finish();
    LabSection { hosts: hosts.and_then(|hosts| u32::try_from(hosts).ok()), dead_man }
}

/// The simulated hosts of the file's lab: `h1`, `h2` and so on. `None` where it does not say how
/// many: then it may be the file of a lab whose hosts joined.
struct Hosts {
    count: Option<u32>,
}

impl Hosts {
    /// A name like `h9` where there are only three is a mistake. Other names may be those of hosts
    /// that joined, which no file knows.
    fn check(&self, name: &str, span: &Range<usize>, item: &Item<'_>) {
        let number = name.strip_prefix('h').and_then(|digits| digits.parse::<u32>().ok());
        let (Some(number), Some(last)) = (number, self.count) else { return };
        if (1..=last).contains(&number) {
            return;
        }
        let message = format!("there is no host {name:?}; the lab has h1 to h{last}");
        item.wrong_at(span, message, Some("[lab] hosts says how many".to_owned()));
    }
}

fn read_host(item: &Item<'_>) -> Option<HostSection> {
    let section = item.section()?;
    let mut labels = BTreeMap::new();
    let table = section.get("labels").and_then(|item| item.section());
    for label in table.iter().flat_map(Section::items) {
        let Some(value) = label.text() else { continue };
        if let Err(why) = check_label(&label.name, value) {
            label.wrong(why, None);
            continue;
        }
        labels.insert(label.name.clone(), value.to_owned());
    }
    section.finish();
    Some(HostSection { labels })
}

/// Fields that people write one table too high.
const ROLE_FIELDS: [&str; 7] = ["count", "path", "config", "hosts", "args", "env", "dial_ports"];

fn read_cluster(item: &Item<'_>, hosts: &Hosts) -> Option<ClusterSpec> {
    let section = item.section()?;
    let blueprint = section.get("blueprint");
    if blueprint.is_none() {
        let what = format!("cluster {} does not say which database it is", item.name);
        section.missing(what, "add blueprint = \"etcd\", or the path of a blueprint file");
    }
    let on_crash = section
        .get("on_crash")
        .and_then(|item| item.choice(&[("stay", OnCrash::Stay), ("restart", OnCrash::Restart)]));
    let lease = section.get("lease").and_then(|item| item.duration());
    let tls = section.get("tls").and_then(|item| item.truth()).unwrap_or_default();
    let blueprint = blueprint.and_then(|item| item.filled_text());
    let roles_are = blueprint.map(|it| format!("; `faultbed blueprint show {it}` names the roles"));
    let mut roles = BTreeMap::new();
    for role in section.rest() {
        // What is no table cannot be a role: it is a mistyped field.
        if !role.is_table() {
            if ROLE_FIELDS.contains(&role.name.as_str()) {
                let help = format!(
                    "write it in [cluster.{}.ROLE]{}",
                    item.name,
                    roles_are.as_deref().unwrap_or("")
                );
                role.wrong_key(format!("{} is a field of a role", role.name), Some(help));
            } else {
                section.unknown(&role);
            }
            continue;
        }
        let name = role.key();
        let spec = role.section().map(|section| read_role(&section, hosts));
        if let (Some(name), Some(spec)) = (name, spec) {
            roles.insert(name, spec);
        }
    }
    let blueprint = blueprint?.to_owned();
    Some(ClusterSpec { blueprint, on_crash, lease, tls, roles })
}

/// What to write in place of a count that cannot be.
pub(super) const OWN_COUNT: &str = "leave the field out for the blueprint's own count";

fn read_role(section: &Section<'_>, hosts: &Hosts) -> RoleSpec {
    // Whether a role can be left out, its blueprint knows: `check_roles`.
    let count =
        section.get("count").and_then(|item| item.number(0, COUNT_MAX.into(), Some(OWN_COUNT)));
    let mut wanted_hosts = Vec::new();
    for host in section.get("hosts").and_then(|item| item.one_or_more()).unwrap_or_default() {
        let Some(text) = host.filled_text() else { continue };
        hosts.check(text, &host.span, &host);
        wanted_hosts.push(text.to_owned());
    }
    let mut node = BTreeMap::new();
    let table = section.get("node").and_then(|item| item.section());
    for item in table.iter().flat_map(Section::items) {
        let number = item.name.parse().ok().filter(|number| (1..=COUNT_MAX).contains(number));
        if number.is_none() {
            let message = format!("{:?} is not the number of a node", item.name);
            item.wrong_key(message, Some("nodes are numbered from 1: node.2.path".to_owned()));
        }
        let own = item.section().map(|section| read_override(&section, hosts));
        if let (Some(number), Some(own)) = (number, own) {
            node.insert(number, own);
        }
    }
    let dial_ports = section.get("dial_ports");
    let dial_ports = dial_ports.and_then(|item| item.number(1, BLOCK_MAX.into(), None));
    let spec = RoleSpec {
        dial_ports: dial_ports.and_then(|count| u16::try_from(count).ok()),
        count: count.and_then(|count| u32::try_from(count).ok()),
        path: read_path(section),
        config: section.get("config").and_then(|item| item.filled_text()).map(str::to_owned),
        hosts: wanted_hosts,
        args: section.get("args").and_then(|item| item.texts()).unwrap_or_default(),
        env: read_env(section),
        node,
    };
    section.finish();
    spec
}

fn read_override(section: &Section<'_>, hosts: &Hosts) -> NodeOverride {
    let host = section.get("host").and_then(|item| {
        let host: HostName = item.parsed()?;
        hosts.check(host.as_str(), &item.span, &item);
        Some(host)
    });
    let own = NodeOverride {
        path: read_path(section),
        config: section.get("config").and_then(|item| item.filled_text()).map(str::to_owned),
        args: section.get("args").and_then(|item| item.texts()),
        env: read_env(section),
        host,
    };
    section.finish();
    own
}

fn read_path(section: &Section<'_>) -> Option<String> {
    let item = section.get("path")?;
    let path = item.filled_text()?;
    if let Source::Web(url) = source(path)
        && let Err(why) = url.parse::<Web>()
    {
        let help = "curl -L URL | sha256sum   # then write URL#sha256=DIGITS";
        item.wrong(why, Some(help.to_owned()));
        return None;
    }
    Some(path.to_owned())
}

/// An environment: names to texts.
pub(super) fn read_env(section: &Section<'_>) -> BTreeMap<String, String> {
    let table = section.get("env").and_then(|item| item.section());
    let mut env = BTreeMap::new();
    for item in table.iter().flat_map(Section::items) {
        if item.name.is_empty() || item.name.contains(['=', '\0']) {
            item.wrong_key("the name of a variable cannot be empty or hold '='", None);
        } else if let Some(value) = item.text() {
            env.insert(item.name.clone(), value.to_owned());
        }
    }
    env
}
