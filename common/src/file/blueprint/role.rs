//! Reads one role of a blueprint: its program, ports, arguments, files and rules.

use std::collections::BTreeMap;

use super::{NO_VALUES, Reader, Scope, names, probe};
use crate::{
    blueprint::{
        BootstrapRule, DialSource, Hook, Port, Role, SIGNALS, StopRule, Template, TlsRule,
        VersionRule,
    },
    file::{
        lab::read_table,
        walk::{Item, Section},
    },
    host_spec::Limits,
    name::{PortName, RoleName},
    place::reserved,
    port_block::BLOCK_MAX,
    spec::COUNT_MAX,
};

/// Role names that the tables of a cluster use for something else.
const TAKEN: [&str; 2] = ["blueprint", "tls"];

/// One role; `None` where it is no table or a field that it cannot be without is missing.
pub(super) fn read_role(item: &Item<'_>, reader: &Reader<'_>) -> Option<Role> {
    if TAKEN.contains(&item.name.as_str()) {
        item.wrong_key(format!("a role cannot be called {}", item.name), None);
    }
    let section = item.section()?;
    let own: Vec<RoleName> = item.name.parse().into_iter().collect();
    let scope = Scope { reader, roles: &own, joined: false, values: &NO_VALUES };
    let list = |field: &'static str| {
        let item = section.get(field);
        item.and_then(|item| scope.templates(&item, field)).unwrap_or_default()
    };
    let program = section.get("program");
    if program.is_none() {
        let what = format!("role {} names no program", item.name);
        section.missing(what, "add program = \"mykv\"");
    }
    let count = section.get("count").and_then(|item| item.number(1, COUNT_MAX.into(), None));
    let lowest = count.unwrap_or(1);
    let least = section.get("least").and_then(|item| item.number(0, lowest, None));
    let most = section.get("most").and_then(|item| item.number(lowest, COUNT_MAX.into(), None));
    let ports = read_ports(&section);
    let dial_ports = section.get("dial_ports");
    let dial_ports = dial_ports.and_then(|item| item.number(1, BLOCK_MAX.into(), None));
    let (version, version_rule) =
        section.get("version").map(|item| read_version(&item)).unwrap_or_default();
    let role = Role {
        program: program.and_then(|item| item.filled_text()).unwrap_or_default().to_owned(),
        search: section.get("search").map(|item| read_search(&item)).unwrap_or_default(),
        count: count.and_then(|count| u32::try_from(count).ok()).unwrap_or(1),
        least: least.and_then(|least| u32::try_from(least).ok()),
        most: most.and_then(|most| u32::try_from(most).ok()),
        ports,
        dial_ports: dial_ports.and_then(|count| u16::try_from(count).ok()),
        args: list("args"),
        env: template_table(&section, "env", scope, |_| None),
        dirs: list("dirs"),
        files: template_table(&section, "files", scope, wrong_file_path),
        config: read_config(&section),
        after: names(&section, "after"),
        restart_with: names(&section, "restart_with"),
        init: read_init(&section, scope),
        bootstrap: section.get("bootstrap").and_then(|item| read_bootstrap(&item, scope)),
        ready: section
            .get("ready")
            .and_then(|item| probe::read_probe(&item.section()?, "ready", scope)),
        role_state: section
            .get("role_state")
            .and_then(|item| probe::read_role_rule(&item.section()?, scope)),
        stop: section.get("stop").and_then(|item| read_stop(&item)).unwrap_or_default(),
        logs: list("logs"),
        limits: section.get("limits").and_then(|item| read_limits(&item)).unwrap_or_default(),
        join: read_hook(&section, "join", scope),
        leave: read_hook(&section, "leave", scope),
        user: section.get("user").and_then(|item| item.filled_text()).map(str::to_owned),
        version,
        version_rule,
        tls: section.get("tls").and_then(|item| read_tls(&item, scope)),
        needs: section.get("needs").and_then(|item| item.texts()).unwrap_or_default(),
    };
    section.finish();
    Some(role)
}

/// What a node gets where its members speak TLS.
fn read_tls(item: &Item<'_>, scope: Scope<'_>) -> Option<TlsRule> {
    let section = item.section()?;
    let args = section.get("args");
    let args = args.and_then(|item| scope.templates(&item, "tls.args")).unwrap_or_default();
    let env = template_table(&section, "env", scope, |_| None);
    let urls = read_table(&section, "urls", |item| item.filled_text().map(str::to_owned));
    section.finish();
    Some(TlsRule { args, env, urls })
}

/// Arguments, or a table of them and of what the program must print.
fn read_version(item: &Item<'_>) -> (Vec<String>, Option<VersionRule>) {
    if !item.is_table() {
        return (item.texts().unwrap_or_default(), None);
    }
    let Some(section) = item.section() else { return Default::default() };
    let args = section.get("args").and_then(|item| item.texts()).unwrap_or_default();
    let like = probe::read_pattern(&section, "like");
    let min = section.get("min").and_then(|item| item.filled_text()).map(str::to_owned);
    if args.is_empty() {
        section.missing("version has no arguments", "add args = [\"--version\"]");
    }
    if like.is_none() {
        section.missing("version does not say what is printed", "add like = 'mykv v([0-9.]+)'");
    }
    section.finish();
    (args, like.map(|like| VersionRule { like, min }))
}

fn read_ports(section: &Section<'_>) -> BTreeMap<PortName, Port> {
    // The first port that takes a number keeps it; the message is at the second.
    let mut takes: BTreeMap<u16, String> = BTreeMap::new();
    read_table(section, "port", |item| {
        let port = item.section()?;
        let default = port.get("default");
        if default.is_none() {
            port.missing(
                format!("port {} has no default", item.name),
                format!("add port.{} = {{ default = 7000 }}", item.name),
            );
        }
        let number = default.as_ref().and_then(|item| item.number(1, u16::MAX.into(), None));
        let number = number.and_then(|number| u16::try_from(number).ok());
        let mut reserve = Vec::new();
        for part in port.get("reserve").and_then(|item| item.list()).unwrap_or_default() {
            let Some(text) = part.text() else { continue };
            match reserved(text) {
                Some(_) => reserve.push(text.to_owned()),
                None => part.wrong(
                    format!("{text:?} is not a distance to a port"),
                    Some("write \"+1\" for the next one".to_owned()),
                ),
            }
        }
        if let (Some(number), Some(at)) = (number, &default) {
            let beside = reserve.iter().filter_map(|text| number.checked_add(reserved(text)?));
            for taken in [number].into_iter().chain(beside) {
                if let Some(other) = takes.insert(taken, item.name.clone()) {
                    at.wrong(format!("port {taken} is taken by port {other} of this role"), None);
                }
            }
        }
        let url = port.get("url").and_then(|item| item.filled_text()).map(str::to_owned);
        let proxied = port.get("proxied").and_then(|item| item.truth()).unwrap_or(true);
        let source = port.get("source").and_then(|item| read_source(&item)).unwrap_or_default();
        port.finish();
        Some(Port { default: number?, url, reserve, proxied, source })
    })
}

fn read_source(item: &Item<'_>) -> Option<DialSource> {
    match item.text()? {
        "proxy" => Some(DialSource::Proxy),
        "host" => Some(DialSource::Host),
        other => {
            item.wrong(
                format!("connections cannot come from {other:?}"),
                Some(
                    "write \"proxy\", or \"host\" for the address of the dialler's host".to_owned(),
                ),
            );
            None
        }
    }
}

/// A table whose values are templates. `wrong_key` says what is wrong with a key.
fn template_table(
    section: &Section<'_>,
    field: &'static str,
    scope: Scope<'_>,
    wrong_key: fn(&str) -> Option<&'static str>,
) -> BTreeMap<String, Template> {
    let table = section.get(field).and_then(|item| item.section());
    let mut found = BTreeMap::new();
    for item in table.iter().flat_map(Section::items) {
        if let Some(why) = wrong_key(&item.name) {
            item.wrong_key(why, None);
        } else if let Some(text) = scope.template(&item, &format!("{field}.{}", item.name)) {
            found.insert(item.name.clone(), text);
        }
    }
    found
}

fn wrong_file_path(path: &str) -> Option<&'static str> {
    let wrong =
        path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == "..");
    wrong.then_some("a file's path is relative to the node's directory and stays below it")
}

/// `config` names one of `files`.
fn read_config(section: &Section<'_>) -> Option<String> {
    let item = section.get("config")?;
    let config = item.filled_text()?;
    let files = section.get("files").and_then(|item| item.section());
    let names: Vec<String> = files.iter().flat_map(Section::items).map(|item| item.name).collect();
    if !names.iter().any(|name| name == config) {
        let help = crate::nearest::did_you_mean(config, &names)
            .unwrap_or_else(|| format!("add files.{config:?} = \"\""));
        item.wrong(format!("there is no file {config:?} in files"), Some(help));
    }
    Some(config.to_owned())
}

/// Directories outside PATH: from the root or from the user's own, so that it is clear which.
fn read_search(item: &Item<'_>) -> Vec<String> {
    let parts = item.list().unwrap_or_default();
    let check = |part: &Item<'_>| {
        let text = part.filled_text()?;
        if !(text.starts_with('/') || text.starts_with("~/")) || text.contains(':') {
            let help = "write \"/opt/mykv/*/bin\", or \"~/.mykv/bin\"";
            part.wrong(format!("{text:?} is not an absolute directory"), Some(help.to_owned()));
            return None;
        }
        Some(text.to_owned())
    };
    parts.iter().filter_map(check).collect()
}

fn read_init(section: &Section<'_>, scope: Scope<'_>) -> Vec<Vec<Template>> {
    let commands = section.get("init").and_then(|item| item.list()).unwrap_or_default();
    commands
        .iter()
        .enumerate()
        .filter_map(|(i, command)| scope.command(command, &format!("init[{i}]")))
        .collect()
}

fn read_bootstrap(item: &Item<'_>, scope: Scope<'_>) -> Option<BootstrapRule> {
    let section = item.section()?;
    let command = section.get("command");
    if command.is_none() {
        section.missing("bootstrap has no command", "add command = [\"mykvctl\", \"init\"]");
    }
    let command = command.and_then(|item| scope.command(&item, "bootstrap.command"));
    let done = section.get("done").and_then(|item| item.filled_text()).map(str::to_owned);
    section.finish();
    Some(BootstrapRule { command: command?, done })
}

fn read_stop(item: &Item<'_>) -> Option<StopRule> {
    let section = item.section()?;
    let default = StopRule::default();
    let names = SIGNALS.map(|(name, _)| (name, name));
    let signal = section.get("signal").and_then(|item| item.choice(&names));
    let grace = section.get("grace").and_then(|item| item.duration());
    section.finish();
    Some(StopRule {
        signal: signal.map_or(default.signal, str::to_owned),
        grace: grace.unwrap_or(default.grace),
    })
}

fn read_limits(item: &Item<'_>) -> Option<Limits> {
    let section = item.section()?;
    let limit = |field| {
        let item = section.get(field)?;
        if item.is_text() {
            return item.choice(&[("unlimited", u64::MAX)]);
        }
        item.number(0, u64::MAX, None)
    };
    let limits =
        Limits { nofile: limit("nofile"), nofile_min: limit("nofile_min"), core: limit("core") };
    section.finish();
    Some(limits)
}

fn read_hook(section: &Section<'_>, field: &'static str, scope: Scope<'_>) -> Option<Hook> {
    let item = section.get(field)?;
    let section = item.section()?;
    let joins = field == "join";
    let scope = Scope { joined: joins, ..scope };
    let before = section
        .get("before")
        .and_then(|item| scope.command(&item, &format!("{field}.before")))
        .unwrap_or_default();
    // A node that leaves is already running: only one that joins can have other arguments, and
    // only that one runs afterwards.
    let after = joins.then(|| section.get("after")).flatten();
    let after = after.and_then(|item| scope.command(&item, "join.after")).unwrap_or_default();
    let required = if joins { None } else { section.get("required") };
    let required = required.and_then(|item| item.truth()).unwrap_or_default();
    let refuse = if joins { None } else { section.get("refuse") };
    let refuse = refuse.and_then(|item| item.filled_text()).map(str::to_owned);
    let timeout = if joins { None } else { section.get("timeout") };
    let timeout = timeout.and_then(|item| item.duration());
    let args = joins.then(|| section.get("args")).flatten();
    let args = args.and_then(|item| scope.templates(&item, "join.args"));
    section.finish();
    Some(Hook { before, after, required, refuse, timeout, args })
}
