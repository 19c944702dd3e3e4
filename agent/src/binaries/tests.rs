//! Which program a node runs when.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

fn program(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_name_is_looked_up_and_a_path_is_taken_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = program(dir.path(), "mykv", "one");
    let search = format!("/nowhere:{}", dir.path().display());
    assert_eq!(find("mykv", &search).unwrap().path, path);
    assert_eq!(find(path.to_str().unwrap(), "").unwrap().path, path);
    let error = find("yourkv", &search).unwrap_err().to_string();
    assert!(error.contains("find `yourkv`") && error.contains("/nowhere"), "{error}");
}

#[test]
fn what_is_no_program_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("text"), "x").unwrap();
    let search = dir.path().to_str().unwrap();
    for (name, why) in [
        (dir.path().join("text").to_str().unwrap(), "not executable"),
        (search, "not a file"),
        (dir.path().join("none").to_str().unwrap(), "No such file"),
        ("./text", "absolute path"),
        ("text", "not executable"),
    ] {
        let error = find(name, search).unwrap_err().to_string();
        assert!(error.contains(why), "{name}: {error}");
    }
}

#[test]
fn a_replaced_file_does_not_come_up_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = program(dir.path(), "mykv", "one");
    let bins = dir.path().join("bins");
    let found = find(path.to_str().unwrap(), "").unwrap();
    let binary = identify(&found, &bins).unwrap();
    assert_eq!(binary.sha256.as_ref().unwrap().len(), 64);
    assert_eq!(again(&binary).unwrap(), path);
    // A build writes a new file and renames it: the old one lives on under its pin.
    let next = program(dir.path(), "next", "two");
    fs::rename(next, &path).unwrap();
    let pinned = again(&binary).unwrap();
    assert_eq!(fs::read_to_string(&pinned).unwrap(), "one");
    assert_eq!(pinned.file_name().unwrap(), "mykv");
    // Without a pin it is refused.
    let unpinned = Binary { pinned: None, ..binary };
    let error = again(&unpinned).unwrap_err().to_string();
    assert!(error.contains("has changed since"), "{error}");
}

#[test]
fn a_file_that_was_overwritten_in_place_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = program(dir.path(), "mykv", "one");
    let found = find(path.to_str().unwrap(), "").unwrap();
    let binary = identify(&found, &dir.path().join("bins")).unwrap();
    fs::write(&path, "another one").unwrap();
    assert!(matches!(again(&binary), Err(BinaryError::Changed { .. })));
}

#[test]
fn a_version_is_noted_for_each_content_and_an_empty_note_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = program(dir.path(), "mykv", "one");
    let found = find(path.to_str().unwrap(), "").unwrap();
    let bins = dir.path().join("bins");
    let silent = identify(&found, &bins).unwrap();
    note_version(&silent, &bins);
    assert_eq!(identify(&found, &bins).unwrap().version, None);
    // Whoever was killed while it wrote leaves an empty note.
    let note = bins.join(silent.sha256.as_ref().unwrap()).join(VERSION_FILE);
    fs::write(note, "").unwrap();
    assert_eq!(identify(&found, &bins).unwrap().version, None);
    let said = Binary { version: Some("mykv 1".to_owned()), ..silent };
    note_version(&said, &bins);
    assert_eq!(identify(&found, &bins).unwrap(), said);
    let newer = Binary { version: Some("mykv 2".to_owned()), ..found.clone() };
    assert_eq!(identify(&newer, &bins).unwrap().version, newer.version, "it said so itself");
    let mut hashes = Hashes::default();
    hashes.learn(&said);
    hashes.learn(&newer);
    assert_eq!(hashes.known(&found), Some(said), "a version alone took its hash away");
}

#[test]
fn pins_that_no_node_runs_are_removed_but_the_newest_few() {
    let dir = tempfile::tempdir().unwrap();
    let bins = dir.path().join("bins");
    assert_eq!(prune(&bins, &BTreeSet::new()).unwrap(), Vec::<String>::new());
    let then = std::time::SystemTime::UNIX_EPOCH;
    for number in 0..UNUSED_MAX as u64 + 3 {
        let pin = bins.join(format!("hash{number}"));
        fs::create_dir_all(&pin).unwrap();
        fs::write(pin.join("program"), "x").unwrap();
        let at = then + std::time::Duration::from_secs(number);
        File::open(&pin).unwrap().set_modified(at).unwrap();
    }
    let used = BTreeSet::from(["hash0".to_owned()]);
    assert_eq!(prune(&bins, &used).unwrap(), ["hash1", "hash2"]);
    assert!(bins.join("hash0/program").exists(), "a node runs it");
    assert!(bins.join("hash3").exists() && !bins.join("hash1").exists());
}
