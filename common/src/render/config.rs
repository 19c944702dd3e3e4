//! Merges a user's configuration over the blueprint's file: TOML into TOML, anything else after it.

use toml::{Table, Value};

use crate::spec;

/// What to say where a blueprint takes no configuration.
pub(crate) const NOT_SUPPORTED: &str =
    "this role takes no configuration file; use args or env instead";

/// The blueprint's file with the user's over it.
///
/// # Errors
/// A path whose file nobody read, or TOML that does not parse.
pub(super) fn merge(path: &str, base: &str, over: &str) -> Result<String, String> {
    if !spec::is_content(over) {
        return Err(format!("the file {over:?} was named and not read"));
    }
    let is_toml = std::path::Path::new(path).extension().is_some_and(|ext| ext == "toml");
    if !is_toml {
        let gap = if base.is_empty() || base.ends_with('\n') { "" } else { "\n" };
        return Ok(format!("{base}{gap}{over}"));
    }
    let parse = |what: &str, text: &str| {
        text.parse::<Table>().map_err(|error| format!("{what}: {}", error.message()))
    };
    let mut merged = parse("the blueprint's file", base)?;
    merge_table(&mut merged, parse("the configuration", over)?);
    toml::to_string(&merged).map_err(|error| error.to_string())
}

/// Tables merge, everything else replaces: a list in the user's file is the whole list.
fn merge_table(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge_table(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
