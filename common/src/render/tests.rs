//! What nodes are told, as their users would see it.

use expect_test::expect;

use super::*;
use crate::testing;

#[test]
fn etcd_is_told_private_addresses_to_bind_and_proxies_to_dial() {
    let lab = testing::lab();
    let (name, cluster) = lab.clusters.first_key_value().unwrap();
    let spec = render(&lab, name, cluster, &"kv-2".parse().unwrap()).unwrap();
    expect![[r#"
        {
          "cluster": "kv",
          "role": "etcd",
          "wanted": "running",
          "incarnation": 1,
          "stop_by": "grace",
          "wipes": 0,
          "launch": {
            "program": "etcd",
            "args": [
              "--name=kv-2",
              "--data-dir=/lab/hosts/h2/nodes/kv-2/data",
              "--logger=zap",
              "--log-outputs=stderr",
              "--listen-client-urls=http://127.130.128.2:2379",
              "--advertise-client-urls=http://127.77.5.2:2379",
              "--listen-peer-urls=http://127.130.128.2:2380",
              "--initial-advertise-peer-urls=http://127.77.5.2:2380",
              "--initial-cluster=kv-1=http://127.77.5.1:2380,kv-2=http://127.77.5.2:2380,kv-3=http://127.77.5.3:2380",
              "--initial-cluster-token=t1",
              "--initial-cluster-state=new"
            ],
            "env": {},
            "dirs": [],
            "files": {},
            "init": [],
            "leave": [
              "sh",
              "-c",
              "e=--endpoints=$1; id=$(etcdctl $e member list | grep -F \", $2,\" | cut -d, -f1); etcdctl $e member remove $id",
              "leave",
              "127.77.5.1:2379,127.77.5.3:2379",
              "kv-2"
            ],
            "limits": {
              "nofile": 65536
            },
            "version": [
              "--version"
            ]
          },
          "data": "/lab/hosts/h2/nodes/kv-2/data",
          "private": "127.130.128.2",
          "address": "127.77.5.2",
          "ports": {
            "client": {
              "port": 2379,
              "proxied": true,
              "url": "http"
            },
            "peer": {
              "port": 2380,
              "proxied": true,
              "url": "http"
            }
          },
          "logs": [],
          "ready": {
            "http": {
              "method": "GET",
              "url": "127.130.128.2:2379/health"
            },
            "expect": "status == 200 and json.health == 'true'",
            "timeout": "1s"
          },
          "role_state": {
            "http": {
              "method": "POST",
              "url": "127.130.128.2:2379/v3/maintenance/status",
              "body": "{}"
            },
            "timeout": "1s",
            "leader": "json.leader == json.header.member_id",
            "term": "json.raftTerm"
          },
          "stop": {
            "signal": 15,
            "grace": "10s"
          },
          "on_crash": "stay",
          "faults": {},
          "dials": []
        }"#]].assert_eq(&serde_json::to_string_pretty(&spec).unwrap());
}
