//! What nodes are told, as their users would see it.

use expect_test::{expect, expect_file};

use super::*;
use crate::{name::RoleName, spec::ClusterSpec, testing};

#[test]
fn etcd_is_told_private_addresses_to_bind_and_proxies_to_dial() {
    let lab = testing::lab();
    let (name, cluster) = lab.clusters.first_key_value().unwrap();
    let spec = render(&lab, name, cluster, &"kv-2".parse().unwrap()).unwrap();
    expect_file!["./tests/etcd_node.json"].assert_eq(&serde_json::to_string_pretty(&spec).unwrap());
}

fn db_lab() -> Lab {
    let mut lab = testing::empty_lab(3);
    testing::add(&mut lab, "db", testing::db_blueprint(), ClusterSpec::default());
    lab
}

/// A node of the lab as it is started.
fn node(lab: &Lab, node: &str) -> NodeSpec {
    let (name, cluster) = lab.clusters.first_key_value().unwrap();
    render(lab, name, cluster, &node.parse().unwrap()).unwrap()
}

fn refusal(lab: &Lab, node: &str) -> String {
    let (name, cluster) = lab.clusters.first_key_value().unwrap();
    render(lab, name, cluster, &node.parse().unwrap()).unwrap_err().to_string()
}

fn role<'a>(lab: &'a mut Lab, name: &str) -> &'a mut RoleSpec {
    let cluster = lab.clusters.values_mut().next().unwrap();
    cluster.spec.roles.entry(name.parse().unwrap()).or_default()
}

#[test]
fn a_node_sees_itself_privately_and_its_peers_through_their_proxies() {
    let spec = node(&db_lab(), "db-meta-2");
    // An argument that renders to nothing stays an argument.
    expect![[r#"
        [
            "--id=2",
            "",
            "--peers=127.77.5.1:7001,127.130.128.2:7001,127.77.5.3:7001",
        ]"#]]
    .assert_eq(&format!("{:#?}", spec.launch.args));
    assert_eq!(spec.launch.env["TOKEN"], "t1");
    assert_eq!(spec.on_crash, crate::spec::OnCrash::Restart);
    assert_eq!(spec.launch.bootstrap, None);
    let first = node(&db_lab(), "db-meta-1");
    expect![[r#"Some(Bootstrap { command: ["metactl", "init", "127.77.5.1:7000"], done: Some("already") })"#]].assert_eq(&format!("{:?}", first.launch.bootstrap));
    expect![[r#"[{"grpc":{"address":"127.130.128.1:7000","service":"meta.Health"},"timeout":"1s"},{"command":{"argv":["metactl","role","127.130.128.1:7000"]},"timeout":"1s","state":"text","leads":"json.n"}]"#]].assert_eq(&serde_json::to_string(&(first.ready, first.role_state)).unwrap());
}

#[test]
fn files_directories_limits_and_the_rest_are_rendered() {
    let spec = node(&db_lab(), "db-store-2");
    expect![[r#"
        {
          "cluster": "db",
          "blueprint": "db",
          "role": "store",
          "wanted": "running",
          "incarnation": 1,
          "stop_by": "grace",
          "wipes": 0,
          "gate": "waiting for meta of db",
          "launch": {
            "program": "store",
            "args": [
              "--meta=127.77.5.1:7000,127.77.5.2:7000,127.77.5.3:7000",
              "--metrics=127.130.128.5:7011"
            ],
            "env": {},
            "user": "store",
            "dirs": [
              "/lab/hosts/h2/nodes/db-store-2/wal",
              "/lab/hosts/h2/nodes/db-store-2/data/tmp"
            ],
            "files": {
              "/lab/hosts/h2/nodes/db-store-2/notes.txt": "db-store-2 on h2\n",
              "/lab/hosts/h2/nodes/db-store-2/store.toml": "[server]\naddress = \"127.130.128.5:7010\"\npeers = [\n  \"127.77.5.1:7010\",\n]\n"
            },
            "init": [
              [
                "mkstore",
                "/lab/hosts/h2/nodes/db-store-2/data"
              ]
            ],
            "limits": {
              "core": 18446744073709551615
            }
          },
          "data": "/lab/hosts/h2/nodes/db-store-2/data",
          "private": "127.130.128.5",
          "address": "127.77.5.2",
          "ports": {
            "metrics": {
              "port": 7011,
              "proxied": false
            },
            "sql": {
              "port": 7010,
              "proxied": true
            }
          },
          "logs": [
            "/lab/hosts/h2/nodes/db-store-2/store.log"
          ],
          "ready": {
            "tcp": {
              "address": "127.130.128.5:7010"
            },
            "timeout": "3s"
          },
          "stop": {
            "signal": 2,
            "grace": "1m"
          },
          "on_crash": "restart",
          "faults": {}
        }"#]].assert_eq(&serde_json::to_string_pretty(&spec).unwrap());
}

#[test]
fn what_the_user_adds_comes_last_and_is_no_template() {
    let mut lab = db_lab();
    let user = role(&mut lab, "store");
    user.args = vec!["--x={{ node }}".to_owned()];
    user.path = Some("/opt/store".to_owned());
    user.env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
    user.config = Some("[server]\naddress = \"0.0.0.0\"\n[log]\nlevel = \"debug\"\n".to_owned());
    let own = NodeOverride {
        path: Some("host:/usr/bin/store".to_owned()),
        args: Some(vec!["--own".to_owned()]),
        env: BTreeMap::from([("A".to_owned(), "2".to_owned())]),
        ..NodeOverride::default()
    };
    user.node.insert(2, own);
    let (one, two) = (node(&lab, "db-store-1").launch, node(&lab, "db-store-2").launch);
    assert_eq!(one.args.last().unwrap(), "--x={{ node }}");
    assert_eq!((one.program.as_str(), one.env["A"].as_str()), ("/opt/store", "1"));
    assert_eq!(two.args.last().unwrap(), "--own");
    assert_eq!(one.search, ["/opt"], "its tools may be beside it");
    assert_eq!((two.program.as_str(), two.env["A"].as_str()), ("/usr/bin/store", "2"));
    let path = Path::new("/lab/hosts/h1/nodes/db-store-1/store.toml");
    expect![[r#"
        [log]
        level = "debug"

        [server]
        address = "0.0.0.0"
        peers = ["127.77.5.2:7010"]
    "#]]
    .assert_eq(&one.files[path]);
}

#[test]
fn a_configuration_that_cannot_be_merged_is_refused() {
    let mut lab = db_lab();
    role(&mut lab, "store").config = Some("store.toml".to_owned());
    let mut said = refusal(&lab, "db-store-1") + "\n";
    role(&mut lab, "store").config = Some("a = \n".to_owned());
    said += &(refusal(&lab, "db-store-1") + "\n");
    role(&mut lab, "meta").config = Some("a = 1\n".to_owned());
    said += &refusal(&lab, "db-meta-1");
    expect![[r#"
        db-store-1: config: the file "store.toml" was named and not read
        db-store-1: config: the configuration: string values must be quoted, expected literal string
        db-meta-1: config: this role takes no configuration file; use args or env instead"#]]
    .assert_eq(&said);
}

#[test]
fn a_role_waits_for_those_before_it() {
    let mut lab = db_lab();
    assert_eq!(node(&lab, "db-store-1").gate.as_deref(), Some("waiting for meta of db"));
    assert_eq!(node(&lab, "db-meta-1").gate, None);
    let cluster = lab.clusters.values_mut().next().unwrap();
    cluster.been_ready.insert("meta".parse().unwrap());
    assert_eq!(node(&lab, "db-store-1").gate, None);
}

#[test]
fn a_node_that_joins_is_told_so() {
    let mut lab = db_lab();
    assert_eq!(node(&lab, "db-meta-3").launch.join, None);
    let cluster = lab.clusters.values_mut().next().unwrap();
    cluster.nodes.get_mut(&"db-meta-3".parse::<NodeName>().unwrap()).unwrap().joined = true;
    let launch = node(&lab, "db-meta-3").launch;
    assert_eq!(launch.join.unwrap(), ["metactl", "add", "db-meta-3"]);
    assert_eq!(launch.args, ["--joins=127.77.5.1:7000"]);
}

#[test]
fn a_node_that_joined_is_told_to_the_cluster_once_it_runs() {
    let mut lab = db_lab();
    let cluster = lab.clusters.values_mut().next().unwrap();
    let meta = cluster.blueprint.roles.get_mut(&"meta".parse::<RoleName>().unwrap()).unwrap();
    let after = ["metactl", "meet", "{{ port.client.advertise }}"].map(str::to_owned).to_vec();
    meta.join = Some(blueprint::Hook { after, ..blueprint::Hook::default() });
    cluster.nodes.get_mut(&"db-meta-3".parse::<NodeName>().unwrap()).unwrap().joined = true;
    let command = |name| node(&lab, name).launch.bootstrap.map(|bootstrap| bootstrap.command);
    assert_eq!(command("db-meta-1").unwrap(), ["metactl", "init", "127.77.5.1:7000"]);
    assert_eq!(command("db-meta-2"), None);
    assert_eq!(command("db-meta-3").unwrap(), ["metactl", "meet", "127.77.5.3:7000"]);
    assert_eq!(node(&lab, "db-meta-3").launch.join, None, "nothing is run before it starts");
}

#[test]
fn effects_are_rendered_for_the_nodes_that_have_them() {
    let lab = db_lab();
    let (name, cluster) = lab.clusters.first_key_value().unwrap();
    let effect = |node: &str, effect: &str| {
        custom_effect(&lab, name, cluster, &node.parse().unwrap(), effect)
    };
    let freeze = effect("db-store-1", "freeze").unwrap();
    expect![[r#"
        {
          "custom": {
            "name": "freeze",
            "on": {
              "http": {
                "method": "PUT",
                "url": "127.130.128.4:7010/freeze",
                "body": "{}"
              },
              "timeout": "1s"
            },
            "off": {
              "http": {
                "method": "DELETE",
                "url": "127.130.128.4:7010/freeze"
              },
              "expect": "status == 204",
              "timeout": "1s"
            }
          }
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&freeze).unwrap());
    let refused = [effect("db-meta-1", "freeze"), effect("db-store-1", "freez")]
        .map(|refused| refused.unwrap_err().to_string())
        .join("\n");
    expect![[r#"
        db-meta-1: effect.freeze: it is an effect of store, and this node is meta
        db-store-1: effect.freez: blueprint db has no effect "freez"; did you mean "freeze"?"#]]
    .assert_eq(&refused);
}

#[test]
fn a_wrong_name_in_a_template_names_the_template_and_itself() {
    let mut lab = db_lab();
    let cluster = lab.clusters.values_mut().next().unwrap();
    let store = cluster.blueprint.roles.get_mut(&"store".parse::<RoleName>().unwrap()).unwrap();
    store.args[0] = "--meta={{ role.mtea }}".to_owned();
    expect![[r#"db-store-1: args[0]: "role.mtea" is undefined"#]]
        .assert_eq(&refusal(&lab, "db-store-1"));
}
