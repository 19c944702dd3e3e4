//! Labs for tests.

use std::{collections::BTreeMap, sync::LazyLock};

use crate::{
    blueprint::Blueprint,
    file,
    generation::Generation,
    lab::{Cluster, Host, Lab, Means, Origin},
    name::ClusterName,
    place,
    spec::{ClusterSpec, RoleSpec},
};

/// Hosts `h1` to `hN` and nothing else.
pub(crate) fn empty_lab(hosts: u8) -> Lab {
    let host = |n: u8| {
        let mut host = Host::new([127, 77, 5, n].into(), format!("/lab/hosts/h{n}").into());
        host.relabel(|said| said.file = BTreeMap::from([("n".to_owned(), n.to_string())]));
        (format!("h{n}").parse().unwrap(), host)
    };
    Lab {
        name: "dev".parse().unwrap(),
        octet: 5,
        generation: Generation(7),
        hosts: (1..=hosts).map(host).collect(),
        clusters: BTreeMap::new(),
        faults: BTreeMap::new(),
        removed_wiped: BTreeMap::new(),
        settings: crate::lab::Settings::default(),
        removed_hosts: BTreeMap::new(),
        kept: BTreeMap::new(),
    }
}

/// The blueprint that ships as `name`.
pub(crate) fn shipped(name: &str) -> Blueprint {
    // Parsing renders it for a sample; property tests ask for it thousands of times.
    static SHIPPED: LazyLock<BTreeMap<&str, Blueprint>> = LazyLock::new(|| {
        let parse = |&(name, text)| (name, file::parse_blueprint(text).unwrap());
        file::SHIPPED.iter().map(parse).collect()
    });
    SHIPPED[name].clone()
}

/// A cluster that is not placed yet.
pub(crate) fn cluster(blueprint: Blueprint, spec: ClusterSpec) -> Cluster {
    Cluster {
        spec,
        blueprint,
        origin: Origin { owner: "ada".to_owned(), by: Means::Verb },
        nodes: BTreeMap::new(),
        last_index: BTreeMap::new(),
        been_ready: std::collections::BTreeSet::new(),
        relist: crate::lab::Relist::default(),
        token: "t1".to_owned(),
        lease: None,
        authority: None,
    }
}

/// A spec that asks for so many nodes of one role.
pub(crate) fn spec(blueprint: &str, role: &str, count: u32) -> ClusterSpec {
    let role_spec = RoleSpec { count: Some(count), ..RoleSpec::default() };
    ClusterSpec {
        blueprint: blueprint.to_owned(),
        on_crash: None,
        lease: None,
        tls: false,
        roles: BTreeMap::from([(role.parse().unwrap(), role_spec)]),
    }
}

/// Three hosts and the etcd cluster `kv` of three nodes on them.
pub(crate) fn lab() -> Lab {
    let mut lab = empty_lab(3);
    let name: ClusterName = "kv".parse().unwrap();
    let mut kv = cluster(shipped("etcd"), spec("etcd", "etcd", 3));
    place::place(&lab, &name, &mut kv, &BTreeMap::new()).unwrap();
    lab.clusters.insert(name, kv.into());
    lab
}

/// A database of two roles that uses every part of a blueprint.
pub(crate) const DB: &str = r#"
name = "db"
summary = "two roles, for tests"
on_crash = "restart"
[role.meta]
program = "meta"
count = 3
port.client = { default = 7000, url = "http" }
port.peer = { default = 7001, reserve = ["+1"] }
args = [
    "--id={{ node.index }}",
    "{% if node.joined %}--join{% endif %}",
    "--peers={% for n in role.meta %}{{ n.port.peer.seen_by(node) }}{% if not loop.last %},{% endif %}{% endfor %}",
]
env = { TOKEN = "{{ cluster.token }}", LAB = "{{ lab.name }}" }
bootstrap = { command = ["metactl", "init", "{{ port.client.advertise }}"], done = "already" }
ready = { grpc = "{{ port.client.bind }}/meta.Health" }
role_state = { command = ["metactl", "role", "{{ port.client.bind }}"], state = "text", leads = "json.n" }
join = { before = ["metactl", "add", "{{ node.name }}"], args = ["--joins={{ role.meta[0].port.client.advertise }}"] }
[role.store]
program = "store"
count = 2
after = ["meta"]
port.sql = { default = 7010 }
port.metrics = { default = 7011, proxied = false }
args = ["--meta={{ role.meta|map(attribute='port.client.advertise')|join(',') }}", "--metrics={{ port.metrics.advertise }}"]
dirs = ["wal", "{{ node.data }}/tmp"]
files."store.toml" = """
[server]
address = "{{ port.sql.bind }}"
peers = [
{% for n in role.store if n.name != node.name %}
  "{{ n.port.sql.advertise }}",
{% endfor %}
]
"""
files."notes.txt" = "{{ node.name }} on {{ node.host }}\n"
config = "store.toml"
init = [["mkstore", "{{ node.data }}"]]
logs = ["store.log"]
ready = { tcp = "{{ port.sql.bind }}", timeout = "3s" }
stop = { signal = "SIGINT", grace = "1m" }
user = "store"
limits = { core = "unlimited" }
[effect.freeze]
roles = ["store"]
on = { http = "PUT http://{{ port.sql.bind }}/freeze", body = "{}" }
off = { http = "DELETE {{ port.sql.bind }}/freeze", expect = "status == 204" }
"#;

/// The blueprint of [`DB`].
pub(crate) fn db_blueprint() -> Blueprint {
    static PARSED: LazyLock<Blueprint> = LazyLock::new(|| file::parse_blueprint(DB).unwrap());
    PARSED.clone()
}

/// Places a cluster of this blueprint and spec into the lab.
pub(crate) fn add(lab: &mut Lab, name: &str, blueprint: Blueprint, spec: ClusterSpec) {
    let name: ClusterName = name.parse().unwrap();
    let mut next = cluster(blueprint, spec);
    place::place(lab, &name, &mut next, &BTreeMap::new()).unwrap();
    lab.clusters.insert(name, next.into());
}

/// A fault in force, resolved against the lab as it is.
pub(crate) fn fault(lab: &Lab, spec: crate::fault::FaultSpec) -> crate::lab::Fault {
    let resolved = crate::shape::resolve(lab, &BTreeMap::new(), &spec, 0).unwrap();
    crate::lab::Fault {
        spec,
        origin: Origin { owner: "ada".to_owned(), by: Means::Verb },
        revision: crate::generation::FaultRevision(1),
        phase: crate::lab::Phase::Active { since_unix_ms: 0 },
        resolved,
        everyone: false,
        ended_because: None,
    }
}
