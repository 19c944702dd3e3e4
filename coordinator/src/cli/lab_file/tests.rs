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
