//! Writes specs as TOML, as a person would: what is printed can be put into a file and means the same.

use std::fmt::{Display, Write};

use toml::Value;

use crate::{
    fault::{Begin, FaultSpec, Grade, HealPolicy, OneWay, Targets},
    name::{ClusterName, FaultName},
    spec::{ClusterSpec, NodeOverride, OnCrash, RoleSpec},
};

/// A cluster as the part of a lab file that asks for it.
#[must_use]
pub fn to_toml_cluster(name: &ClusterName, spec: &ClusterSpec) -> String {
    let mut out = format!("[cluster.{name}]\n");
    field(&mut out, "blueprint", Some(text(&spec.blueprint)));
    let on_crash = spec.on_crash.map(|on_crash| match on_crash {
        OnCrash::Stay => text("stay"),
        OnCrash::Restart => text("restart"),
    });
    field(&mut out, "on_crash", on_crash);
    for (role, spec) in &spec.roles {
        let _ = write!(out, "\n[cluster.{name}.{role}]\n{}", RoleText(spec));
    }
    out
}

/// A fault as the part of a lab file that asks for it.
#[must_use]
pub fn to_toml_fault(name: &FaultName, spec: &FaultSpec) -> String {
    let mut out = format!("[fault.{name}]\n");
    let groups = |groups: &Vec<Targets>| list(groups.iter().map(nested));
    let sides = |sides: &Vec<Targets>| list(sides.iter().map(targets));
    field(&mut out, "partition", spec.partition.as_ref().map(groups));
    field(&mut out, "isolate", spec.isolate.as_ref().map(targets));
    field(&mut out, "from", spec.from.as_ref().map(targets));
    field(&mut out, "to", spec.to.as_ref().map(targets));
    field(&mut out, "between", spec.between.as_ref().map(sides));
    field(&mut out, "on", spec.on.as_ref().map(targets));
    field(&mut out, "cut", flag(spec.cut));
    field(&mut out, "latency", spec.latency.map(|span| text(&span.to_string())));
    field(&mut out, "rtt", spec.rtt.map(|span| text(&span.to_string())));
    field(&mut out, "jitter", spec.jitter.map(|span| text(&span.to_string())));
    field(&mut out, "pause", flag(spec.pause));
    field(&mut out, "kill", flag(spec.kill));
    field(&mut out, "stop", flag(spec.stop));
    field(&mut out, "effect", spec.effect.as_deref().map(text));
    let one_way = spec.one_way.map(|one_way| match one_way {
        OneWay::Bytes => "true".to_owned(),
        OneWay::Packets => text("packets"),
    });
    field(&mut out, "one_way", one_way);
    field(&mut out, "clients", flag(spec.clients));
    field(&mut out, "across", flag(spec.across));
    field(&mut out, "follow", flag(spec.follow));
    field(&mut out, "for", spec.lasts.map(|lasts| text(&lasts.to_string())));
    let at = spec.at.map(|at| match at {
        Begin::Ready => text("ready"),
        Begin::Start => text("start"),
    });
    field(&mut out, "at", at);
    let grade = spec.grade.map(|grade| match grade {
        Grade::Stream => text("stream"),
        Grade::Packet => text("packet"),
    });
    field(&mut out, "grade", grade);
    let heal = spec.heal.map(|heal| match heal {
        HealPolicy::Resume => text("resume"),
        HealPolicy::Reset => text("reset"),
        HealPolicy::Close => text("close"),
    });
    field(&mut out, "heal", heal);
    field(&mut out, "seed", spec.seed.map(|seed| seed.to_string()));
    out
}

/// The fields of a role, below its header.
struct RoleText<'a>(&'a RoleSpec);

impl Display for RoleText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let spec = self.0;
        let mut out = String::new();
        field(&mut out, "count", spec.count.map(|count| count.to_string()));
        field(&mut out, "path", spec.path.as_deref().map(text));
        field(&mut out, "config", spec.config.as_deref().map(text));
        field(&mut out, "hosts", (!spec.hosts.is_empty()).then(|| texts(&spec.hosts)));
        field(&mut out, "args", (!spec.args.is_empty()).then(|| texts(&spec.args)));
        field(&mut out, "env", env(&spec.env));
        for (number, own) in &spec.node {
            write_override(&mut out, *number, own);
        }
        f.write_str(&out)
    }
}

fn write_override(out: &mut String, number: u32, own: &NodeOverride) {
    let mut part = |name: &str, value: Option<String>| {
        field(out, &format!("node.{number}.{name}"), value);
    };
    part("path", own.path.as_deref().map(text));
    part("config", own.config.as_deref().map(text));
    part("args", own.args.as_deref().map(texts));
    part("env", env(&own.env));
    part("host", own.host.as_ref().map(|host| text(host.as_str())));
    if own == &NodeOverride::default() {
        field(out, &format!("node.{number}"), Some("{}".to_owned()));
    }
}

fn field(out: &mut String, name: &str, value: Option<String>) {
    if let Some(value) = value {
        let _ = writeln!(out, "{name} = {value}");
    }
}

fn flag(on: bool) -> Option<String> {
    on.then(|| "true".to_owned())
}

/// A text in quotes, by the rules of TOML.
fn text(value: &str) -> String {
    Value::String(value.to_owned()).to_string()
}

fn list(parts: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", parts.into_iter().collect::<Vec<_>>().join(", "))
}

fn texts(values: &[String]) -> String {
    list(values.iter().map(|value| text(value)))
}

/// One target as a text, several as a list.
fn targets(value: &Targets) -> String {
    match value.0.as_slice() {
        [one] => text(one),
        many => texts(many),
    }
}

/// Always a list: groups of a partition look alike then.
fn nested(value: &Targets) -> String {
    texts(&value.0)
}

fn env(env: &std::collections::BTreeMap<String, String>) -> Option<String> {
    let parts: Vec<String> =
        env.iter().map(|(name, value)| format!("{} = {}", key(name), text(value))).collect();
    (!parts.is_empty()).then(|| format!("{{ {} }}", parts.join(", ")))
}

/// A key, in quotes where it needs them.
fn key(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(plain) { name.to_owned() } else { text(name) }
}
