//! Where programs are: PATH, and the directories outside it that a blueprint names.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Where programs are looked for when the agent has no PATH.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// More directories that match one pattern are not looked into.
const MATCHES_MAX: usize = 100;

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

/// The directories that a pattern means, the highest version first.
fn matches(pattern: &str) -> Vec<PathBuf> {
    let (mut found, rest) = match pattern.strip_prefix("~/") {
        Some(rest) => (std::env::home_dir().into_iter().collect::<Vec<_>>(), rest),
        None => (vec![PathBuf::from("/")], pattern),
    };
    for part in rest.split('/').filter(|part| !part.is_empty()) {
        found = found.iter().flat_map(|dir| step(dir, part)).take(MATCHES_MAX).collect();
    }
    found.retain(|dir| dir.is_dir());
    found
}

/// What one part of a pattern means in a directory.
fn step(dir: &Path, part: &str) -> Vec<PathBuf> {
    let Some((before, after)) = part.split_once('*') else { return vec![dir.join(part)] };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| name.len() >= before.len() + after.len())
        .filter(|name| name.starts_with(before) && name.ends_with(after))
        .collect();
    names.sort_by(|a, b| by_version(b, a));
    names.into_iter().map(|name| dir.join(name)).collect()
}

/// `9` comes before `15`, and `v8.5.7` before `v8.5.10`.
fn by_version(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| {
        let numbers = text.split(|c: char| !c.is_ascii_digit());
        numbers.filter_map(|digits| digits.parse::<u64>().ok()).collect::<Vec<_>>()
    };
    parts(a).cmp(&parts(b)).then_with(|| a.cmp(b))
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

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(by_version("v8.5.7", "v8.5.10"), Ordering::Less);
        assert_eq!(by_version("pgsql-15", "pgsql-9"), Ordering::Greater);
        assert_eq!(by_version("a", "b"), Ordering::Less);
    }
}
