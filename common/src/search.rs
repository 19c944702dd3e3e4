//! Which directories a pattern of a blueprint means: `~/.tiup/components/pd/*`. What there is, the caller says.

use std::{
    cmp::Ordering,
    path::{Path, PathBuf},
};

/// More directories that match one pattern are not looked into.
const MATCHES_MAX: usize = 100;

/// The directories that a pattern may mean, the highest version first; `names` tells what is in one.
#[must_use]
pub fn directories(
    pattern: &str,
    home: Option<&Path>,
    names: &dyn Fn(&Path) -> Vec<String>,
) -> Vec<PathBuf> {
    let (mut found, rest) = match pattern.strip_prefix("~/") {
        Some(rest) => (home.map(Path::to_owned).into_iter().collect::<Vec<_>>(), rest),
        None => (vec![PathBuf::from("/")], pattern),
    };
    for part in rest.split('/').filter(|part| !part.is_empty()) {
        let next = found.iter().flat_map(|dir| step(dir, part, names));
        found = next.take(MATCHES_MAX).collect();
    }
    found
}

/// What one part of a pattern means in a directory.
fn step(dir: &Path, part: &str, names: &dyn Fn(&Path) -> Vec<String>) -> Vec<PathBuf> {
    let Some((before, after)) = part.split_once('*') else { return vec![dir.join(part)] };
    let mut names: Vec<String> = names(dir)
        .into_iter()
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
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(by_version("v8.5.7", "v8.5.10"), Ordering::Less);
        assert_eq!(by_version("pgsql-15", "pgsql-9"), Ordering::Greater);
        assert_eq!(by_version("a", "b"), Ordering::Less);
    }
}
