//! `get KIND [NAME]` and `delete KIND NAME`: objects as they were accepted.

use std::collections::{BTreeMap, BTreeSet};

use clap::ValueEnum;
use clap_complete::ArgValueCandidates;
use faultbed_common::{
    edit::Edit,
    lab::{Ended, Fault, Lab, Phase},
    name::FaultName,
};
use serde_json::{Map, Value};

use crate::cli::{
    Session,
    change::{self, ChangeArgs},
    completion,
    failure::{Exit, Failure, Outcome},
    output, status,
    table::{self, Tone},
};

/// Kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// What should run.
    #[value(alias = "clusters")]
    Cluster,
    /// What should be disturbed.
    #[value(alias = "faults")]
    Fault,
    /// Where it runs.
    #[value(alias = "hosts")]
    Host,
    /// All of it, as a file for `apply`.
    Lab,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Fault => "fault",
            Self::Host => "host",
            Self::Lab => "lab",
        }
    }
}

/// How an object is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// As in a lab file.
    #[default]
    Toml,
    /// With everything that was decided: placement, ports, resolved targets.
    Json,
}

/// Arguments of `get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// What kind; what there is where it is not said
    #[arg(value_enum)]
    kind: Option<Kind>,
    /// Which one; all where it is not said
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(completion::objects))]
    name: Option<String>,
    /// `toml`: as asked for; `json`: with all that was decided
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        hide_default_value = true,
        value_name = "toml|json"
    )]
    output: Shape,
}

/// Arguments of `delete`.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// What kind: `cluster` or `fault`
    #[arg(value_enum)]
    kind: Kind,
    /// Which one
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(completion::objects))]
    name: String,
    /// A cluster's data too; without it the data is kept
    #[arg(long)]
    wipe: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs `get`.
///
/// # Errors
/// There is no such object, or the lab cannot be reached.
pub async fn get(session: &Session, args: &GetArgs) -> Outcome {
    let client = session.client().await?;
    let lab = client.lab().await?;
    let Some(of) = args.kind else {
        return match args.output {
            Shape::Json => output::json(&by_kind(&lab)).map(|()| Exit::DONE),
            Shape::Toml => output::data(kinds_table(&lab)).map(|()| Exit::DONE),
        };
    };
    let kinds: &[Kind] = match of {
        Kind::Lab => &[Kind::Host, Kind::Cluster, Kind::Fault],
        Kind::Cluster => &[Kind::Cluster],
        Kind::Fault => &[Kind::Fault],
        Kind::Host => &[Kind::Host],
    };
    let mut document = Map::new();
    for kind in kinds {
        let mut objects = objects(&lab, *kind, args.output)?;
        if let Some(name) = &args.name {
            objects = pick(objects, *kind, name)?;
        }
        if of == Kind::Lab && args.output == Shape::Toml {
            only_for_files(&mut objects, *kind, &lab);
        }
        if !objects.is_empty() {
            document.insert(kind.word().to_owned(), Value::Object(objects));
        }
    }
    match args.output {
        Shape::Json => match (&args.name, of) {
            (_, Kind::Lab) => output::json(&lab)?,
            (Some(name), kind) => output::json(&document[kind.word()][name])?,
            (None, kind) => {
                output::json(document.get(kind.word()).unwrap_or(&Value::Object(Map::new())))?;
            }
        },
        Shape::Toml => {
            let mut text = to_toml(&Value::Object(document))?;
            text = with_owners(&with_ends(&text, &lab), &lab);
            if of == Kind::Lab {
                let dead_man = lab.settings.dead_man;
                let dead_man = dead_man.map(|span| format!("dead_man = \"{span}\"\n"));
                let dead_man = dead_man.unwrap_or_default();
                text = format!("[lab]\nhosts = {}\n{dead_man}\n{text}", lab.hosts.len());
            }
            output::data(text.trim_end())?;
        }
    }
    Ok(Exit::DONE)
}

/// The names of all objects by their kind.
fn by_kind(lab: &Lab) -> BTreeMap<&'static str, Vec<String>> {
    let fault = |(name, fault): (&FaultName, &Fault)| match ending(fault) {
        Some(how) => format!("{name} ({how})"),
        None => name.to_string(),
    };
    BTreeMap::from([
        (Kind::Host.word(), lab.hosts.keys().map(ToString::to_string).collect()),
        (Kind::Cluster.word(), lab.clusters.keys().map(ToString::to_string).collect()),
        (Kind::Fault.word(), lab.faults.iter().map(|(name, one)| fault((name, one))).collect()),
    ])
}

/// What can be asked for, and what there is of it.
fn kinds_table(lab: &Lab) -> String {
    let mut rows: Vec<_> = by_kind(lab)
        .into_iter()
        .map(|(kind, names)| vec![table::cell(kind, Tone::Strong), table::plain(names.join(", "))])
        .collect();
    rows.push(vec![
        table::cell(Kind::Lab.word(), Tone::Strong),
        table::plain("all of it, as a file for `faultbed apply -f`"),
    ]);
    table::render(&["KIND", "OBJECTS"], rows)
}

/// How a fault ended, in a word; `None` where it has not.
fn ending(fault: &Fault) -> Option<&'static str> {
    match &fault.phase {
        Phase::Ended { how: Ended::Expired, .. } => Some("expired"),
        Phase::Ended { how: Ended::Healed, .. } => Some("healed"),
        Phase::Pending { .. } | Phase::Active { .. } => None,
    }
}

/// Marks faults that are over: applied again such a file would not begin them.
fn with_ends(text: &str, lab: &Lab) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let name = line.strip_prefix("[fault.").and_then(|rest| rest.strip_suffix(']'));
        let fault = name.and_then(|name| lab.faults.iter().find(|(n, _)| n.as_str() == name));
        if let Some(how) = fault.and_then(|(_, fault)| ending(fault)) {
            lines.push(format!("# over: {how}"));
        }
        lines.push(line.to_owned());
    }
    lines.join("\n")
}

/// Says whose each object is, where more than one person has something in the lab.
fn with_owners(text: &str, lab: &Lab) -> String {
    let of_clusters =
        lab.clusters.iter().map(|(name, there)| (format!("[cluster.{name}]"), &there.origin.owner));
    let of_faults =
        lab.faults.iter().map(|(name, there)| (format!("[fault.{name}]"), &there.origin.owner));
    let owners: BTreeMap<String, &String> = of_clusters.chain(of_faults).collect();
    if owners.values().collect::<BTreeSet<_>>().len() < 2 {
        return text.to_owned();
    }
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(owner) = owners.get(line) {
            lines.push(format!("# owner: {owner}"));
        }
        lines.push(line.to_owned());
    }
    lines.join("\n")
}

/// A file says what should be: nothing of faults that are over, nor of hosts without labels.
fn only_for_files(objects: &mut Map<String, Value>, kind: Kind, lab: &Lab) {
    match kind {
        Kind::Fault => objects.retain(|name, _| {
            let fault = lab.faults.iter().find(|(known, _)| known.as_str() == name);
            !fault.is_some_and(|(_, fault)| matches!(fault.phase, Phase::Ended { .. }))
        }),
        Kind::Host => objects.retain(|_, host| host["labels"] != serde_json::json!({})),
        Kind::Cluster | Kind::Lab => {}
    }
}

fn pick(
    mut objects: Map<String, Value>,
    kind: Kind,
    name: &str,
) -> Result<Map<String, Value>, Failure> {
    let known: Vec<String> = objects.keys().cloned().collect();
    match objects.remove(name) {
        Some(value) => Ok(Map::from_iter([(name.to_owned(), value)])),
        None => {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            Err(status::unknown(kind.word(), name, &known))
        }
    }
}

fn objects(lab: &Lab, kind: Kind, shape: Shape) -> Result<Map<String, Value>, Failure> {
    let value = |value: Result<Value, serde_json::Error>| {
        value.map_err(|e| Failure::no(format!("write the answer: {e}")))
    };
    let mut objects = Map::new();
    match kind {
        Kind::Cluster => {
            for (name, cluster) in &lab.clusters {
                let object = match shape {
                    Shape::Toml => value(serde_json::to_value(&cluster.spec))?,
                    Shape::Json => value(serde_json::to_value(cluster))?,
                };
                objects.insert(name.to_string(), object);
            }
        }
        Kind::Fault => {
            for (name, fault) in &lab.faults {
                let object = match shape {
                    Shape::Toml => value(serde_json::to_value(&fault.spec))?,
                    Shape::Json => value(serde_json::to_value(fault))?,
                };
                objects.insert(name.to_string(), object);
            }
        }
        Kind::Host => {
            for (name, host) in &lab.hosts {
                let object = match shape {
                    Shape::Toml => serde_json::json!({ "labels": host.labels }),
                    Shape::Json => value(serde_json::to_value(host))?,
                };
                objects.insert(name.to_string(), object);
            }
        }
        Kind::Lab => {}
    }
    Ok(objects)
}

fn to_toml(value: &Value) -> Result<String, Failure> {
    toml::to_string(value).map_err(|e| Failure::no(format!("write the answer as TOML: {e}")))
}

/// Runs `delete`.
///
/// # Errors
/// This kind cannot be deleted, or as [`change::perform`].
pub async fn delete(session: &Session, args: &DeleteArgs) -> Outcome {
    let name_error = |e: faultbed_common::name::NameError| {
        Failure::refused(e.to_string()).next("faultbed status")
    };
    let edit = match args.kind {
        Kind::Cluster => {
            Edit::DeleteCluster { name: args.name.parse().map_err(name_error)?, wipe: args.wipe }
        }
        Kind::Fault => Edit::DeleteFault { name: args.name.parse().map_err(name_error)? },
        Kind::Host => {
            return Err(Failure::refused("a host is not deleted but removed")
                .next(format!("faultbed host remove {}", args.name)));
        }
        Kind::Lab => {
            return Err(Failure::refused("a lab is not deleted but taken down")
                .next("faultbed down --wipe   # ends the whole lab"));
        }
    };
    let client = session.client().await?;
    let request = args.change.request(edit, BTreeMap::new());
    change::perform(&client, request, &args.change).await
}

#[cfg(test)]
mod tests {
    use faultbed_common::lab::{Means, Origin};

    use super::*;

    #[test]
    fn faults_that_are_over_are_marked() {
        let over = Fault {
            spec: Default::default(),
            phase: Phase::Ended { at_unix_ms: 1, how: Ended::Healed },
            resolved: Default::default(),
            revision: Default::default(),
            origin: Origin { owner: "ann".to_owned(), by: Means::Verb },
            everyone: false,
            ended_because: None,
        };
        let mut lab = Lab::new("dev".parse().unwrap(), 1);
        lab.faults.insert("split".parse().unwrap(), over.into());
        let text = with_ends("[fault.split]\nfor = \"1s\"\n\n[fault.other]\n", &lab);
        assert_eq!(text, "# over: healed\n[fault.split]\nfor = \"1s\"\n\n[fault.other]");
        assert_eq!(by_kind(&lab)["fault"], ["split (healed)"]);
        assert!(kinds_table(&lab).contains("apply -f"));
    }
}
