//! Labs for tests.

use std::{collections::BTreeMap, path::PathBuf};

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
        let host = Host {
            address: [127, 77, 5, n].into(),
            dir: PathBuf::from(format!("/lab/hosts/h{n}")),
            labels: BTreeMap::from([("n".to_owned(), n.to_string())]),
        };
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
    }
}

/// The blueprint that ships as `name`.
pub(crate) fn shipped(name: &str) -> Blueprint {
    let (_, text) = file::SHIPPED.iter().find(|(shipped, _)| *shipped == name).unwrap();
    file::parse_blueprint(text).unwrap()
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
        token: "t1".to_owned(),
    }
}

/// A spec that asks for so many nodes of one role.
pub(crate) fn spec(blueprint: &str, role: &str, count: u32) -> ClusterSpec {
    let role_spec = RoleSpec { count: Some(count), ..RoleSpec::default() };
    ClusterSpec {
        blueprint: blueprint.to_owned(),
        on_crash: None,
        roles: BTreeMap::from([(role.parse().unwrap(), role_spec)]),
    }
}

/// Three hosts and the etcd cluster `kv` of three nodes on them.
pub(crate) fn lab() -> Lab {
    let mut lab = empty_lab(3);
    let name: ClusterName = "kv".parse().unwrap();
    let mut kv = cluster(shipped("etcd"), spec("etcd", "etcd", 3));
    place::place(&lab, &name, &mut kv, &BTreeMap::new()).unwrap();
    lab.clusters.insert(name, kv);
    lab
}
