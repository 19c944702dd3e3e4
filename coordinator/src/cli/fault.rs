//! Verbs that begin faults: partition, isolate, inject.

use std::collections::BTreeMap;

use clap_complete::ArgValueCandidates;
use faultbed_common::{
    duration::Span,
    edit::Edit,
    effect::{Distribution, Ratio},
    fault::{FOR_DEFAULT, FaultSpec, Grade, HealPolicy, Lasts, OneWay, Targets},
    name::FaultName,
    shape,
};

use crate::cli::{
    Session,
    change::{self, ChangeArgs},
    completion,
    failure::{Exit, Failure, Outcome},
};

pub mod effect;
mod typed;

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
    /// Change the link fault of this --name into this one: connections stay, its time begins anew
    #[arg(long, requires = "name")]
    replace: bool,
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
    #[arg(value_name = "GROUP", conflicts_with_all = ["halves", "minority", "ring", "bridge"], add = ArgValueCandidates::new(completion::targets))]
    groups: Vec<String>,
    /// Stop only the bytes from the first group to the second; `--one-way=packets`: as an IP filter
    #[arg(long, value_parser = parse_one_way, num_args = 0..=1, require_equals = true, default_missing_value = "bytes", value_name = "packets")]
    one_way: Option<OneWay>,
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    chance: ChanceArgs,
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
    /// Stop only what these send; `--one-way=packets`: as an IP filter
    #[arg(long, value_parser = parse_one_way, num_args = 0..=1, require_equals = true, default_missing_value = "bytes", value_name = "packets")]
    one_way: Option<OneWay>,
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    fault: FaultArgs,
}

/// Shapes whose sides the fault's seed chooses.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Sides by chance (the same for the same --seed)")]
pub struct ChanceArgs {
    /// A random half of these against the other half
    #[arg(long, value_name = "TARGET", add = ArgValueCandidates::new(completion::targets))]
    halves: Option<String>,
    /// A random minority of these against the rest of them
    #[arg(long, value_name = "TARGET", add = ArgValueCandidates::new(completion::targets))]
    minority: Option<String>,
    /// Each of these sees a majority, and no two the same one
    #[arg(long, value_name = "TARGET", add = ArgValueCandidates::new(completion::targets))]
    ring: Option<String>,
    /// Two halves of these, and one node that sees both
    #[arg(long, value_name = "TARGET", add = ArgValueCandidates::new(completion::targets))]
    bridge: Option<String>,
}

impl ChanceArgs {
    fn is_some(&self) -> bool {
        [&self.halves, &self.minority, &self.ring, &self.bridge].iter().any(|side| side.is_some())
    }

    fn put_into(&self, spec: FaultSpec) -> FaultSpec {
        let targets = |text: &Option<String>| text.as_deref().map(Targets::split);
        FaultSpec {
            halves: targets(&self.halves),
            minority: targets(&self.minority),
            ring: targets(&self.ring),
            bridge: targets(&self.bridge),
            ..spec
        }
    }
}

/// Options of faults on links.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Fault options")]
pub struct LinkArgs {
    /// Meet this share of connections, drawn for each when it is accepted: 10%
    #[arg(long, value_name = "SHARE")]
    probability: Option<Ratio>,
    /// Prove the fault and its heal by connections of our own (cut, hold, delay, refusal)
    #[arg(long)]
    canary: bool,
    /// After a cut, let peers try again at once instead of by their own back-off
    #[arg(long)]
    fast_heal: bool,
}

impl LinkArgs {
    fn put_into(&self, spec: FaultSpec) -> FaultSpec {
        FaultSpec {
            probability: self.probability,
            canary: self.canary,
            fast_heal: self.fast_heal,
            ..spec
        }
    }
}

/// Arguments of `inject`.
#[derive(Debug, clap::Args)]
pub struct InjectArgs {
    /// One or more with their amounts: `latency 50ms loss 1%`, `wan-eu-us`, `pause`; all are below
    #[arg(required = true, value_name = "EFFECT", add = ArgValueCandidates::new(completion::effects))]
    effects: Vec<String>,
    /// Bytes from these …
    #[arg(long, value_name = "TARGET", requires = "to", add = ArgValueCandidates::new(completion::targets))]
    from: Option<String>,
    /// … to those
    #[arg(long, value_name = "TARGET", requires = "from", add = ArgValueCandidates::new(completion::targets))]
    to: Option<String>,
    /// Both ways between two sides
    #[arg(long, num_args = 2, value_names = ["A", "B"], add = ArgValueCandidates::new(completion::targets))]
    between: Option<Vec<String>>,
    /// Between these and the other nodes of their cluster
    #[arg(long, value_name = "TARGET", add = ArgValueCandidates::new(completion::targets))]
    isolate: Option<String>,
    /// Nodes, for effects on nodes
    #[arg(long, value_name = "TARGET", add = ArgValueCandidates::new(completion::targets))]
    on: Option<String>,
    /// With --between, --isolate or sides by chance: only from the first side to the second
    #[arg(long, value_parser = parse_one_way, num_args = 0..=1, require_equals = true, default_missing_value = "bytes", value_name = "packets")]
    one_way: Option<OneWay>,
    /// With latency, rtt or a preset: how much each chunk varies
    #[arg(long, value_name = "DURATION")]
    jitter: Option<Span>,
    /// How the jitter is distributed [default: uniform]
    #[arg(long, value_parser = parse_distribution, value_name = "uniform|normal|pareto", add = ArgValueCandidates::new(completion::distributions))]
    distribution: Option<Distribution>,
    /// With reset or close: this long after a connection met the fault
    #[arg(long, value_name = "DURATION")]
    after: Option<Span>,
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    chance: ChanceArgs,
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

fn parse_distribution(text: &str) -> Result<Distribution, String> {
    word(text, "uniform, normal or pareto")
}

impl FaultArgs {
    fn spec(&self) -> FaultSpec {
        FaultSpec {
            lasts: match self.lasts {
                // One that is replaced lasts as long as it did.
                None if self.replace => None,
                lasts => Some(lasts.unwrap_or(Lasts::For(Span(FOR_DEFAULT)))),
            },
            grade: self.grade,
            across: self.across,
            follow: self.follow,
            heal: self.heal,
            seed: self.seed,
            ..FaultSpec::default()
        }
    }

    async fn inject(&self, session: &Session, spec: FaultSpec, verb: &str) -> Outcome {
        // What is wrong whatever the lab is needs no lab to say so.
        shape::check(&spec).map_err(|error| {
            let why = typed::as_typed(&error.to_string(), verb);
            Failure::refused(why).next(format!("faultbed {verb} --help"))
        })?;
        let edit =
            Edit::Inject { name: self.name.parsed()?, spec: Box::new(spec), replace: self.replace };
        let client = session.client().await?;
        let request = self.change.request(edit, BTreeMap::new());
        let outcome = change::perform(&client, request, &self.change).await;
        outcome.map_err(|failure| match failure.exit {
            Exit::REFUSED => {
                let message = failure.message.map(|why| typed::as_typed(&why, verb));
                Failure { message, ..failure }
            }
            _ => failure,
        })
    }
}

/// Runs `partition`.
///
/// # Errors
/// As [`change::perform`].
pub async fn partition(session: &Session, args: &PartitionArgs) -> Outcome {
    let partition = if args.chance.is_some() { None } else { Some(groups(&args.groups)?) };
    let spec = FaultSpec { partition, one_way: args.one_way, ..args.fault.spec() };
    let spec = args.link.put_into(args.chance.put_into(spec));
    args.fault.inject(session, spec, "partition").await
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
            .next("faultbed isolate kv-1   # from all others of its cluster")
            .next("faultbed partition --halves kv   # sides by chance"));
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
        one_way: args.one_way,
        ..args.fault.spec()
    };
    args.fault.inject(session, args.link.put_into(spec), "isolate").await
}

/// Runs `inject`.
///
/// # Errors
/// The effect makes no sense, or as [`change::perform`].
pub async fn inject(session: &Session, args: &InjectArgs) -> Outcome {
    let spec = args.spec()?;
    let own = spec.effect.clone();
    let outcome = args.fault.inject(session, spec, "inject").await;
    // Only the lab knows whether a blueprint has an effect of this name, or it was a slip.
    let meant = own.as_deref().and_then(effect::nearest_on_nodes);
    outcome.map_err(|failure| match meant {
        Some(word) => failure.next(format!("faultbed inject {word} --on kv-1   # or {word}?")),
        None => failure,
    })
}

impl InjectArgs {
    fn spec(&self) -> Result<FaultSpec, Failure> {
        let targets = |text: &Option<String>| text.as_deref().map(Targets::split);
        let sides = |sides: &Vec<String>| sides.iter().map(|side| Targets::split(side)).collect();
        let mut spec = FaultSpec {
            from: targets(&self.from),
            to: targets(&self.to),
            between: self.between.as_ref().map(sides),
            isolate: targets(&self.isolate),
            on: targets(&self.on),
            one_way: self.one_way,
            jitter: self.jitter,
            distribution: self.distribution,
            ..self.fault.spec()
        };
        spec = self.link.put_into(self.chance.put_into(spec));
        let words: Vec<&str> = self.effects.iter().map(String::as_str).collect();
        let is_placed = shape::targets(&spec).iter().any(|target| !target.is_empty());
        // An effect of a blueprint's own acts on nodes: anywhere else its name is a slip.
        effect::read(&mut spec, &words, self.on.is_some() || !is_placed)?;
        self.put_after(&mut spec)?;
        if !is_placed {
            let place = match spec.effect {
                Some(_) => "--on kv-1",
                None if spec.pause || spec.kill || spec.stop || spec.disk_stall => "--on kv-1",
                None => "--between kv-1 kv-2",
            };
            return Err(Failure::refused(
                "say where: --from A --to B, --between A B, --isolate A, --halves A, or --on NODES",
            )
            .next(format!("faultbed inject {} {place}", words.join(" "))));
        }
        Ok(spec)
    }

    /// `--after` belongs to whichever ending was named.
    fn put_after(&self, spec: &mut FaultSpec) -> Result<(), Failure> {
        let Some(after) = self.after else { return effect::complete(spec, &self.effects) };
        let says = |word: &str| self.effects.iter().any(|said| said == word);
        if says("close") && spec.close_after.is_none() {
            spec.close_after = Some(after);
        } else if spec.reset {
            (spec.reset, spec.reset_after) = (false, Some(after));
        } else {
            return Err(Failure::refused("--after is for `reset` and `close`")
                .next(format!("faultbed inject reset after={after} --between kv-1 kv-2")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use expect_test::expect;

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

    fn inject(line: &str) -> Result<FaultSpec, String> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: InjectArgs,
        }
        let line = Line::try_parse_from(["inject"].into_iter().chain(line.split(' ')));
        line.map_err(|e| e.to_string())?.args.spec().map_err(|e| e.to_string())
    }

    #[test]
    fn a_line_of_inject_is_a_part_of_a_file() {
        let toml = |line: &str| {
            let spec = FaultSpec { lasts: None, ..inject(line).unwrap() };
            faultbed_common::file::to_toml_fault(&"f".parse().unwrap(), &spec)
        };
        expect![[r#"
            [fault.f]
            between = ["kv-1", "kv-2,kv-3"]
            latency = "50ms"
            jitter = "5ms"
            distribution = "normal"
            bandwidth = "10Mbit"
            loss = "1%"
            probability = "10%"
        "#]]
        .assert_eq(&toml("latency 50ms loss 1% bandwidth 10Mbit --jitter 5ms --distribution normal --between kv-1 kv-2,kv-3 --probability 10%").replace("[\"kv-1\", [\"kv-2\", \"kv-3\"]]", "[\"kv-1\", \"kv-2,kv-3\"]"));
        expect![[r#"
            [fault.f]
            isolate = "leader:kv"
            reset_after = "2s"
        "#]]
        .assert_eq(&toml("reset --after 2s --isolate leader:kv"));
        expect![[r#"
            [fault.f]
            minority = "kv"
            preset = "wan-eu-us"
            loss = "p=1% r=20%"
        "#]]
        .assert_eq(&toml("wan-eu-us loss p=1% r=20% --minority kv"));
    }

    #[test]
    fn what_is_missing_is_asked_for() {
        let error = inject("pause").unwrap_err();
        assert!(error.contains("say where") && error.contains("pause --on kv-1"), "{error}");
        let error = inject("cut --after 2s --between a b").unwrap_err();
        assert!(error.contains("for `reset` and `close`"), "{error}");
        let error = inject("latnecy 3s --between a b").unwrap_err();
        assert!(error.contains("did you mean \"latency\"?"), "{error}");
        let error = inject("close --between a b").unwrap_err();
        assert!(error.contains("close after=2s"), "{error}");
        assert_eq!(inject("pause-apply --on kv-1").unwrap().effect.as_deref(), Some("pause-apply"));
        let own = inject("failpoint point=apply terms=sleep(9) --on kv-1").unwrap();
        assert_eq!((own.effect.as_deref(), &*own.values["terms"]), (Some("failpoint"), "sleep(9)"));
        assert_eq!(inject("effect stall --on kv-1").unwrap().effect.as_deref(), Some("stall"));
        assert_eq!(inject("close --after 2s --between a b").unwrap().reset_after, None);
    }
}
