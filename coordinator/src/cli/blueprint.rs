//! `blueprint list|show|check`: how databases are run, and whether a file of one's own says it well.

use std::path::{Path, PathBuf};

use faultbed_common::{blueprint::Blueprint, duration::Span};

use crate::cli::{
    Session, blueprints,
    failure::{Exit, Failure, Outcome},
    output::{self, Format},
    paths,
    table::{self, Tone, tone},
    up,
};

/// Arguments of `blueprint`.
#[derive(Debug, clap::Args)]
pub struct BlueprintArgs {
    #[command(subcommand)]
    command: BlueprintCommand,
}

/// Verbs on blueprints.
#[derive(Debug, clap::Subcommand)]
enum BlueprintCommand {
    /// The blueprints that ship with faultbed
    List(output::OutputArgs),
    /// A blueprint's file, to read or to start one's own from
    Show {
        /// A name, or a path with a slash
        name: String,
        #[command(flatten)]
        output: output::OutputArgs,
    },
    /// Whether a blueprint's file is right; with --run, whether it runs
    Check(CheckArgs),
}

/// Arguments of `blueprint check`.
#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// A name, or a path with a slash
    name: String,
    /// Start a cluster of it in a lab of its own, wait for ready, and take it down
    #[arg(long)]
    run: bool,
    /// With --run: give up after this long
    #[arg(
        long,
        default_value = "60s",
        env = "FAULTBED_WAIT",
        hide_env_values = true,
        value_name = "DURATION"
    )]
    timeout: Span,
}

/// Runs `blueprint …`.
///
/// # Errors
/// There is no such blueprint, it has mistakes, or it does not run.
pub async fn run(session: &Session, args: &BlueprintArgs) -> Outcome {
    match &args.command {
        BlueprintCommand::List(output) => list(output.output)?,
        BlueprintCommand::Show { name, output } => show(name, output.output)?,
        BlueprintCommand::Check(args) => return check(session, args).await,
    }
    Ok(Exit::DONE)
}

fn list(format: Format) -> Result<(), Failure> {
    let shipped = blueprints::shipped();
    if format == Format::Json {
        return output::json(&shipped);
    }
    let rows = shipped
        .values()
        .map(|blueprint| {
            vec![
                table::cell(&blueprint.name, Tone::Strong),
                table::plain(roles(blueprint)),
                table::plain(&blueprint.summary),
            ]
        })
        .collect();
    output::data(table::render(&["BLUEPRINT", "ROLES", "SUMMARY"], rows))
}

fn roles(blueprint: &Blueprint) -> String {
    let roles: Vec<String> =
        blueprint.roles.iter().map(|(name, role)| format!("{name}×{}", role.count)).collect();
    roles.join(" ")
}

fn show(name: &str, format: Format) -> Result<(), Failure> {
    let (name, blueprint) = blueprints::find(name, &paths::current_dir()?)?;
    if format == Format::Json {
        return output::json(&blueprint);
    }
    match blueprints::shipped_text(&name) {
        Some(text) => output::data(text.trim_end())?,
        None => {
            let text = paths::read_text(Path::new(&name)).map_err(Failure::refused)?;
            output::data(text.trim_end())?;
        }
    }
    let find = |program: &str, search: &[String]| {
        paths::in_path(program).or_else(|| paths::in_search(program, search))
    };
    output::data(places(&blueprint, &find))
}

/// Where each program is looked for, and what is found; comments, so that the whole stays a blueprint.
fn places(blueprint: &Blueprint, find: &dyn Fn(&str, &[String]) -> Option<PathBuf>) -> String {
    let mut lines = Vec::new();
    for (name, role) in &blueprint.roles {
        let searched: Vec<&str> =
            std::iter::once("PATH").chain(role.search.iter().map(String::as_str)).collect();
        lines.push(format!("\n# Programs of {name} on this machine, of {}:", searched.join(", ")));
        for program in std::iter::once(&role.program).chain(&role.needs) {
            let found = find(program, &role.search);
            let found = found.map_or("not found".to_owned(), |path| path.display().to_string());
            lines.push(format!("#   {program}: {found}"));
        }
    }
    lines.join("\n")
}

async fn check(session: &Session, args: &CheckArgs) -> Outcome {
    let (name, blueprint) = blueprints::find(&args.name, &paths::current_dir()?)?;
    output::data(format!(
        "{} {}: roles {}",
        tone("ok", Tone::Good),
        blueprint.name,
        roles(&blueprint)
    ))?;
    let silent: Vec<&str> = blueprint
        .roles
        .iter()
        .filter(|(_, role)| role.ready.is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    if !silent.is_empty() {
        output::say(format!(
            "note: no `ready` probe: running counts as ready for {}",
            silent.join(", ")
        ));
    }
    if !args.run {
        output::say(format!("try it: faultbed blueprint check {} --run", args.name));
        return Ok(Exit::DONE);
    }
    up::trial(session, &name, blueprint, args.timeout.0).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_programs_are_looked_for_and_found_is_said_in_comments() {
        let text = blueprints::shipped_text("postgres").unwrap();
        let postgres = &blueprints::shipped()["postgres"];
        let find = |program: &str, search: &[String]| {
            assert!(search.iter().any(|dir| dir == "/usr/lib/postgresql/*/bin"), "{search:?}");
            (program == "postgres").then(|| PathBuf::from("/usr/lib/postgresql/15/bin/postgres"))
        };
        let places = places(postgres, &find);
        assert!(places.contains("of PATH, /usr/lib/postgresql/*/bin"), "{places}");
        assert!(places.contains("#   postgres: /usr/lib/postgresql/15/bin/postgres"), "{places}");
        assert!(places.contains("#   initdb: not found"), "{places}");
        let whole = format!("{text}\n{places}");
        assert_eq!(&faultbed_common::file::parse_blueprint(&whole).unwrap(), postgres);
    }
}
