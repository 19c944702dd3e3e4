//! Where programs are: PATH, and the directories outside it that a blueprint names.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use faultbed_common::search;

/// Where programs are looked for when the agent has no PATH.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// PATH, and after it every directory that one of these patterns means.
#[must_use]
pub fn path(patterns: &[String]) -> String {
    let own = std::env::var("PATH").unwrap_or_else(|_| PATH_DEFAULT.to_owned());
    extend(&own, patterns)
}

/// The environment of a node's commands: they find the database's tools where the database is.
#[must_use]
pub fn environment(
    env: &BTreeMap<String, String>,
    patterns: &[String],
) -> BTreeMap<String, String> {
    let mut env = env.clone();
    if !patterns.is_empty() {
        let path = match env.get("PATH") {
            Some(own) => extend(own, patterns),
            None => path(patterns),
        };
        env.insert("PATH".to_owned(), path);
    }
    env
}

fn extend(own: &str, patterns: &[String]) -> String {
    let mut dirs = vec![own.to_owned()];
    for pattern in patterns {
        dirs.extend(matches(pattern).into_iter().map(|dir| dir.display().to_string()));
    }
    dirs.join(":")
}

/// The directories that a pattern means and that there are, the highest version first.
fn matches(pattern: &str) -> Vec<PathBuf> {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let mut found = search::directories(pattern, std::env::home_dir().as_deref(), &names);
    found.retain(|dir| dir.is_dir());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_comes_first_and_path_before_all() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["9.6", "15", "13", "x"] {
            fs::create_dir_all(dir.path().join(version).join("bin")).unwrap();
        }
        fs::write(dir.path().join("16"), "no directory").unwrap();
        let pattern = format!("{}/*/bin", dir.path().display());
        let named = |version: &str| format!("{}/{version}/bin", dir.path().display());
        let wanted =
            format!("/own:{}:{}:{}:{}", named("15"), named("13"), named("9.6"), named("x"));
        assert_eq!(extend("/own", &[pattern.clone(), "/no/such/*/place".to_owned()]), wanted);
        let env = BTreeMap::from([("PATH".to_owned(), "/own".to_owned())]);
        assert_eq!(environment(&env, &[pattern])["PATH"], wanted);
        assert_eq!(environment(&env, &[]), env);
    }
}
