//! Verbs that begin faults: partition, isolate, inject.

use std::collections::BTreeMap;

use clap_complete::ArgValueCandidates;
use faultbed_common::{
    duration::Span,
    edit::Edit,
    fault::{FOR_DEFAULT, FaultSpec, Grade, HealPolicy, Lasts, OneWay, Targets},
    name::FaultName,
};

use crate::cli::{
    Session,
    change::{self, ChangeArgs},
    completion,
    failure::{Failure, Outcome},
};

/// `--name` of a fault.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct NameArgs {
    /// A name for the fault; chosen where it is not said
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

impl NameArgs {
    /// The name, parsed.
    ///
    /// # Errors
    /// Says what a name may be.
    pub fn parsed(&self) -> Result<Option<FaultName>, Failure> {
        self.name.as_deref().map(parse_name).transpose()
    }
}

/// A name of a fault as it was typed.
///
/// # Errors
/// Says what a name may be.
pub(super) fn parse_name(text: &str) -> Result<FaultName, Failure> {
    text.parse().map_err(|e| Failure::refused(format!("{e}")).next("faultbed status"))
}

/// Options of every fault.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Fault options")]
pub struct FaultArgs {
    /// How long, or `none` for until healed [default: 10m]
    #[arg(long = "for", allow_hyphen_values = true, value_name = "DURATION")]
    lasts: Option<Lasts>,
    #[command(flatten)]
    name: NameArgs,
    /// Refuse where this grade cannot be had [default: the best there is]
    #[arg(long, value_parser = parse_grade, value_name = "packet|stream")]
    grade: Option<Grade>,
    /// Act between clusters too
    #[arg(long)]
    across: bool,
    /// Resolve targets such as `leader:kv` anew when roles change
    #[arg(long)]
    follow: bool,
    /// What the end does to connections that met it [default: resume]
    #[arg(long, value_parser = parse_heal, value_name = "resume|reset|close")]
    heal: Option<HealPolicy>,
    /// Where its dice come from
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Arguments of `partition`.
#[derive(Debug, clap::Args)]
pub struct PartitionArgs {
    /// Two or more groups: `kv-1 kv-2,kv-3`, or 'kv-1 | kv-2,kv-3'
    #[arg(required = true, value_name = "GROUP", add = ArgValueCandidates::new(completion::targets))]
    groups: Vec<String>,
    /// Stop only the bytes from the first group to the second; `--one-way=packets`: as an IP filter
    #[arg(long, value_parser = parse_one_way, num_args = 0..=1, require_equals = true, default_missing_value = "bytes", value_name = "packets")]
    one_way: Option<OneWay>,
    #[command(flatten)]
    fault: FaultArgs,
}

/// Arguments of `isolate`.
#[derive(Debug, clap::Args)]
pub struct IsolateArgs {
    /// Cut from the other nodes of their cluster
    #[arg(required = true, value_name = "TARGET", add = ArgValueCandidates::new(completion::targets))]
    targets: Vec<String>,
    /// Cut from clients too
    #[arg(long)]
    clients: bool,
    #[command(flatten)]
    fault: FaultArgs,
}

/// Arguments of `inject`.
#[derive(Debug, clap::Args)]
pub struct InjectArgs {
    /// `cut`, `latency 50ms`, `rtt 80ms`, `pause`, `kill`, `stop`, or an effect of the blueprint's own
    #[arg(value_name = "EFFECT", add = ArgValueCandidates::new(completion::effects))]
    effect: String,
    /// How much of it: a duration
    #[arg(allow_hyphen_values = true, value_name = "AMOUNT")]
    amount: Option<String>,
    /// With latency: each chunk varies by up to this much
    #[arg(long, allow_hyphen_values = true, value_name = "DURATION")]
    jitter: Option<Span>,
    /// Bytes from these …
    #[arg(long, value_name = "TARGET", requires = "to", add = ArgValueCandidates::new(completion::targets))]
    from: Option<String>,
    /// … to those
    #[arg(long, value_name = "TARGET", requires = "from", add = ArgValueCandidates::new(completion::targets))]
    to: Option<String>,
    /// Bytes both ways between two sides
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["from", "on"], add = ArgValueCandidates::new(completion::targets))]
    between: Option<Vec<String>>,
    /// Nodes, for effects on nodes
    #[arg(long, value_name = "TARGET", conflicts_with_all = ["from", "between"], add = ArgValueCandidates::new(completion::targets))]
    on: Option<String>,
    #[command(flatten)]
    fault: FaultArgs,
}

fn word<T: serde::de::DeserializeOwned>(text: &str, allowed: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| format!("it is {allowed}"))
}

fn parse_grade(text: &str) -> Result<Grade, String> {
    word(text, "packet or stream")
}

fn parse_heal(text: &str) -> Result<HealPolicy, String> {
    word(text, "resume, reset or close")
}

fn parse_one_way(text: &str) -> Result<OneWay, String> {
    word(text, "bytes or packets")
}

impl FaultArgs {
    fn spec(&self) -> FaultSpec {
        FaultSpec {
            lasts: Some(self.lasts.unwrap_or(Lasts::For(Span(FOR_DEFAULT)))),
            grade: self.grade,
            across: self.across,
            follow: self.follow,
            heal: self.heal,
            seed: self.seed,
            ..FaultSpec::default()
        }
    }

    async fn inject(&self, session: &Session, spec: FaultSpec) -> Outcome {
        let edit = Edit::Inject { name: self.name.parsed()?, spec: Box::new(spec) };
        let client = session.client().await?;
        let request = self.change.request(edit, BTreeMap::new());
        change::perform(&client, request, &self.change).await
    }
}

/// Runs `partition`.
///
/// # Errors
/// As [`change::perform`].
pub async fn partition(session: &Session, args: &PartitionArgs) -> Outcome {
    let groups = groups(&args.groups)?;
    let spec = FaultSpec { partition: Some(groups), one_way: args.one_way, ..args.fault.spec() };
    args.fault.inject(session, spec).await
}

/// The groups of a partition: one for each argument, or separated by `|`.
fn groups(words: &[String]) -> Result<Vec<Targets>, Failure> {
    let groups: Vec<Targets> = words
        .iter()
        .flat_map(|text| text.split('|'))
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(Targets::split)
        .collect();
    if groups.len() < 2 {
        return Err(Failure::refused("a partition needs two or more groups")
            .next("faultbed partition kv-1 kv-2,kv-3")
            .next("faultbed isolate kv-1   # from all others of its cluster"));
    }
    Ok(groups)
}

/// Runs `isolate`.
///
/// # Errors
/// As [`change::perform`].
pub async fn isolate(session: &Session, args: &IsolateArgs) -> Outcome {
    let spec = FaultSpec {
        isolate: Some(Targets(crate::cli::node::split(&args.targets))),
        clients: args.clients,
        ..args.fault.spec()
    };
    args.fault.inject(session, spec).await
}

/// Runs `inject`.
///
/// # Errors
/// The effect makes no sense, or as [`change::perform`].
pub async fn inject(session: &Session, args: &InjectArgs) -> Outcome {
    let mut spec = FaultSpec {
        from: args.from.as_deref().map(Targets::split),
        to: args.to.as_deref().map(Targets::split),
        between: args.between.as_ref().map(|s| s.iter().map(|t| Targets::split(t)).collect()),
        on: args.on.as_deref().map(Targets::split),
        jitter: args.jitter,
        ..args.fault.spec()
    };
    let words: Vec<String> = [&args.effect].into_iter().chain(&args.amount).cloned().collect();
    effect(&mut spec, &words)?;
    if spec.from.is_none() && spec.between.is_none() && spec.on.is_none() {
        return Err(Failure::refused("say where: --from A --to B, --between A B, or --on TARGET")
            .next(format!("faultbed inject {} --between kv-1 kv-2", words.join(" "))));
    }
    args.fault.inject(session, spec).await
}

/// Puts the words of an effect into a spec.
fn effect(spec: &mut FaultSpec, words: &[String]) -> Result<(), Failure> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let span = |text: &str| {
        text.parse::<Span>()
            .map_err(|e| Failure::refused(e.to_string()).next("faultbed inject --help"))
    };
    match words.as_slice() {
        // The amount may begin with a dash, so a mistyped flag arrives here.
        [_, flag] if flag.starts_with("--") => {
            return Err(
                Failure::refused(format!("there is no flag {flag}")).next("faultbed inject --help")
            );
        }
        ["cut"] => spec.cut = true,
        ["latency", amount] => spec.latency = Some(span(amount)?),
        ["rtt", amount] => spec.rtt = Some(span(amount)?),
        ["pause"] => spec.pause = true,
        ["kill"] => spec.kill = true,
        ["stop"] => spec.stop = true,
        ["latency" | "rtt"] => {
            return Err(Failure::refused(format!("say how much {}", words[0]))
                .next(format!("faultbed inject {} 50ms --between kv-1 kv-2", words[0])));
        }
        [own] => spec.effect = Some((*own).to_owned()),
        _ => {
            return Err(Failure::refused(format!(
                "{:?} is no effect; they are cut, latency D, rtt D, pause, kill, stop and the blueprint's own",
                words.join(" ")
            ))
            .next("faultbed inject --help"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn groups_come_as_arguments_or_with_bars() {
        let expected = vec![Targets::split("kv-1"), Targets::split("kv-2,kv-3")];
        for words in [
            owned(&["kv-1", "kv-2,kv-3"]),
            owned(&["kv-1 | kv-2,kv-3"]),
            owned(&["kv-1", "|", "kv-2, kv-3"]),
        ] {
            assert_eq!(groups(&words).unwrap(), expected, "{words:?}");
        }
        let failure = groups(&owned(&["kv-1"])).unwrap_err().to_string();
        assert!(failure.contains("two or more groups") && failure.contains("isolate"), "{failure}");
    }

    #[test]
    fn effects_read_as_people_say_them() {
        let check = |words: &[&str]| {
            let mut spec = FaultSpec::default();
            effect(&mut spec, &owned(words)).map(|()| spec)
        };
        assert!(check(&["cut"]).unwrap().cut);
        let latency = check(&["latency", "50ms"]).unwrap().latency.unwrap();
        assert_eq!(latency.0, Duration::from_millis(50));
        assert_eq!(check(&["pause-apply"]).unwrap().effect.as_deref(), Some("pause-apply"));
        assert!(check(&["latency"]).unwrap_err().to_string().contains("how much"));
        assert!(check(&["latency", "--form"]).unwrap_err().to_string().contains("no flag --form"));
        assert!(check(&["latency", "-3s"]).unwrap_err().to_string().contains("negative"));
    }
}
