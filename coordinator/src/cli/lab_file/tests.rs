//! Golden errors of lab files: each at its place, with what to do.

use expect_test::{Expect, expect};

use super::*;

fn load_in(dir: &Path, text: &str) -> Result<Loaded, String> {
    load_text(dir.join("lab.toml"), text, Hosts::Here)
        .map_err(|failure| failure.to_string().replace(&dir.display().to_string(), "DIR"))
}

fn check(text: &str, expected: Expect) {
    let dir = tempfile::tempdir().unwrap();
    expected.assert_eq(&load_in(dir.path(), text).unwrap_err());
}

#[test]
fn a_path_that_is_no_program_is_shown_where_it_stands() {
    check(
        r#"
[cluster.kv]
blueprint = "etcd"

[cluster.kv.etcd]
count = 3
path = "bin/etcd"
node.2.path = "bin/etcd-next"
"#,
        expect![[r#"
            error: DIR/lab.toml has 2 mistakes

            error: DIR/bin/etcd does not exist
             --> DIR/lab.toml:7:8
              |
            7 | path = "bin/etcd"
              |        ^^^^^^^^^^
              = help: ls DIR/bin

            error: DIR/bin/etcd-next does not exist
             --> DIR/lab.toml:8:15
              |
            8 | node.2.path = "bin/etcd-next"
              |               ^^^^^^^^^^^^^^^
              = help: ls DIR/bin
              next: $EDITOR DIR/lab.toml"#]],
    );
}

#[test]
fn an_unknown_field_is_shown_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[cluster.kv]\nblueprint = \"etcd\"\n[cluster.kv.etcd]\ncuont = 3\n";
    let error = load_in(dir.path(), text).unwrap_err();
    assert!(error.contains("DIR/lab.toml:4:1"), "{error}");
    assert!(error.contains("cuont"), "{error}");
}

#[test]
fn all_mistakes_of_a_file_are_shown_at_once() {
    check(
        r#"
[cluster.kv]
blueprint = "etdc"
[fault.x]
isolate = "kv-1"
"#,
        expect![[r#"
            error: DIR/lab.toml has 2 mistakes

            error: there is no blueprint "etdc"
             --> DIR/lab.toml:3:13
              |
            3 | blueprint = "etdc"
              |             ^^^^^^
              = help: did you mean "etcd"?

            error: fault x does not say how long it lasts
             --> DIR/lab.toml:4:8
              |
            4 | [fault.x]
              |        ^
              = help: add for = "30s", or for = "none" until it is healed
              next: $EDITOR DIR/lab.toml"#]],
    );
}

#[test]
fn paths_become_absolute_and_configuration_becomes_its_content() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("db.toml"), "a = 1\n").unwrap();
    std::fs::write(dir.path().join("own.toml"), OWN).unwrap();
    std::os::unix::fs::symlink("/bin/sh", dir.path().join("db")).unwrap();
    let text = r#"
[cluster.kv]
blueprint = "./own.toml"
[cluster.kv.db]
path = "./db"
config = "db.toml"
"#;
    let loaded = load_in(dir.path(), text).unwrap();
    let role = loaded.file.cluster.values().next().unwrap().roles.values().next().unwrap().clone();
    assert_eq!(role.path.unwrap(), dir.path().join("db").display().to_string());
    assert_eq!(role.config.unwrap(), "a = 1\n");
}

/// A blueprint that takes a configuration file.
const OWN: &str = r#"
name = "own"
summary = "a database of one's own"
[role.db]
program = "sh"
count = 1
args = ["{{ node.dir }}/db.toml"]
files."db.toml" = "b = 2"
config = "db.toml"
"#;

#[test]
fn a_blueprint_of_ones_own_is_read_from_beside_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("own.toml"), OWN).unwrap();
    let loaded = load_in(dir.path(), "[cluster.kv]\nblueprint = \"./own.toml\"\n").unwrap();
    let path = dir.path().join("own.toml").display().to_string();
    assert_eq!(loaded.blueprints.keys().collect::<Vec<_>>(), [&path]);
    assert_eq!(loaded.file.cluster.values().next().unwrap().blueprint, path);
}

#[test]
fn a_fault_that_names_nobody_is_shown_before_a_lab_of_its_own_begins() {
    let dir = tempfile::tempdir().unwrap();
    let text = r#"
[cluster.kv]
blueprint = "etcd"

[fault.split]
partition = [["kv-1"], ["kv-9"]]
for = "30s"

[fault.slow]
from = "leader:vk"
to = "label:dc=east"
latency = "5ms"
for = "none"
"#;
    let loaded = load_in(dir.path(), text).unwrap();
    let error = loaded.check_alone(3).unwrap_err().to_string();
    let error = error.replace(&dir.path().display().to_string(), "DIR");
    expect![[r#"
        error: DIR/lab.toml has 3 mistakes

        error: fault split: "kv-9": there is no such node or cluster; there are kv, kv-1, kv-2, kv-3
         --> DIR/lab.toml:6:26
          |
        6 | partition = [["kv-1"], ["kv-9"]]
          |                          ^^^^

        error: fault slow: "leader:vk": there is no such cluster; did you mean "kv"?
          --> DIR/lab.toml:10:9
           |
        10 | from = "leader:vk"
           |         ^^^^^^^^^

        error: fault slow: "label:dc=east": no host has a label; write `labels = { KEY = "VALUE" }` in [host.NAME]
          --> DIR/lab.toml:11:7
           |
        11 | to = "label:dc=east"
           |       ^^^^^^^^^^^^^
          next: $EDITOR DIR/lab.toml"#]].assert_eq(&error);
    load_in(dir.path(), &text.replace("kv-9", "kv-3").replace("leader:vk", "leader:kv"))
        .map(|loaded| loaded.check_alone(3).unwrap_err())
        .map(|error| assert!(!error.to_string().contains("split"), "{error}"))
        .unwrap();
}

#[test]
fn a_refusal_of_a_running_lab_is_shown_where_the_file_says_it() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[cluster.kv]\nblueprint = \"etcd\"\n\n[fault.f]\nisolate = \"x-1\"\nfor = \"1s\"\n";
    let source = load_in(dir.path(), text).unwrap().source;
    let refused = Failure::refused("fault f: \"x-1\": there is no such node or cluster");
    let error = source.locate(refused).to_string();
    assert!(error.contains("lab.toml:5:12") && error.contains("no such node"), "{error}");
    let other = Failure::refused("the lab is at generation 4, not at 3");
    assert_eq!(source.locate(other.clone()), other);
}
