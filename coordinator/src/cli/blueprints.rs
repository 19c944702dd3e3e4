//! Finds blueprints by name or path: those that ship with Faultbed, and the user's own files.

use std::{collections::BTreeMap, path::Path};

use faultbed_common::{
    blueprint::Blueprint,
    file::{self, SHIPPED},
};

use crate::cli::{failure::Failure, lab_file, paths, status};

/// The blueprints that ship with Faultbed, by name. One that does not parse is left out: a test
/// holds that there is none.
#[must_use]
pub fn shipped() -> BTreeMap<String, Blueprint> {
    SHIPPED
        .iter()
        .filter_map(|(name, text)| Some(((*name).to_owned(), file::parse_blueprint(text).ok()?)))
        .collect()
}

/// The text of a shipped blueprint.
#[must_use]
pub fn shipped_text(name: &str) -> Option<&'static str> {
    SHIPPED.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Whether a blueprint's name is a path to a file.
#[must_use]
pub fn is_path(name: &str) -> bool {
    name.contains('/')
}

/// A blueprint by name, or by the path of its file, relative to `base`. Gives the name or absolute
/// path that a spec holds.
///
/// # Errors
/// There is none of that name, or the file has mistakes, each with its place.
pub fn find(name: &str, base: &Path) -> Result<(String, Blueprint), Failure> {
    if is_path(name) {
        let path = paths::absolute(name, base);
        let text = paths::read_text(&path)
            .map_err(|e| Failure::refused(e).next("faultbed blueprint list"))?;
        let blueprint = file::parse_blueprint(&text)
            .map_err(|problems| lab_file::failure(&path, &text, &problems))?;
        return Ok((path.display().to_string(), blueprint));
    }
    let known = shipped();
    match known.get(name) {
        Some(blueprint) => Ok((name.to_owned(), blueprint.clone())),
        None => {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            let mut failure = status::unknown("blueprint", name, &names);
            failure.next = vec![
                "faultbed blueprint list".to_owned(),
                format!(
                    "./{}.toml   # a file of your own, with a slash",
                    name.trim_end_matches(".toml")
                ),
            ];
            Err(failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_blueprint_parses_and_has_its_own_name() {
        let shipped = shipped();
        assert_eq!(shipped.len(), SHIPPED.len());
        for (name, blueprint) in shipped {
            assert_eq!(blueprint.name.as_str(), name);
        }
    }

    #[test]
    fn an_unknown_blueprint_names_the_nearest() {
        let failure = find("etdc", Path::new("/")).unwrap_err().to_string();
        assert!(failure.contains("the nearest is etcd"), "{failure}");
    }
}
