//! Says of a refusal what is typed instead of what a file says.

use clap::CommandFactory as _;

use crate::cli::args::Args;

/// Why a fault is refused, with the fields of files as they are typed after this verb: `--fast-heal` for
/// `fast_heal`, and `time-out` for `time_out`.
pub(super) fn as_typed(why: &str, verb: &str) -> String {
    let command = Args::command();
    let flags: Vec<&str> = command
        .find_subcommand(verb)
        .map(|verb| verb.get_arguments().filter_map(clap::Arg::get_long).collect())
        .unwrap_or_default();
    let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
    let typed = |quoted: &str| {
        let (field, value) = quoted.split_once(" = ").unwrap_or((quoted, ""));
        let word = field.replace('_', "-");
        if !field.chars().all(is_word) {
            return quoted.to_owned();
        }
        if let Some(ending) = word.strip_suffix("-after") {
            return format!("{ending} after=…");
        }
        match (flags.contains(&word.as_str()), value.trim_matches('"')) {
            (true, "" | "true") => format!("--{word}"),
            (true, value) => format!("--{word}={value}"),
            (false, "" | "true") => word,
            (false, _) => quoted.to_owned(),
        }
    };
    let parts = why.split('`').enumerate();
    let parts = parts.map(|(n, part)| if n % 2 == 1 { typed(part) } else { part.to_owned() });
    parts.collect::<Vec<_>>().join("`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_options_as_they_are_typed() {
        let rows = [
            ("inject", "`fast_heal` needs a cut", "`--fast-heal` needs a cut"),
            ("inject", "`time_out` and `accept_delay`", "`time-out` and `accept-delay`"),
            ("inject", "name them with `on`", "name them with `--on`"),
            ("partition", "write `one_way = \"packets\"`", "write `--one-way=packets`"),
            ("partition", "name them with `on`", "name them with `on`"),
            ("inject", "`reset_after` of 0s", "`reset after=…` of 0s"),
            ("inject", "`faultbed heal on_1`", "`faultbed heal on_1`"),
        ];
        for (verb, why, typed) in rows {
            assert_eq!(as_typed(why, verb), typed);
        }
    }
}
