//! What the templates of one cluster can see, made once for all its nodes.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Enumerator, Object},
};

use crate::{
    blueprint::Role,
    jinja,
    lab::{Cluster, Lab, Placement},
    name::{ClusterName, NodeName},
    render::{RenderError, node_dir, refuse},
    tls::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, TLS_DIR},
};

/// One cluster as its templates see it.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    pub(super) lab: &'a Lab,
    pub(super) name: &'a ClusterName,
    pub(super) cluster: &'a Cluster,
    nodes: BTreeMap<NodeName, Value>,
    roles: Value,
}

impl<'a> Scene<'a> {
    /// Prepares the nodes of a cluster for its templates.
    ///
    /// # Errors
    /// A node is on a host that is not in the lab.
    pub(crate) fn new(
        lab: &'a Lab,
        name: &'a ClusterName,
        cluster: &'a Cluster,
    ) -> Result<Self, RenderError> {
        let mut nodes = BTreeMap::new();
        let mut by_role: BTreeMap<&str, BTreeMap<u32, Value>> =
            cluster.blueprint.roles.keys().map(|role| (role.as_str(), BTreeMap::new())).collect();
        for (node, place) in &cluster.nodes {
            let value = node_value(lab, cluster, node, place)?;
            nodes.insert(node.clone(), value.clone());
            by_role.entry(place.role.as_str()).or_default().insert(place.index, value);
        }
        let roles = Value::from_pairs(
            by_role.into_iter().map(|(role, list)| (role, list.into_values().collect::<Value>())),
        );
        Ok(Self { lab, name, cluster, nodes, roles })
    }

    /// Renders one template as one node sees it.
    ///
    /// # Errors
    /// Says which template and why.
    pub(crate) fn text(
        &self,
        node: &NodeName,
        place: &str,
        template: &str,
    ) -> Result<String, RenderError> {
        // Most arguments are plain texts.
        if !template.contains('{') {
            return Ok(template.to_owned());
        }
        self.raw(node, template).map_err(|error| refuse(node, place, jinja::explain(&error)))
    }

    /// As [`Scene::text`], with the engine's own error, which knows where in the template it is.
    pub(crate) fn raw(&self, node: &NodeName, template: &str) -> Result<String, Error> {
        let own = self.nodes.get(node).cloned().unwrap_or(Value::UNDEFINED);
        let port = own.get_attr("port").unwrap_or(Value::UNDEFINED);
        let scope = Value::from_pairs([
            ("node", own),
            ("port", port),
            ("role", self.roles.clone()),
            (
                "cluster",
                Value::from_pairs([
                    ("name", self.name.as_str()),
                    ("token", self.cluster.token.as_str()),
                ]),
            ),
            ("tls", self.tls(node)),
            ("lab", Value::from_pairs([("name", self.lab.name.as_str())])),
        ]);
        jinja::templates().render_str(template, scope)
    }

    /// Where a node finds its certificate, whether or not there is one.
    fn tls(&self, node: &NodeName) -> Value {
        let host = self.cluster.nodes.get(node).and_then(|place| self.lab.hosts.get(&place.host));
        let dir = host.map(|host| node_dir(&host.dir, node).join(TLS_DIR)).unwrap_or_default();
        let file = |name| Value::from(dir.join(name).display().to_string());
        Value::from_pairs([
            ("on", Value::from(self.cluster.authority.is_some())),
            ("ca", file(CA_FILE)),
            ("cert", file(CERTIFICATE_FILE)),
            ("key", file(KEY_FILE)),
        ])
    }

    pub(super) fn placement(&self, node: &NodeName) -> Result<&'a Placement, RenderError> {
        let missing = || refuse(node, "node", format!("it is not of cluster {}", self.name));
        self.cluster.nodes.get(node).ok_or_else(missing)
    }

    pub(super) fn role(&self, node: &NodeName, place: &Placement) -> Result<&'a Role, RenderError> {
        let blueprint = &self.cluster.blueprint;
        blueprint.roles.get(&place.role).ok_or_else(|| {
            refuse(node, "role", format!("blueprint {} has no {}", blueprint.name, place.role))
        })
    }
}

fn node_value(
    lab: &Lab,
    cluster: &Cluster,
    node: &NodeName,
    place: &Placement,
) -> Result<Value, RenderError> {
    let Some(host) = lab.hosts.get(&place.host) else {
        return Err(refuse(node, "host", format!("{} is not in the lab", place.host)));
    };
    let role = cluster.blueprint.roles.get(&place.role);
    let ports = Value::from_pairs(place.ports.iter().map(|(name, number)| {
        let rule = role.and_then(|role| role.ports.get(name));
        let bind = SocketAddr::new(place.private, *number);
        // A port without a proxy is reached where it binds, by whoever is on the same host.
        let proxied = rule.is_none_or(|rule| rule.proxied);
        let advertise = if proxied { SocketAddr::new(host.address, *number) } else { bind };
        let url = role.and_then(|role| role.url(name, cluster.authority.is_some()).cloned());
        (
            name.as_str(),
            Value::from_object(PortView { owner: node.to_string(), bind, advertise, url }),
        )
    }));
    let dir = node_dir(&host.dir, node);
    Ok(Value::from_pairs([
        ("name", Value::from(node.as_str())),
        ("index", Value::from(place.index)),
        ("host", Value::from(place.host.as_str())),
        ("data", Value::from(dir.join("data").display().to_string())),
        ("dir", Value::from(dir.display().to_string())),
        ("private", Value::from(place.private.to_string())),
        ("address", Value::from(host.address.to_string())),
        ("joined", Value::from(place.joined)),
        ("wiped", Value::from(place.wipes > 0)),
        ("port", ports),
    ]))
}

/// `node.port.NAME`.
#[derive(Debug)]
struct PortView {
    owner: String,
    bind: SocketAddr,
    advertise: SocketAddr,
    url: Option<String>,
}

impl Object for PortView {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "bind" => Some(Value::from(self.bind.to_string())),
            "advertise" => Some(Value::from(self.advertise.to_string())),
            "port" => Some(Value::from(self.bind.port())),
            "url" => self.url.clone().map(Value::from),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["bind", "advertise", "port", "url"])
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        if method != "seen_by" {
            return Err(Error::new(
                ErrorKind::UnknownMethod,
                format!("a port has seen_by(NODE), and no {method}"),
            ));
        }
        let viewer = args.first().and_then(|node| node.get_attr("name").ok());
        let Some(viewer) = viewer.as_ref().and_then(Value::as_str) else {
            return Err(Error::new(ErrorKind::MissingArgument, "seen_by takes a node"));
        };
        let seen = if viewer == self.owner { self.bind } else { self.advertise };
        Ok(Value::from(seen.to_string()))
    }
}
