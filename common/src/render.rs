//! Renders one node of a cluster from its blueprint: arguments, environment, files, probes.
//!
//! A template sees (all of it strict: a name that is not there is an error):
//! - `node`: `name`, `index`, `host`, `data`, `dir`, `private`, `address`, and `port.NAME` with
//!   `bind` (private address and port), `advertise` (the proxy's address and port), `port`, `url`
//!   and `seen_by(NODE)` (`bind` for the node itself, `advertise` for every other);
//! - `port`: the node's own, short for `node.port`;
//! - `role.ROLE`: the list of that role's nodes in the order of their numbers, with the same fields;
//! - `cluster`: `name` and `token`; `lab`: `name`;
//! - `tls`: `on` where the cluster's members speak it, and the files `ca`, `cert` and `key`.
//!
//! Every argument is one template and becomes one argument, also where it renders to nothing.
//! What the user's spec adds (`args`, `env`) is no template and is passed on as it is written.

mod config;
mod probe;
mod scene;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

pub(crate) use config::NOT_SUPPORTED as NO_CONFIG;
pub(crate) use probe::METHODS;
pub(crate) use scene::Scene;

use crate::{
    blueprint::{self, Blueprint, Role, Template, TlsRule},
    host_spec::{Bootstrap, Launch, NodeEffect, NodePort, NodeSpec, Stop},
    lab::{Cluster, Lab, Placement},
    name::{ClusterName, NodeName},
    spec::{NodeOverride, RoleSpec},
    tls::NodeTls,
};

/// Why a node cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{node}: {place}: {why}")]
pub struct RenderError {
    /// The node.
    pub node: NodeName,
    /// Which template, such as `args[2]` or `ready.http`.
    pub place: String,
    /// What is wrong with it.
    pub why: String,
}

/// The directory of a node below its host's. Data is in `data`, runs in `runs/NNNN`.
#[must_use]
pub fn node_dir(host_dir: &Path, node: &NodeName) -> PathBuf {
    host_dir.join("nodes").join(node.as_str())
}

/// Renders everything of one node except its faults, which `compile` adds.
///
/// # Errors
/// Names the template that cannot be rendered and why.
pub fn render(
    lab: &Lab,
    name: &ClusterName,
    cluster: &Cluster,
    node: &NodeName,
) -> Result<NodeSpec, RenderError> {
    Scene::new(lab, name, cluster)?.node(node)
}

/// Renders a blueprint's own effect for one node: what switches it on and off there.
///
/// # Errors
/// The blueprint has no such effect for the node's role, or it cannot be rendered.
pub fn custom_effect(
    lab: &Lab,
    name: &ClusterName,
    cluster: &Cluster,
    node: &NodeName,
    effect: &str,
) -> Result<NodeEffect, RenderError> {
    Scene::new(lab, name, cluster)?.effect(node, effect, &BTreeMap::new())
}

impl Scene<'_> {
    /// Renders one node; see [`render`].
    pub(crate) fn node(&self, name: &NodeName) -> Result<NodeSpec, RenderError> {
        let place = self.placement(name)?;
        let role = self.role(name, place)?;
        let Some(host) = self.lab.hosts.get(&place.host) else {
            return Err(refuse(name, "host", format!("{} is not in the lab", place.host)));
        };
        let dir = node_dir(&host.dir, name);
        Ok(NodeSpec {
            cluster: self.name.clone(),
            blueprint: Some(self.cluster.blueprint.name.clone()),
            role: place.role.clone(),
            wanted: place.wanted,
            incarnation: place.incarnation,
            stop_by: place.stop_by,
            wipes: place.wipes,
            recalled: place.recalled,
            gate: self.gate(role),
            launch: self.launch(name, place, role, &dir)?,
            data: dir.join("data"),
            private: place.private,
            address: host.address,
            ports: node_ports(name, place, role, self.cluster.authority.is_some())?,
            logs: self
                .list(name, "logs", &role.logs)?
                .into_iter()
                .enumerate()
                .map(|(i, log)| inside(name, &format!("logs[{i}]"), &dir, &log))
                .collect::<Result<_, _>>()?,
            ready: match &role.ready {
                Some(rule) => Some(self.probe(name, "ready", rule)?),
                None => None,
            },
            role_state: match &role.role_state {
                Some(rule) => Some(self.role_probe(name, rule)?),
                None => None,
            },
            stop: Stop {
                signal: blueprint::signal_number(&role.stop.signal).ok_or_else(|| {
                    refuse(name, "stop.signal", format!("{} is no signal", role.stop.signal))
                })?,
                grace: role.stop.grace,
            },
            on_crash: self.cluster.spec.on_crash.unwrap_or(self.cluster.blueprint.on_crash),
            faults: BTreeMap::new(),
            block: place.block,
        })
    }

    /// Renders one custom effect; see [`custom_effect`].
    pub(crate) fn effect(
        &self,
        node: &NodeName,
        name: &str,
        chosen: &BTreeMap<String, String>,
    ) -> Result<NodeEffect, RenderError> {
        let place = format!("effect.{name}");
        let role = &self.placement(node)?.role;
        let blueprint = &self.cluster.blueprint;
        let Some(effect) = blueprint.effects.get(name) else {
            return Err(refuse(node, &place, unknown_effect(blueprint, name)));
        };
        if !effect.roles.is_empty() && !effect.roles.contains(role) {
            let roles: Vec<&str> = effect.roles.iter().map(AsRef::as_ref).collect();
            let why = format!("it is an effect of {}, and this node is {role}", roles.join(", "));
            return Err(refuse(node, &place, why));
        }
        let values = effect.values(chosen).map_err(|why| refuse(node, &place, why))?;
        let scene = self.with_values(&values);
        let off = effect.off.as_ref();
        let off = off.map(|off| scene.probe(node, &format!("{place}.off"), off)).transpose()?;
        Ok(NodeEffect::Custom {
            name: name.to_owned(),
            on: Box::new(scene.probe(node, &format!("{place}.on"), &effect.on)?),
            off: off.map(Box::new),
        })
    }

    /// What is added for TLS, where the cluster's members speak it.
    fn tls_rule<'r>(&self, role: &'r Role) -> Option<&'r TlsRule> {
        role.tls.as_ref().filter(|_| self.cluster.authority.is_some())
    }

    /// A node is asked at its private address, dialled at its host's, and by its own machine at either;
    /// what a proxy dials from is the loopback address, which some databases look for in the certificate.
    fn node_tls(&self, node: &NodeName, place: &Placement) -> Option<NodeTls> {
        let authority = self.cluster.authority.clone()?;
        let address = self.lab.hosts.get(&place.host)?.address;
        let names = [node.to_string(), place.host.to_string(), "localhost".to_owned()];
        let addresses = [place.private.to_string(), address.to_string(), "127.0.0.1".to_owned()];
        Some(NodeTls { authority, names: names.into_iter().chain(addresses).collect() })
    }

    /// Why nodes of this role must not start yet.
    fn gate(&self, role: &Role) -> Option<String> {
        let waits = role.after.iter().find(|other| {
            let there = self.cluster.nodes.values().any(|node| &node.role == *other);
            there && !self.cluster.been_ready.contains(*other)
        })?;
        Some(format!("waiting for {waits} of {}", self.name))
    }

    fn launch(
        &self,
        name: &NodeName,
        place: &Placement,
        role: &Role,
        dir: &Path,
    ) -> Result<Launch, RenderError> {
        let none = RoleSpec::default();
        let spec = self.cluster.spec.roles.get(&place.role).unwrap_or(&none);
        let own = spec.node.get(&place.index);
        let program =
            own.and_then(|own| own.path.as_ref()).or(spec.path.as_ref()).unwrap_or(&role.program);
        let pushed = place.pushed.as_ref().zip(self.lab.hosts.get(&place.host));
        Ok(Launch {
            program: match pushed {
                Some((pushed, host)) => pushed.file(&host.dir).display().to_string(),
                None => program.strip_prefix("host:").unwrap_or(program).to_owned(),
            },
            pushed: place.pushed.clone(),
            search: search(role, program),
            args: self.args(name, place, role, spec)?,
            env: self.env(name, role, spec, own)?,
            user: role.user.clone(),
            dirs: self
                .list(name, "dirs", &role.dirs)?
                .iter()
                .enumerate()
                .map(|(i, path)| inside(name, &format!("dirs[{i}]"), dir, path))
                .collect::<Result<_, _>>()?,
            files: self.files(name, role, spec, own, dir)?,
            init: role
                .init
                .iter()
                .enumerate()
                .map(|(i, argv)| self.list(name, &format!("init[{i}]"), argv))
                .collect::<Result<_, _>>()?,
            bootstrap: self.bootstrap(name, place, role)?,
            join: match &role.join {
                Some(hook) if place.joined && !hook.before.is_empty() => {
                    Some(self.list(name, "join.before", &hook.before)?)
                }
                _ => None,
            },
            leave: match &role.leave {
                Some(hook) if !hook.before.is_empty() => {
                    Some(self.list(name, "leave.before", &hook.before)?)
                }
                _ => None,
            },
            leave_required: role.leave.as_ref().is_some_and(|hook| hook.required),
            leave_timeout: role.leave.as_ref().and_then(|hook| hook.timeout),
            limits: role.limits.clone(),
            version: role.version.clone(),
            version_rule: role.version_rule.clone(),
            tls: self.node_tls(name, place),
            needs: role.needs.clone(),
        })
    }

    /// A node that joins takes the join's arguments in place of the role's; the user's come last
    /// either way, because most programs obey the last of two equal flags.
    fn args(
        &self,
        name: &NodeName,
        place: &Placement,
        role: &Role,
        spec: &RoleSpec,
    ) -> Result<Vec<String>, RenderError> {
        let joins = role.join.as_ref().filter(|_| place.joined);
        let mut args = match joins.and_then(|hook| hook.args.as_ref()) {
            Some(args) => self.list(name, "join.args", args)?,
            None => self.list(name, "args", &role.args)?,
        };
        if let Some(tls) = self.tls_rule(role) {
            args.extend(self.list(name, "tls.args", &tls.args)?);
        }
        let own = spec.node.get(&place.index).and_then(|own| own.args.as_ref());
        args.extend_from_slice(own.unwrap_or(&spec.args));
        Ok(args)
    }

    fn env(
        &self,
        name: &NodeName,
        role: &Role,
        spec: &RoleSpec,
        own: Option<&NodeOverride>,
    ) -> Result<BTreeMap<String, String>, RenderError> {
        let mut env = BTreeMap::new();
        let tls = self.tls_rule(role).map(|tls| &tls.env);
        for (key, template) in role.env.iter().chain(tls.into_iter().flatten()) {
            env.insert(key.clone(), self.text(name, &format!("env.{key}"), template)?);
        }
        env.extend(spec.env.clone());
        env.extend(own.map(|own| own.env.clone()).unwrap_or_default());
        Ok(env)
    }

    fn files(
        &self,
        name: &NodeName,
        role: &Role,
        spec: &RoleSpec,
        own: Option<&NodeOverride>,
        dir: &Path,
    ) -> Result<BTreeMap<PathBuf, String>, RenderError> {
        let config = own.and_then(|own| own.config.as_ref()).or(spec.config.as_ref());
        if let (Some(_), None) = (config, &role.config) {
            return Err(refuse(name, "config", NO_CONFIG.to_owned()));
        }
        let mut files = BTreeMap::new();
        for (path, template) in &role.files {
            let place = format!("files.{path}");
            let mut content = self.text(name, &place, template)?;
            if let (Some(over), true) = (config, role.config.as_ref() == Some(path)) {
                content = config::merge(path, &content, over)
                    .map_err(|why| refuse(name, "config", why))?;
            }
            files.insert(inside(name, &place, dir, path)?, content);
        }
        Ok(files)
    }

    /// Only the role's first node ever sets the cluster up, and only as part of its beginning. A
    /// node that joins may have to tell the cluster once it runs, which is done in the same way.
    fn bootstrap(
        &self,
        name: &NodeName,
        place: &Placement,
        role: &Role,
    ) -> Result<Option<Bootstrap>, RenderError> {
        if let Some(hook) = role.join.as_ref().filter(|hook| !hook.after.is_empty())
            && place.joined
        {
            let command = self.list(name, "join.after", &hook.after)?;
            return Ok(Some(Bootstrap { command, done: None }));
        }
        let Some(rule) = role.bootstrap.as_ref().filter(|_| place.index == 1 && !place.joined)
        else {
            return Ok(None);
        };
        let command = self.list(name, "bootstrap.command", &rule.command)?;
        Ok(Some(Bootstrap { command, done: rule.done.clone() }))
    }

    /// Renders each of a list: one template, one text.
    fn list(
        &self,
        node: &NodeName,
        place: &str,
        templates: &[Template],
    ) -> Result<Vec<String>, RenderError> {
        templates
            .iter()
            .enumerate()
            .map(|(i, template)| self.text(node, &format!("{place}[{i}]"), template))
            .collect()
    }
}

/// A server that is not in PATH often has its tools beside it.
fn search(role: &Role, program: &str) -> Vec<String> {
    let program = program.strip_prefix("host:").unwrap_or(program);
    let beside = Path::new(program).parent().filter(|dir| dir.is_absolute());
    let beside = beside.map(|dir| dir.display().to_string());
    role.search.iter().cloned().chain(beside).collect()
}

fn node_ports(
    name: &NodeName,
    place: &Placement,
    role: &Role,
    is_tls: bool,
) -> Result<BTreeMap<crate::name::PortName, NodePort>, RenderError> {
    role.ports
        .iter()
        .map(|(port, rule)| {
            let number = place.ports.get(port).ok_or_else(|| {
                refuse(name, &format!("port.{port}"), "the node was placed without it".to_owned())
            })?;
            let url = role.url(port, is_tls).cloned();
            let node_port =
                NodePort { port: *number, proxied: rule.proxied, url, source: rule.source };
            Ok((port.clone(), node_port))
        })
        .collect()
}

/// A path of the node, which must stay below its directory: it is created and written to.
fn inside(node: &NodeName, place: &str, dir: &Path, path: &str) -> Result<PathBuf, RenderError> {
    let whole = dir.join(path);
    let climbs = whole.components().any(|part| part == Component::ParentDir);
    if path.is_empty() || climbs || !whole.starts_with(dir) || whole == dir {
        let why = format!("{path:?} is not a path below the node's directory");
        return Err(refuse(node, place, why));
    }
    Ok(whole)
}

/// What to say where a blueprint has no effect of this name.
pub(crate) fn unknown_effect(blueprint: &Blueprint, name: &str) -> String {
    let known: Vec<&str> = blueprint.effects.keys().map(String::as_str).collect();
    let rest = match crate::nearest::did_you_mean(name, &known) {
        Some(hint) => hint,
        None if known.is_empty() => "it has none".to_owned(),
        None => format!("it has {}", known.join(", ")),
    };
    format!("blueprint {} has no effect {name:?}; {rest}", blueprint.name)
}

fn refuse(node: &NodeName, place: &str, why: String) -> RenderError {
    RenderError { node: node.clone(), place: place.to_owned(), why }
}
