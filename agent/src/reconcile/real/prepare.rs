//! What a node needs on disk before it starts, and what goes when it leaves.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Component, Path},
};

use faultbed_common::host_spec::NodeSpec;

use super::tls;
use crate::{
    allow,
    node::records::{EXIT_FILE, RUN_FILE},
    probe::command::Ids,
};

/// Of a node's data directory: its user's alone.
const DATA_MODE: u32 = 0o700;

/// Makes the directories and files of a node.
pub(super) fn files(node_dir: &Path, spec: &NodeSpec) -> Result<(), String> {
    allow::check_paths(node_dir, spec)?;
    let owner = user(spec.launch.user.as_deref())?;
    make_dir(node_dir, owner)?;
    if let (Some(ids), Some(name)) = (owner, &spec.launch.user) {
        let above = node_dir.ancestors().map(|dir| (dir, fs::metadata(dir)));
        let above = above.filter_map(|(dir, metadata)| Some((dir, metadata.ok()?)));
        if let Some(closed) = first_closed(above.map(|(d, m)| (d, m.uid(), m.gid(), m.mode())), ids)
        {
            return Err(format!(
                "user {name} cannot enter {}, and a node runs as that user: keep the lab where all \
                 may enter, as with `faultbed up --dir /var/lib/faultbed`, or `chmod a+x` it",
                closed.display()
            ));
        }
    }
    make_dir(&spec.data, owner)?;
    // Databases warn about data that others can read, or refuse it.
    let close = fs::Permissions::from_mode(DATA_MODE);
    fs::set_permissions(&spec.data, close)
        .map_err(|error| format!("close {} to others: {error}", spec.data.display()))?;
    tls::files(node_dir, spec, owner, false)?;
    for dir in &spec.launch.dirs {
        make_dir(&node_dir.join(dir), owner)?;
    }
    for (path, content) in &spec.launch.files {
        let path = node_dir.join(path);
        if let Some(parent) = path.parent() {
            make_dir(parent, owner)?;
        }
        let describe = |error: io::Error| format!("write {}: {error}", path.display());
        // What has not changed keeps its times, and a disk that is full is no trouble then.
        if !fs::read(&path).is_ok_and(|held| held == content.as_bytes()) {
            fs::write(&path, content).map_err(describe)?;
        }
        own(&path, owner).map_err(describe)?;
    }
    Ok(())
}

/// The first of these directories (with owner, group and mode) that this user cannot pass through.
fn first_closed<'a>(
    dirs: impl Iterator<Item = (&'a Path, u32, u32, u32)>,
    Ids { uid, gid }: Ids,
) -> Option<&'a Path> {
    let is_closed = |owner, group, mode| match (owner == uid, group == gid) {
        (true, _) => mode & 0o100 == 0,
        (false, true) => mode & 0o010 == 0,
        (false, false) => mode & 0o001 == 0,
    };
    let mut closed =
        dirs.filter(|(_, owner, group, mode)| uid != 0 && is_closed(*owner, *group, *mode));
    closed.next().map(|(dir, ..)| dir)
}

pub(super) fn make_dir(dir: &Path, owner: Option<Ids>) -> Result<(), String> {
    let describe = |error: io::Error| format!("create {}: {error}", dir.display());
    if !dir.is_dir() {
        fs::create_dir_all(dir).map_err(describe)?;
    }
    own(dir, owner).map_err(describe)
}

pub(super) fn own(path: &Path, owner: Option<Ids>) -> io::Result<()> {
    match owner {
        Some(Ids { uid, gid }) => chown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

/// The user a node runs as, where that is another one than ours.
pub(crate) fn user(name: Option<&str>) -> Result<Option<Ids>, String> {
    Ok(entry(name)?.map(|(ids, _)| ids))
}

/// Where that user is at home: what belongs to ours he may not even look at, and clients such as psql
/// fail of it.
pub(crate) fn home(name: Option<&str>) -> Option<String> {
    entry(name).ok().flatten().map(|(_, home)| home).filter(|home| !home.is_empty())
}

fn entry(name: Option<&str>) -> Result<Option<(Ids, String)>, String> {
    let Some(name) = name.filter(|_| rustix::process::geteuid().is_root()) else {
        return Ok(None);
    };
    let users =
        fs::read_to_string("/etc/passwd").map_err(|error| format!("find users: {error}"))?;
    for line in users.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [held, _, uid, gid, _, home, ..] = fields[..]
            && (held == name || uid == name)
            && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
        {
            return Ok(Some((Ids { uid, gid }, home.to_owned())));
        }
    }
    Err(format!(
        "find user {name:?}: there is no such user on this host, and a node of this kind runs as that user: \
         make it with `useradd --system {name}`, or run the lab as another user than root"
    ))
}

/// Makes a run directory free of a start that was refused: its number was never used.
pub(super) fn free(dir: &Path) -> Result<(), String> {
    let describe = |error: io::Error| format!("prepare {}: {error}", dir.display());
    let never_ran = dir.join(EXIT_FILE).exists() && !dir.join(RUN_FILE).exists();
    if never_ran && super::is_free(dir).map_err(describe)? {
        fs::remove_dir_all(dir).map_err(describe)?;
    }
    Ok(())
}

/// Deletes a node's data. Only below the node's own directory: a spec cannot make us delete more.
pub(super) fn delete_data(node_dir: &Path, spec: &NodeSpec) -> Result<(), String> {
    let data = &spec.data;
    let is_plain = data.components().all(|part| part != Component::ParentDir);
    if !is_plain || !data.starts_with(node_dir) || data == node_dir {
        return Err(format!("{} is not below {}", data.display(), node_dir.display()));
    }
    remove(data)
}

/// Puts away what a node leaves: its runs in any case, its data where `wipe` says so.
pub(super) fn retire(node_dir: &Path, wipe: bool) -> Result<(), String> {
    if wipe {
        return remove(node_dir);
    }
    let runs = node_dir.join("runs");
    let old = node_dir.join("runs.old");
    let describe = |error: io::Error| format!("put away {}: {error}", runs.display());
    if runs.exists() {
        remove(&old)?;
        fs::rename(&runs, &old).map_err(describe)?;
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<(), String> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("delete {}: {error}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_the_user_of_a_node_cannot_pass_is_named() {
        let (home, lab) = (Path::new("/root"), Path::new("/root/lab"));
        let closed = |mode, uid, gid| {
            let dirs = [(lab, 0, 0, 0o755), (home, 0, 4, mode)];
            first_closed(dirs.into_iter(), Ids { uid, gid })
        };
        assert_eq!(closed(0o700, 7, 7), Some(home));
        assert_eq!(closed(0o701, 7, 7), None);
        assert_eq!(closed(0o701, 7, 4), Some(home), "its group counts, and not the others");
        assert_eq!(closed(0o710, 7, 4), None);
        assert_eq!(closed(0o700, 0, 0), None, "nothing is closed to root");
    }
}
