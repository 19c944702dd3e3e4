//! Lab files.

use expect_test::{expect, expect_file};

use super::*;
use crate::{
    fault::{Lasts, OneWay, Targets},
    testing,
};

#[test]
fn a_file_with_many_mistakes_shows_all_of_them() {
    let text = r#"[lab]
hosts = "3"

[cluster.kv]
blueprint = "etcd"
on_crash = "restrat"

[cluster.kv.etcd]
cuont = 3
count = 10_000_000
args = "--snapshot-count=1000"
env = { GOMAXPROCS = 1 }
hosts = ["h1", "h9"]
node.0.path = "bin/etcd"
node.two.path = "bin/etcd"

[cluster."a/b"]
blueprint = "etcd"
etcd.count = 0

[cluster.empty]

[fault.split]
partition = [["kv-1"]]

[fault.slow]
between = ["kv-1", "kv-2", "kv-3"]
latency = "-3s"
for = "soon"
one_way = "byte"

[faults.typo]
"#;
    expect_file!["./many_mistakes.txt"].assert_eq(&lab_errors(text));
}

#[test]
fn what_is_not_toml_is_shown_without_noise() {
    let text = "[lab]\nhosts = \n\n[cluster.kv\nblueprint = \"etcd\nx = 1\n";
    expect![[r#"
        error: string values must be quoted, expected literal string
         --> lab.toml:2:9
          |
        2 | hosts =
          |         ^

        error: unclosed table, expected `]`
         --> lab.toml:4:12
          |
        4 | [cluster.kv
          |            ^

    "#]]
    .assert_eq(&lab_errors(text));
    let twice = "[cluster.kv]\nblueprint = \"etcd\"\nblueprint = \"etcd\"\ncount = 3\n";
    expect![[r#"
        error: duplicate key
         --> lab.toml:3:1
          |
        3 | blueprint = "etcd"
          | ^^^^^^^^^

        error: count is a field of a role
         --> lab.toml:4:1
          |
        4 | count = 3
          | ^^^^^
          = help: write it in [cluster.kv.ROLE]; `faultbed blueprint show etcd` names the roles

    "#]]
    .assert_eq(&lab_errors(twice));
}

#[test]
fn a_file_of_ten_megabytes_is_refused_before_it_is_parsed() {
    let text = "#".repeat(10_000_000);
    expect![[r#"
        error: the file has 10000000 bytes; at most 1000000 are read
         --> lab.toml:1:1
          |
        1 | #################################################################################################################"#]].assert_eq(&lab_errors(&text)[..200]);
}

#[test]
fn names_that_are_none_are_refused_in_place() {
    let text = "[cluster.\"a\\nb\"]\nblueprint = \"etcd\"\n[fault.\"x/y\"]\nfor = \"none\"\n\
                [host.H1]\n[cluster.kv]\nblueprint = \"etcd\"\n[cluster.kv.Etcd]\n";
    expect![[r#"
        error: "a\nb" is not a cluster name: only lower-case letters, digits and '-' are allowed
         --> lab.toml:1:10
          |
        1 | [cluster."a\nb"]
          |          ^^^^^^

        error: "x/y" is not a fault name: only lower-case letters, digits and '-' are allowed
         --> lab.toml:3:8
          |
        3 | [fault."x/y"]
          |        ^^^^^

        error: fault x/y: it names no targets: write one of `partition`, `isolate`, `halves`, `minority`, `ring`, `bridge`, `from` and `to`, `between`, `on`
         --> lab.toml:3:8
          |
        3 | [fault."x/y"]
          |        ^^^^^

        error: "H1" is not a host name: it must start with a lower-case letter
         --> lab.toml:5:7
          |
        5 | [host.H1]
          |       ^^

        error: "Etcd" is not a role name: it must start with a lower-case letter
         --> lab.toml:8:13
          |
        8 | [cluster.kv.Etcd]
          |             ^^^^

    "#]]
    .assert_eq(&lab_errors(text));
}

#[test]
fn faults_are_read_in_every_way_they_are_written() {
    let text = r#"
[fault.a]
partition = [["leader:kv"], "kv-2,kv-3"]
for = "30s"
one_way = true
[fault.b]
between = ["label:dc=east", ["label:dc=west", "kv-9"]]
rtt = "80ms"
jitter = "5ms"
for = "none"
[fault.d]
from = "kv-1"
to = ["kv-2", "kv-3"]
cut = true
one_way = "packets"
for = "none"
[fault.c]
isolate = "kv-1"
for = "1m30s"
one_way = false
"#;
    let faults = parse_lab(text).unwrap().fault;
    let fault = |name: &str| &faults[&name.parse::<crate::name::FaultName>().unwrap()];
    let targets = |parts: &[&str]| Targets(parts.iter().map(|&part| part.to_owned()).collect());
    let split = Some(vec![targets(&["leader:kv"]), targets(&["kv-2", "kv-3"])]);
    assert_eq!(fault("a").partition, split);
    assert_eq!(fault("a").one_way, Some(OneWay::Bytes));
    assert_eq!(fault("b").lasts, Some(Lasts::UntilHealed));
    assert_eq!(fault("d").one_way, Some(OneWay::Packets));
    assert_eq!(fault("c").one_way, None);
}

#[test]
fn faults_that_make_no_sense_are_refused_in_place() {
    let text = r#"
[fault.shapeless]
for = "30s"
[fault.both]
isolate = "kv-1"
on = "kv-2"
for = "30s"
[fault.target]
isolate = "leader:"
for = "30s"
[fault.effect]
isolate = "kv-1"
pause = true
for = "30s"
[fault.empty]
isolate = []
for = "30s"
[fault.count]
isolate = "kv-1"
count = 3
clients = "yes"
for = 30
"#;
    expect![[r#"
        error: fault shapeless: it names no targets: write one of `partition`, `isolate`, `halves`, `minority`, `ring`, `bridge`, `from` and `to`, `between`, `on`
         --> lab.toml:2:8
          |
        2 | [fault.shapeless]
          |        ^^^^^^^^^

        error: fault both: isolate, on exclude each other: write one
         --> lab.toml:4:8
          |
        4 | [fault.both]
          |        ^^^^

        error: "leader:": it is empty; write NODE, CLUSTER, CLUSTER/ROLE, leader:CLUSTER, follower:CLUSTER, host:H, label:KEY=VALUE, clients or a glob such as 'kv-*'; `not:` before one excludes it
         --> lab.toml:9:11
          |
        9 | isolate = "leader:"
          |           ^^^^^^^^^

        error: fault effect: `pause` acts on nodes: name them with `on`
          --> lab.toml:11:8
           |
        11 | [fault.effect]
           |        ^^^^^^

        error: isolate names no target
          --> lab.toml:16:11
           |
        16 | isolate = []
           |           ^^

        error: unknown field "count" in [fault.count]
          --> lab.toml:20:1
           |
        20 | count = 3
           | ^^^^^
           = help: fields here are accept_delay, across, at, bandwidth, between, bridge, canary, clients, close_after, corrupt, cut, disk_stall, distribution, duplicate, effect, fast_heal, follow, for, from, grade, halves, heal, isolate, jam, jitter, kill, latency, limit, loss, minority, on, one_way, partition, pause, preset, probability, refuse, reorder, reset, reset_after, ring, rtt, seed, slice, slow_close, stall, stop, time_out, to, values

        error: clients must be true or false, and this is a text
          --> lab.toml:21:11
           |
        21 | clients = "yes"
           |           ^^^^^

        error: for must be a duration, and this is a whole number
          --> lab.toml:22:7
           |
        22 | for = 30
           |       ^^
           = help: write "30s" for seconds

    "#]].assert_eq(&lab_errors(text));
}

#[test]
fn a_refused_shape_or_target_is_shown_at_the_fault() {
    let checks = Checks {
        shape: |spec| match spec.isolate {
            Some(_) => Ok(()),
            None => Err(ShapeError::Malformed("it has no shape".to_owned())),
        },
        target: |target| match target {
            "kv 1" => Err(TargetError {
                target: target.to_owned(),
                why: "a target has no space in it".to_owned(),
                later: false,
            }),
            _ => Ok(()),
        },
    };
    let text =
        "[fault.x]\nfor = \"none\"\n[fault.y]\nisolate = [\"kv-1\", \"kv 1\"]\nfor = \"1s\"\n";
    expect![[r#"
        error: fault x: it has no shape
         --> lab.toml:1:8
          |
        1 | [fault.x]
          |        ^

        error: "kv 1": a target has no space in it
         --> lab.toml:4:20
          |
        4 | isolate = ["kv-1", "kv 1"]
          |                    ^^^^^^

    "#]]
    .assert_eq(&show(text, &parse_lab_with(text, &checks).unwrap_err()));
}

#[test]
fn clusters_are_checked_against_their_blueprints() {
    let text = r#"
[cluster.kv]
blueprint = "etdc"
[cluster.db]
blueprint = "etcd"
[cluster.db.ectd]
count = 1
[cluster.db.etcd]
config = "etcd.yml"
node.2.config = "other.yml"
count = 0
[fault.f]
on = "leader:db"
effect = "freeze"
for = "none"
"#;
    let find = |name: &str| (name == "etcd").then(|| testing::shipped("etcd"));
    let problems = check_roles(text, &find, &["etcd".to_owned()]).unwrap_err();
    expect![[r#"
        error: there is no blueprint "etdc"
         --> lab.toml:3:13
          |
        3 | blueprint = "etdc"
          |             ^^^^^^
          = help: did you mean "etcd"?

        error: blueprint etcd has no role "ectd"
         --> lab.toml:6:13
          |
        6 | [cluster.db.ectd]
          |             ^^^^
          = help: did you mean "etcd"?

        error: this role takes no configuration file; use args or env instead
         --> lab.toml:9:1
          |
        9 | config = "etcd.yml"
          | ^^^^^^

        error: this role takes no configuration file; use args or env instead
          --> lab.toml:10:8
           |
        10 | node.2.config = "other.yml"
           |        ^^^^^^

        error: count is 0; it goes from 1 to 1000
          --> lab.toml:11:9
           |
        11 | count = 0
           |         ^
           = help: leave the field out for the blueprint's own count

        error: blueprint etcd has no effect "freeze"; it has failpoint, move-leader
          --> lab.toml:14:10
           |
        14 | effect = "freeze"
           |          ^^^^^^^^

    "#]]
    .assert_eq(&show(text, &problems));
}

#[test]
fn columns_count_characters_and_long_lines_are_shown_in_part() {
    assert_eq!(line_column("aé\nüb", 0), (1, 1));
    assert_eq!(line_column("aé\nüb", 6), (2, 2));
    assert_eq!(line_column("aé", 99), (1, 3));
    let text = format!("[lab]\nname = {{ a = \"{}\", b = 1 }}\n", "x\u{1b}".repeat(300));
    expect![[r#"
        error: invalid basic string, expected non-double-quote visible characters, `\`
         --> lab.toml:2:16
          |
        2 | name = { a = "x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�x�…
          |                ^

    "#]].assert_eq(&lab_errors(&text));
}

#[test]
fn the_examples_that_ship_are_right() {
    for (name, text) in [
        ("etcd.toml", include_str!("../../../../deploy/examples/etcd.toml")),
        ("faults.toml", include_str!("../../../../deploy/examples/faults.toml")),
    ] {
        if let Err(problems) = parse_lab(text) {
            panic!("{name}: {}", show(text, &problems));
        }
        let find = |name: &str| (name == "etcd").then(|| testing::shipped("etcd"));
        check_roles(text, &find, &[]).unwrap();
    }
}
