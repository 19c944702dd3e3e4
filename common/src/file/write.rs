//! Writes specs as TOML, as a person would: what is printed can be put into a file and means the same.

use std::fmt::{Display, Write};

use toml::Value;

use crate::{
    effect::Distribution,
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
    field(&mut out, "lease", quoted(spec.lease));
    field(&mut out, "tls", flag(spec.tls));
    for (role, spec) in &spec.roles {
        let _ = write!(out, "\n[cluster.{name}.{role}]\n{}", RoleText(spec));
    }
    out
}

/// A fault as the part of a lab file that asks for it.
#[must_use]
pub fn to_toml_fault(name: &FaultName, spec: &FaultSpec) -> String {
    let mut out = format!("[fault.{name}]\n");
    write_shape(&mut out, spec);
    write_effects(&mut out, spec);
    write_terms(&mut out, spec);
    out
}

fn write_shape(out: &mut String, spec: &FaultSpec) {
    let groups = |groups: &Vec<Targets>| list(groups.iter().map(nested));
    let sides = |sides: &Vec<Targets>| list(sides.iter().map(targets));
    field(out, "partition", spec.partition.as_ref().map(groups));
    field(out, "isolate", spec.isolate.as_ref().map(targets));
    field(out, "halves", spec.halves.as_ref().map(targets));
    field(out, "minority", spec.minority.as_ref().map(targets));
    field(out, "ring", spec.ring.as_ref().map(targets));
    field(out, "bridge", spec.bridge.as_ref().map(targets));
    field(out, "from", spec.from.as_ref().map(targets));
    field(out, "to", spec.to.as_ref().map(targets));
    field(out, "between", spec.between.as_ref().map(sides));
    field(out, "on", spec.on.as_ref().map(targets));
}

fn write_effects(out: &mut String, spec: &FaultSpec) {
    field(out, "preset", spec.preset.as_deref().map(text));
    field(out, "cut", flag(spec.cut));
    field(out, "stall", flag(spec.stall));
    field(out, "jam", flag(spec.jam));
    field(out, "latency", quoted(spec.latency));
    field(out, "rtt", quoted(spec.rtt));
    field(out, "jitter", quoted(spec.jitter));
    let distribution = spec.distribution.map(|distribution| match distribution {
        Distribution::Uniform => text("uniform"),
        Distribution::Normal => text("normal"),
        Distribution::Pareto => text("pareto"),
    });
    field(out, "distribution", distribution);
    field(out, "bandwidth", quoted(spec.bandwidth));
    field(out, "loss", quoted(spec.loss));
    field(out, "corrupt", quoted(spec.corrupt));
    field(out, "duplicate", quoted(spec.duplicate));
    field(out, "reorder", quoted(spec.reorder));
    field(out, "slice", quoted(spec.slice));
    field(out, "refuse", flag(spec.refuse));
    field(out, "time_out", flag(spec.time_out));
    field(out, "accept_delay", quoted(spec.accept_delay));
    field(out, "reset", flag(spec.reset));
    field(out, "reset_after", quoted(spec.reset_after));
    field(out, "close_after", quoted(spec.close_after));
    field(out, "limit", quoted(spec.limit));
    field(out, "slow_close", quoted(spec.slow_close));
    field(out, "pause", flag(spec.pause));
    field(out, "kill", flag(spec.kill));
    field(out, "stop", flag(spec.stop));
    field(out, "disk_stall", flag(spec.disk_stall));
    field(out, "effect", spec.effect.as_deref().map(text));
}

fn write_terms(out: &mut String, spec: &FaultSpec) {
    field(out, "probability", quoted(spec.probability));
    let one_way = spec.one_way.map(|one_way| match one_way {
        OneWay::Bytes => "true".to_owned(),
        OneWay::Packets => text("packets"),
    });
    field(out, "one_way", one_way);
    field(out, "clients", flag(spec.clients));
    field(out, "across", flag(spec.across));
    field(out, "follow", flag(spec.follow));
    field(out, "for", quoted(spec.lasts));
    let at = spec.at.map(|at| match at {
        Begin::Ready => text("ready"),
        Begin::Start => text("start"),
    });
    field(out, "at", at);
    let grade = spec.grade.map(|grade| match grade {
        Grade::Stream => text("stream"),
        Grade::Packet => text("packet"),
    });
    field(out, "grade", grade);
    let heal = spec.heal.map(|heal| match heal {
        HealPolicy::Resume => text("resume"),
        HealPolicy::Reset => text("reset"),
        HealPolicy::Close => text("close"),
    });
    field(out, "heal", heal);
    field(out, "seed", spec.seed.map(|seed| seed.to_string()));
    field(out, "canary", flag(spec.canary));
    field(out, "fast_heal", flag(spec.fast_heal));
}

/// What has one text, in quotes.
fn quoted(value: Option<impl Display>) -> Option<String> {
    value.map(|value| text(&value.to_string()))
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
        field(&mut out, "dial_ports", spec.dial_ports.map(|count| count.to_string()));
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
