//! Golden errors of lab files: each at its place, with what to do.

use expect_test::{Expect, expect};

use super::*;

fn load_in(dir: &Path, text: &str) -> Result<Loaded, String> {
    load_text(dir.join("lab.toml"), text)
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

            DIR/lab.toml:7:8: DIR/bin/etcd does not exist
              |
            7 | path = "bin/etcd"
              |        ^^^^^^^^^^
              = ls DIR/bin

            DIR/lab.toml:8:15: DIR/bin/etcd-next does not exist
              |
            8 | node.2.path = "bin/etcd-next"
              |               ^^^^^^^^^^^^^^^
              = ls DIR/bin
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
fn paths_become_absolute_and_configuration_becomes_its_content() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("etcd.yml"), "a: 1\n").unwrap();
    std::os::unix::fs::symlink("/bin/sh", dir.path().join("etcd")).unwrap();
    let text = r#"
[cluster.kv]
blueprint = "etcd"
[cluster.kv.etcd]
path = "./etcd"
config = "etcd.yml"
"#;
    let loaded = load_in(dir.path(), text).unwrap();
    let role = loaded.file.cluster.values().next().unwrap().roles.values().next().unwrap().clone();
    assert_eq!(role.path.unwrap(), dir.path().join("etcd").display().to_string());
    assert_eq!(role.config.unwrap(), "a: 1\n");
}

#[test]
fn a_blueprint_of_ones_own_is_read_from_beside_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let own = crate::cli::blueprints::shipped_text("etcd").unwrap().replace("\"etcd\"", "\"sh\"");
    std::fs::write(dir.path().join("sh.toml"), own).unwrap();
    let loaded = load_in(dir.path(), "[cluster.kv]\nblueprint = \"./sh.toml\"\n").unwrap();
    let path = dir.path().join("sh.toml").display().to_string();
    assert_eq!(loaded.blueprints.keys().collect::<Vec<_>>(), [&path]);
    assert_eq!(loaded.file.cluster.values().next().unwrap().blueprint, path);
}
