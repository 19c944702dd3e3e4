//! What this host lets a lab do: the `[allow]` table of `agent.toml`, which wins over everything a
//! coordinator says. Whoever may write the lab's store can run programs here; this bounds which.
//!
//! ```toml
//! [allow]
//! users = ["etcd", "postgres"]            # nodes run as one of these; without it, as any
//! paths = ["/usr/bin", "/opt/databases"]  # programs are below one of these; without it, anywhere
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Component, Path, PathBuf},
};

use faultbed_common::host_spec::NodeSpec;
use serde::{Deserialize, Serialize};

use crate::binaries;

/// Largest `agent.toml` that is read.
const BYTES_MAX: u64 = 1 << 20;

/// What a host lets a lab do. The default is everything, below the nodes' own directories.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Allow {
    /// Users that nodes may run as; `None` is any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<String>>,
    /// Below which programs may be; `None` is anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<PathBuf>>,
}

/// The part of `agent.toml` that is read here; the rest is the agent's own.
#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    allow: Allow,
}

impl Allow {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the table of a file; everything is allowed where there is no such file.
    ///
    /// # Errors
    /// It cannot be read or means nothing. Then nothing may run: a limit that is misspelt is none.
    pub fn read(path: &Path) -> Result<Self, String> {
        let describe = |error: io::Error| format!("read {}: {error}", path.display());
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(describe(error)),
            Ok(meta) if meta.len() > BYTES_MAX => {
                return Err(format!("read {}: it has more than {BYTES_MAX} bytes", path.display()));
            }
            Ok(_) => {}
        }
        let text = fs::read_to_string(path).map_err(describe)?;
        Self::parse(&text).map_err(|why| format!("read {}: {why}", path.display()))
    }

    /// Reads the table out of the text of `agent.toml`.
    ///
    /// # Errors
    /// Where it is wrong and what can be written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        for path in file.allow.paths.iter().flatten() {
            let is_plain = path.components().all(|part| part != Component::ParentDir);
            if !path.is_absolute() || !is_plain {
                return Err(format!("[allow] paths: {} is no absolute path", path.display()));
            }
        }
        Ok(file.allow)
    }

    /// Whether a node may have the user that its spec names, or, where it names none, the agent's
    /// own.
    ///
    /// # Errors
    /// It may not; says what to do.
    pub fn check_user(&self, user: Option<&str>) -> Result<(), String> {
        let Some(users) = &self.users else { return Ok(()) };
        // Only root can become another user; anybody else's nodes run as themselves.
        let is_root = rustix::process::geteuid().is_root();
        let name = match user.filter(|_| is_root) {
            Some(user) => user.to_owned(),
            None => own_name(),
        };
        if users.contains(&name) {
            return Ok(());
        }
        Err(format!(
            "run as user {name:?}: this host's agent.toml allows {}; add it to [allow] users there, \
             or name one of these in the blueprint",
            listed(users)
        ))
    }

    /// Whether a program may be run.
    ///
    /// # Errors
    /// It may not; says what to do.
    pub fn check_program(&self, program: &Path) -> Result<(), String> {
        let Some(paths) = &self.paths else { return Ok(()) };
        // By what it is, not by what links to it. One that is gone is run from its pinned copy.
        let real = fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
        if real.components().any(|part| part == Component::ParentDir) {
            return Err(format!("run {}: there is no such program", real.display()));
        }
        let is_below = |path: &PathBuf| {
            real.starts_with(path)
                || fs::canonicalize(path).is_ok_and(|path| real.starts_with(path))
        };
        if paths.iter().any(is_below) {
            return Ok(());
        }
        let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        Err(format!(
            "run {}: this host's agent.toml allows programs below {}; add its directory to [allow] \
             paths there",
            real.display(),
            listed(&names)
        ))
    }
}

/// Whether everything that a node's spec names to be made or read is below the node's directory.
/// Specs come from outside: whatever a blueprint says, it touches nothing else.
///
/// # Errors
/// Names the path.
pub fn check_paths(node_dir: &Path, spec: &NodeSpec) -> Result<(), String> {
    let launch = &spec.launch;
    let all = launch.dirs.iter().chain(launch.files.keys()).chain(&spec.logs);
    for path in all.chain([&spec.data]) {
        let whole = node_dir.join(path);
        let climbs = whole.components().any(|part| part == Component::ParentDir);
        if climbs || !whole.starts_with(node_dir) || whole == node_dir {
            return Err(format!(
                "{} is outside of what a blueprint may touch: name a path below {}",
                path.display(),
                node_dir.display()
            ));
        }
    }
    Ok(())
}

impl Allow {
    /// Whether a command may be run that is named as in a shell: with a slash a file, else looked up
    /// in the PATH that it will have.
    ///
    /// # Errors
    /// It may not, or is not there.
    pub fn check_command(
        &self,
        program: &str,
        env: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        if self.paths.is_none() {
            return Ok(());
        }
        let search = env.get("PATH").cloned().or_else(|| std::env::var("PATH").ok());
        let binary = binaries::find(program, &search.unwrap_or_default())
            .map_err(|error| error.to_string())?;
        self.check_program(&binary.path)
    }
}

fn listed(words: &[String]) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// The name of the user that we are; its number where it has none.
fn own_name() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    found.unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::reconcile::testing::node_spec;

    #[test]
    fn the_table_is_read_beside_what_is_the_agents_own() {
        let text = "lab = \"prod\"\ncoordinators = [\"https://a:1\"]\n\n[allow]\nusers = [\"etcd\"]\n\
                    paths = [\"/usr/bin\"]\n";
        let allow = Allow::parse(text).unwrap();
        assert_eq!(allow.users, Some(vec!["etcd".to_owned()]));
        assert_eq!(allow.paths, Some(vec!["/usr/bin".into()]));
        assert_eq!(Allow::parse("lab = \"prod\"").unwrap(), Allow::default());
        for (text, reason) in [
            ("[allow]\npath = [\"/usr\"]", "unknown field `path`"),
            ("[allow]\npaths = [\"bin\"]", "bin is no absolute path"),
            ("[allow]\npaths = [\"/usr/../etc\"]", "is no absolute path"),
            ("[allow", "TOML"),
        ] {
            let error = Allow::parse(text).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let nowhere = Path::new("/no/such/agent.toml");
        assert_eq!(Allow::read(nowhere).unwrap(), Allow::default());
    }

    #[test]
    fn programs_are_judged_by_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let allowed = dir.path().join("allowed");
        fs::create_dir(&allowed).unwrap();
        fs::write(allowed.join("good"), "").unwrap();
        fs::write(dir.path().join("bad"), "").unwrap();
        symlink(dir.path().join("bad"), allowed.join("link")).unwrap();
        let allow = Allow { paths: Some(vec![allowed.clone()]), ..Allow::default() };
        assert_eq!(allow.check_program(&allowed.join("good")), Ok(()));
        for program in [dir.path().join("bad"), allowed.join("link"), allowed.join("../bad")] {
            let error = allow.check_program(&program).unwrap_err();
            assert!(error.contains("agent.toml allows programs below"), "{error}");
        }
        assert_eq!(Allow::default().check_program(&dir.path().join("bad")), Ok(()));
        let nothing = Allow { paths: Some(Vec::new()), ..Allow::default() };
        assert!(nothing.check_program(&allowed.join("good")).unwrap_err().contains("below none"));
    }

    #[test]
    fn users_are_those_of_the_table() {
        let mine = own_name();
        let allow = Allow { users: Some(vec![mine.clone()]), ..Allow::default() };
        assert_eq!(allow.check_user(None), Ok(()));
        assert_eq!(allow.check_user(Some(&mine)), Ok(()));
        let others = Allow { users: Some(vec!["nobody-else".to_owned()]), ..Allow::default() };
        let error = others.check_user(Some(&mine)).unwrap_err();
        assert!(error.contains("agent.toml allows nobody-else"), "{error}");
        assert_eq!(Allow::default().check_user(Some("root")), Ok(()));
    }

    #[test]
    fn a_path_outside_what_a_blueprint_may_touch_is_refused() {
        let dir = Path::new("/lab/nodes/x");
        assert_eq!(check_paths(dir, &node_spec()), Ok(()));
        let outside = ["/etc/cron.d/x", "../y/data", "/lab/nodes/x/../y", "/lab/nodes/xy", "."];
        for path in outside.map(PathBuf::from) {
            let mut files = node_spec();
            files.launch.files.insert(path.clone(), "* * * * * root sh".to_owned());
            let mut dirs = node_spec();
            dirs.launch.dirs.push(path.clone());
            let mut logs = node_spec();
            logs.logs.push(path.clone());
            let mut data = node_spec();
            data.data = path.clone();
            for spec in [files, dirs, logs, data] {
                let error = check_paths(dir, &spec).unwrap_err();
                assert!(error.contains("outside of what a blueprint may touch"), "{error}");
            }
        }
    }
}
