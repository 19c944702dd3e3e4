//! `start cluster --tikv.path P --tikv.count 3`: the flags `--ROLE.FIELD` come from the blueprints at run time.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
};

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};
use faultbed_common::{
    blueprint::{Blueprint, Role},
    duration::Span,
    edit::Edit,
    name::{ClusterName, RoleName},
    spec::{COUNT_MAX, ClusterSpec, OnCrash, RoleSpec},
};
use serde::Serialize;

use crate::cli::{
    Session, blueprints,
    change::{self, ChangeArgs},
    failure::{Exit, Failure, Outcome},
    lab_file,
    node::VerbArgs,
    output::{self, Format},
    paths::{self, Hosts, PathProblem},
    table::{Tone, tone},
    up,
};

/// Arguments of `start`: nodes, or a new cluster.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
pub struct StartArgs {
    #[command(subcommand)]
    what: Option<StartWhat>,
    #[command(flatten)]
    verb: VerbArgs,
}

/// What else can be started.
#[derive(Debug, clap::Subcommand)]
enum StartWhat {
    /// Start a new cluster; `--ROLE.FIELD` flags come from the blueprints
    Cluster(StartClusterArgs),
}

/// Arguments of `start cluster` that every blueprint has.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
struct StartClusterArgs {
    /// Its name [default: the blueprint's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A name, or a path with a slash [default: the one that has all the roles named]
    #[arg(long, value_name = "BLUEPRINT")]
    blueprint: Option<String>,
    /// What a crash means: `stay` down as a finding, or `restart` with back-off
    #[arg(long, value_name = "stay|restart", value_parser = parse_on_crash)]
    on_crash: Option<OnCrash>,
    /// Its hosts stop it after this long; given again, its time begins anew
    #[arg(long, allow_hyphen_values = true, value_name = "DURATION")]
    lease: Option<Span>,
    /// Its members speak TLS with each other, with certificates that the lab makes
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Shown below the options of `start cluster`.
const EXAMPLES: &str = "\
Examples:
  faultbed start cluster --etcd.count 3
  faultbed start cluster --name kv --etcd.path ./bin/etcd --etcd.arg=--snapshot-count=1000
  faultbed start cluster --name kv --etcd.count 3 --lease 12h
  faultbed start cluster --blueprint ./mykv.toml --mykv.count 5 --plan";

fn parse_on_crash(text: &str) -> Result<OnCrash, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| "it is stay or restart".to_owned())
}

/// Fields of a role that have a flag: name, value, help, and whether it may be given again.
const FIELDS: [(&str, &str, &str, bool); 6] = [
    ("count", "N", "How many nodes", false),
    ("path", "PATH", "The program: a path with a slash, or a name in PATH", false),
    ("config", "FILE", "A configuration file merged over the blueprint's", false),
    ("hosts", "HOST,…", "Hosts or label:KEY=VALUE its nodes may go to", true),
    ("arg", "ARG", "An argument after the blueprint's", true),
    ("env", "NAME=VALUE", "Environment over the blueprint's", true),
];

/// Whether a command line may need the flags of roles: only then are blueprints parsed.
#[must_use]
pub fn wants_roles(argv: &[OsString]) -> bool {
    argv.iter().any(|word| word == "start") && argv.iter().any(|word| word == "cluster")
}

/// `--blueprint` of a command line, before it is parsed.
fn asked_blueprint(argv: &[OsString]) -> Option<String> {
    let words: Vec<&str> = argv.iter().filter_map(|word| word.to_str()).collect();
    let joined = words.iter().find_map(|word| word.strip_prefix("--blueprint="));
    let parted = words.windows(2).find(|pair| pair[0] == "--blueprint").map(|pair| pair[1]);
    joined.or(parted).map(str::to_owned)
}

/// The blueprints a command line can mean: the one it names, else all that ship.
///
/// # Errors
/// The one it names cannot be had.
pub fn candidates(argv: &[OsString]) -> Result<BTreeMap<String, Blueprint>, Failure> {
    match asked_blueprint(argv) {
        Some(name) => Ok(BTreeMap::from([blueprints::find(&name, &paths::current_dir()?)?])),
        None => Ok(blueprints::shipped()),
    }
}

/// Adds `--ROLE.FIELD` for every role of the blueprints to `start cluster`.
#[must_use]
pub fn with_roles(command: Command, blueprints: &BTreeMap<String, Blueprint>) -> Command {
    let args = role_args(blueprints);
    command.mut_subcommand("start", |start| {
        start.mut_subcommand("cluster", |cluster| cluster.args(args))
    })
}

fn role_args(blueprints: &BTreeMap<String, Blueprint>) -> Vec<Arg> {
    let mut of_role: BTreeMap<&RoleName, Vec<&Blueprint>> = BTreeMap::new();
    for blueprint in blueprints.values() {
        for role in blueprint.roles.keys() {
            of_role.entry(role).or_default().push(blueprint);
        }
    }
    let mut args = Vec::new();
    for (role, of) in of_role {
        let names: Vec<&str> = of.iter().map(|blueprint| blueprint.name.as_str()).collect();
        let heading = format!("Role {role} of {}", names.join(", "));
        for (field, value, help, again) in FIELDS {
            let flag = format!("{role}.{field}");
            let mut arg = Arg::new(flag.clone())
                .long(flag)
                .value_name(value)
                .help_heading(heading.clone())
                .help(with_default(field, help, role, &of));
            arg = match field {
                "count" => {
                    arg.value_parser(clap::value_parser!(u32).range(..=i64::from(COUNT_MAX)))
                }
                "path" => arg.value_hint(clap::ValueHint::ExecutablePath),
                "config" => arg.value_hint(clap::ValueHint::FilePath),
                "hosts" => arg.value_delimiter(','),
                // Arguments of programs begin with dashes.
                "arg" => arg.allow_hyphen_values(true),
                _ => arg,
            };
            args.push(if again { arg.action(ArgAction::Append) } else { arg });
        }
    }
    args
}

fn with_default(field: &str, help: &str, role: &RoleName, of: &[&Blueprint]) -> String {
    let [one] = of else { return help.to_owned() };
    let Some(role) = one.roles.get(role) else { return help.to_owned() };
    match field {
        "count" => format!("{help} [default: {}]", role.count),
        "path" => format!("{help} [default: {}]", role.program),
        _ => help.to_owned(),
    }
}

/// Runs `start`.
///
/// # Errors
/// As [`change::perform`].
pub async fn run(
    session: &Session,
    args: &StartArgs,
    matches: &ArgMatches,
    argv: &[OsString],
) -> Outcome {
    match &args.what {
        Some(StartWhat::Cluster(cluster)) => {
            let matches = matches
                .subcommand_matches("start")
                .and_then(|start| start.subcommand_matches("cluster"));
            let Some(matches) = matches else {
                return Err(Failure::refused("read the flags of roles")
                    .next("faultbed start cluster --help"));
            };
            start_cluster(session, cluster, matches, argv).await
        }
        None => {
            crate::cli::node::verb(session, &args.verb, faultbed_common::edit::NodeVerb::Start)
                .await
        }
    }
}

async fn start_cluster(
    session: &Session,
    args: &StartClusterArgs,
    matches: &ArgMatches,
    argv: &[OsString],
) -> Outcome {
    let candidates = candidates(argv)?;
    let roles = roles(matches, &candidates, session.hosts())?;
    let (blueprint_name, blueprint) = choose(&candidates, &roles, args.blueprint.is_some())?;
    let name: ClusterName =
        args.name.as_deref().unwrap_or(blueprint.name.as_str()).parse().map_err(|e| {
            Failure::refused(format!("{e}")).next("faultbed start cluster --name kv …")
        })?;
    let mut spec = ClusterSpec {
        blueprint: blueprint_name.clone(),
        on_crash: args.on_crash,
        lease: args.lease,
        tls: args.tls,
        roles,
    };
    let missing = lab_file::missing_programs(&spec, blueprint, session.hosts());
    for note in leave_out(&mut spec, blueprint, missing)? {
        output::say(tone(note, Tone::Warn));
    }
    let own = if blueprints::is_path(&blueprint_name) {
        BTreeMap::from([(blueprint_name, blueprint.clone())])
    } else {
        BTreeMap::new()
    };
    if args.change.plan {
        print_plan(&name, &spec, args.change.output)?;
        return Ok(Exit::DONE);
    }
    up::ensure(session).await?;
    let client = session.client().await?;
    let request = args.change.request(Edit::StartCluster { name: name.clone(), spec }, own);
    let outcome = change::perform(&client, request, &args.change).await?;
    if args.change.output == Format::Table && !args.change.no_wait {
        let now = up::bring::with_leaders(&client, client.status().await?).await;
        output::data(format!("\n{}", up::bring::welcome(&client.context, &now, Some(&name))))?;
    }
    Ok(outcome)
}

/// Leaves out roles that a cluster can be without, that nobody has named, and whose program is not there;
/// says which.
///
/// # Errors
/// Another role's program is not there.
fn leave_out(
    spec: &mut ClusterSpec,
    blueprint: &Blueprint,
    missing: Vec<(RoleName, PathProblem)>,
) -> Result<Vec<String>, Failure> {
    let mut notes = Vec::new();
    for (role, problem) in missing {
        let may_be_none = blueprint.roles.get(&role).is_some_and(Role::may_be_none);
        if !may_be_none || spec.roles.contains_key(&role) {
            let next = format!("faultbed start cluster --{role}.path ./PROGRAM …");
            return Err(problem.failure().next(next));
        }
        notes.push(format!("note: without {role}: {} (--{role}.path names it)", problem.message));
        spec.roles.insert(role, RoleSpec { count: Some(0), ..RoleSpec::default() });
    }
    Ok(notes)
}

/// The cluster as it would stand in a lab file.
fn print_plan(name: &ClusterName, spec: &ClusterSpec, format: Format) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct File<'a> {
        cluster: BTreeMap<&'a ClusterName, &'a ClusterSpec>,
    }
    let file = File { cluster: BTreeMap::from([(name, spec)]) };
    if format == Format::Json {
        return output::json(&file);
    }
    let text = toml::to_string(&file)
        .map_err(|e| Failure::no(format!("write the cluster as TOML: {e}")))?;
    output::data(text.trim_end())
}

/// What the flags say of each role that is named.
fn roles(
    matches: &ArgMatches,
    candidates: &BTreeMap<String, Blueprint>,
    hosts: Hosts,
) -> Result<BTreeMap<RoleName, RoleSpec>, Failure> {
    let names: BTreeSet<&RoleName> = candidates.values().flat_map(|b| b.roles.keys()).collect();
    let base = paths::current_dir()?;
    let mut roles = BTreeMap::new();
    for role in names {
        let flag = |field: &str| format!("{role}.{field}");
        let named = FIELDS.iter().any(|(field, ..)| {
            matches.value_source(&flag(field)) == Some(ValueSource::CommandLine)
        });
        if !named {
            continue;
        }
        let one = |field: &str| matches.get_one::<String>(&flag(field));
        let many = |field: &str| -> Vec<String> {
            matches
                .get_many::<String>(&flag(field))
                .map(|v| v.cloned().collect())
                .unwrap_or_default()
        };
        let place = |field: &str, problem: paths::PathProblem| {
            let message = format!("--{}: {}", flag(field), problem.message);
            Failure::refused(message).next(problem.help)
        };
        let path = one("path").map(|text| paths::program(text, &base, hosts)).transpose();
        let config = one("config").map(|text| paths::config(text, &base)).transpose();
        let spec = RoleSpec {
            count: matches.get_one::<u32>(&flag("count")).copied(),
            path: path.map_err(|problem| place("path", problem))?,
            config: config.map_err(|problem| place("config", problem))?,
            hosts: many("hosts"),
            args: many("arg"),
            env: environment(&flag("env"), &many("env"))?,
            dial_ports: None,
            node: BTreeMap::new(),
        };
        roles.insert(role.clone(), spec);
    }
    Ok(roles)
}

fn environment(flag: &str, words: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(Failure::refused(format!("--{flag}: {word:?} is not NAME=VALUE"))
                .next(format!("--{flag} GOMAXPROCS=1"))),
        })
        .collect()
}

/// The one blueprint that has all the roles named.
fn choose<'a>(
    candidates: &'a BTreeMap<String, Blueprint>,
    roles: &BTreeMap<RoleName, RoleSpec>,
    is_named: bool,
) -> Result<(String, &'a Blueprint), Failure> {
    let fitting: Vec<(&String, &Blueprint)> = candidates
        .iter()
        .filter(|(_, blueprint)| roles.keys().all(|role| blueprint.roles.contains_key(role)))
        .collect();
    let names = |of: &[(&String, &Blueprint)]| -> String {
        of.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    };
    // Roles of other blueprints may have the name of one: `--redis.count` means redis, not its cluster.
    let namesake = fitting.iter().find(|(name, _)| roles.keys().any(|role| role.as_str() == *name));
    match (fitting.as_slice(), namesake) {
        (_, Some((name, blueprint))) => Ok(((*name).clone(), *blueprint)),
        ([(name, blueprint)], None) if is_named || !roles.is_empty() || candidates.len() == 1 => {
            Ok(((*name).clone(), *blueprint))
        }
        ([], None) => {
            let roles: Vec<&str> = roles.keys().map(AsRef::as_ref).collect();
            Err(Failure::refused(format!(
                "no one blueprint has all of the roles {}",
                roles.join(", ")
            ))
            .next("faultbed blueprint list"))
        }
        (many, None) => Err(Failure::refused(format!("several blueprints fit: {}", names(many)))
            .next(format!("faultbed start cluster --blueprint {}", many[0].0))),
    }
}

#[cfg(test)]
mod tests;
