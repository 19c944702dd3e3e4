//! What can be copied, and what leads out of a node's directory.

use std::{fs, os::unix::fs::symlink};

use super::*;
use crate::reconcile::testing::{node, node_spec};

fn place(dir: &Path) -> Place {
    Place {
        lab: "try".parse().unwrap(),
        host: "h1".parse().unwrap(),
        name: node("kv-1"),
        dir: dir.to_owned(),
        spec: node_spec(),
        allow: Default::default(),
    }
}

/// A node's directory with some files, and a secret beside it.
fn node_dir() -> (tempfile::TempDir, PathBuf) {
    let all = tempfile::tempdir().unwrap();
    let dir = all.path().join("kv-1");
    fs::create_dir_all(dir.join("data/sub")).unwrap();
    fs::create_dir_all(dir.join("runs/0001")).unwrap();
    fs::write(dir.join("data/x"), "here").unwrap();
    fs::write(all.path().join("secret"), "elsewhere").unwrap();
    (all, dir)
}

fn read(dir: &Path, path: &str) -> Result<String, String> {
    let path = relative(&place(dir), path)?;
    let (mut file, _) = open(dir, &path)?;
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    Ok(text)
}

fn write(dir: &Path, path: &str) -> Result<(), String> {
    let path = relative(&place(dir), path)?;
    let mut taken = Taken::begin(dir, &path, 0o640, None)?;
    taken.file.write_all(b"new").unwrap();
    taken.finish().map_err(|error| error.to_string())
}

#[test]
fn files_of_the_node_are_read_by_either_name() {
    let (_all, dir) = node_dir();
    assert_eq!(read(&dir, "data/x").unwrap(), "here");
    assert_eq!(read(&dir, dir.join("data/x").to_str().unwrap()).unwrap(), "here");
    symlink("x", dir.join("data/link")).unwrap();
    assert_eq!(read(&dir, "data/link").unwrap(), "here", "a link that stays is followed");
    assert!(read(&dir, "data").unwrap_err().contains("is a directory"));
    assert!(read(&dir, "data/no").unwrap_err().contains("No such file"));
}

#[test]
fn nothing_leads_out_of_the_nodes_directory() {
    let (all, dir) = node_dir();
    let secret = all.path().join("secret");
    symlink(&secret, dir.join("data/absolute")).unwrap();
    symlink("../../secret", dir.join("data/relative")).unwrap();
    symlink(all.path(), dir.join("data/dir")).unwrap();
    symlink("/proc/self/root", dir.join("data/magic")).unwrap();
    for path in [
        "../secret",
        "data/../../secret",
        "/etc/passwd",
        secret.to_str().unwrap(),
        "data/absolute",
        "data/relative",
        "data/dir/secret",
        "data/magic/etc/passwd",
    ] {
        let error = read(&dir, path).unwrap_err();
        assert!(error.contains("not below") || error.contains("leads out"), "{path}: {error}");
    }
    for path in ["../new", "/tmp/new", "data/dir/new", "data/magic/tmp/new"] {
        assert!(write(&dir, path).is_err(), "{path}");
    }
    // A link in the place of the file itself is replaced, not followed.
    write(&dir, "data/absolute").unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "elsewhere");
    assert_eq!(fs::read_to_string(dir.join("data/absolute")).unwrap(), "new");
}

#[test]
fn a_file_is_taken_as_a_whole_and_the_records_are_not_for_writing() {
    let (_all, dir) = node_dir();
    write(&dir, "data/sub/new").unwrap();
    let meta = fs::metadata(dir.join("data/sub/new")).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o640);
    let path = PathBuf::from("data/x");
    let mut taken = Taken::begin(&dir, &path, 0o600, None).unwrap();
    taken.file.write_all(b"half").unwrap();
    drop(taken);
    assert_eq!(read(&dir, "data/x").unwrap(), "here");
    assert_eq!(fs::read_dir(dir.join("data")).unwrap().count(), 2, "nothing is left of it");
    symlink("../runs", dir.join("data/runs")).unwrap();
    for path in ["runs/0001/run.json", "node.json", "data/runs/0001/run.json", "./runs/0001/x"] {
        assert!(write(&dir, path).is_err(), "{path}");
    }
}
