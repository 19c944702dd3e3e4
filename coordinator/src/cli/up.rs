//! `faultbed up`: a local lab from nothing to ready, for a person who looks, or for one command.

pub mod bring;
pub mod bundle;
pub mod command;
pub mod daemons;
pub mod etcd;
pub mod prepare;
pub mod signals;
pub mod stay;

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, time::Duration};

use faultbed_common::{
    blueprint::Blueprint,
    duration::Span,
    edit::{Edit, EditRequest},
    spec::ClusterSpec,
};
pub use prepare::{Lab, lock};

use crate::cli::{
    Session, down,
    failure::{Exit, Failure, Outcome},
    guard,
    lab_file::{self, Loaded},
    output::{self, Format},
    paths::Hosts,
    status,
};
use daemons::Programs;
use signals::Signals;

/// How long an ephemeral lab lives at most where nothing is said.
const EPHEMERAL_MAX: Duration = Duration::from_secs(3600);

/// Most simulated hosts of one machine: an address byte less the edges.
const HOSTS_MAX: i64 = 250;

/// Arguments of `up`.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct UpArgs {
    /// A lab file; without one an empty lab comes up
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub file: Option<String>,
    /// Simulated hosts [default: the file's, else 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=HOSTS_MAX))]
    pub hosts: Option<u32>,
    /// `embedded`, or `etcd=URL,…` for an etcd of your own [default: embedded]
    #[arg(long, value_name = "STORE", value_parser = parse_store)]
    pub store: Option<String>,
    /// What opens that etcd.
    #[command(flatten)]
    pub etcd: etcd::EtcdAccess,
    /// Leave it running and return
    #[arg(short, long, conflicts_with_all = ["command", "repeat"])]
    pub detach: bool,
    /// Delete its data at the end; always a lab of its own, for at most one hour
    #[arg(long)]
    pub ephemeral: bool,
    /// Take it down after this long, whatever happens to this command
    #[arg(long = "for", allow_hyphen_values = true, value_name = "DURATION")]
    pub lasts: Option<Span>,
    /// Keep its data here
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// Run the command this often, each time in a lab of its own; implies --ephemeral
    #[arg(long, value_name = "N", requires = "command", value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: Option<u32>,
    /// With --repeat: stop at the first failure
    #[arg(long, requires = "repeat")]
    pub until_failure: bool,
    /// Give up where it is not ready after this long
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "60s",
        env = "FAULTBED_WAIT",
        hide_env_values = true
    )]
    pub wait: Span,
    /// Run this in the lab, then take the lab down and end with its exit code
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Shown below the options of `up`.
const EXAMPLES: &str = "\
Examples:
  faultbed up lab.toml                 a lab as the file says, until Ctrl-C; data is kept
  faultbed up -d                       an empty lab in the background
  faultbed up lab.toml --ephemeral -- ./test.sh
                                       for CI: ready, run, bundle on failure, nothing left behind
  faultbed up lab.toml --repeat 50 --until-failure -- ./test.sh

The command finds FAULTBED_LAB, FAULTBED_ENDPOINTS_<CLUSTER> and
FAULTBED_ENDPOINTS_<CLUSTER>_<ROLE>_<PORT> (comma-separated) and FAULTBED_SEED in its environment.";

fn parse_store(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        None if text == "embedded" => Ok(text.to_owned()),
        Some(("etcd", urls)) if urls.split(',').all(|url| url.contains("://")) => {
            Ok(text.to_owned())
        }
        _ => Err("write `embedded`, or `etcd=http://HOST:PORT,…`".to_owned()),
    }
}

/// What a lab is brought up with.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The options.
    pub args: UpArgs,
    /// The first change, if any.
    pub change: Option<EditRequest>,
    /// The file, if any.
    pub file: Option<Loaded>,
}

impl Plan {
    fn new(args: UpArgs) -> Result<Self, Failure> {
        let loaded =
            args.file.as_deref().map(|file| lab_file::load(file, Hosts::Here)).transpose()?;
        let file = loaded.clone();
        let change = loaded.map(|loaded| EditRequest {
            edit: Edit::Apply(Box::new(loaded.file)),
            plan: false,
            if_generation: None,
            blueprints: loaded.blueprints,
            everyone: false,
            force: false,
            files: faultbed_common::program::Files::default(),
        });
        Ok(Self { args, change, file })
    }

    /// How many hosts are asked for.
    fn hosts(&self) -> Option<u32> {
        self.args.hosts.or_else(|| self.file.as_ref()?.file.lab.hosts)
    }

    /// How long the lab may live.
    fn lifetime(&self) -> Option<Duration> {
        let asked = self.args.lasts.map(|span| span.0);
        if self.args.ephemeral { asked.or(Some(EPHEMERAL_MAX)) } else { asked }
    }

    /// Whether the lab must go although this command is killed.
    fn is_guarded(&self) -> bool {
        self.args.ephemeral || self.args.lasts.is_some() || !self.args.command.is_empty()
    }
}

/// Runs `up`.
///
/// # Errors
/// The file has mistakes, the lab does not come up, or something is left at its end.
pub async fn run(session: &Session, args: &UpArgs) -> Outcome {
    let mut args = args.clone();
    args.ephemeral |= args.repeat.is_some();
    let plan = Plan::new(args)?;
    let programs = Programs::find()?;
    let mut signals = Signals::listen()?;
    if let Some(times) = plan.args.repeat {
        return command::repeat(session, &plan, &programs, &mut signals, times).await;
    }
    if !plan.args.command.is_empty() {
        return command::once(session, &plan, &programs, &mut signals).await;
    }
    let lab = prepare::prepare(session, &plan)?;
    guard(&plan, &lab, &programs)?;
    if plan.args.detach {
        let brought = bring::bring_up(&lab, &plan, &programs).await;
        let (client, now) = match brought {
            Ok(brought) => brought,
            Err(failure) => return Err(not_begun(session, &lab, failure).await),
        };
        output::data(bring::welcome(&client.context, &now, None))?;
        output::say(format!("it goes on; end it with: {}", client.context.typed("down")));
        return Ok(Exit::DONE);
    }
    stay::foreground(session, &plan, lab, &programs, &mut signals).await
}

/// A lab whose first change is refused is not begun: what was started for it goes again, and a lab that is
/// new leaves nothing.
async fn not_begun(session: &Session, lab: &Lab, failure: Failure) -> Failure {
    if failure.exit != Exit::REFUSED || lab.was_running {
        return failure;
    }
    output::say("the file is refused: taking the lab down again …");
    let ended = down::end(&session.places, lab.context.clone(), lab.is_new).await;
    match ended.and_then(|report| down::finish_quietly(&lab.context, &report)) {
        Ok(_) => failure,
        Err(left) => {
            output::say(left);
            failure
        }
    }
}

/// Starts the guard of a lab that must not outlive this command or its time.
fn guard(plan: &Plan, lab: &Lab, programs: &Programs) -> Result<(), Failure> {
    if plan.is_guarded() {
        let parent = (!plan.args.detach).then(std::process::id);
        guard::spawn(programs, &lab.context, parent, plan.lifetime())?;
    }
    Ok(())
}

/// How much is told of a lab's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Everything that is gone and kept, as data.
    Whole,
    /// One line beside the output of somebody's command.
    InBrief,
}

/// Takes a lab down at the end of a command: data goes where it is ephemeral.
///
/// # Errors
/// Something is left.
async fn finish(session: &Session, lab: &Lab, signals: &mut Signals, told: Told) -> Outcome {
    let context = &lab.context;
    if told == Told::Whole {
        output::say("taking the lab down …");
    }
    let ending = down::end(&session.places, context.clone(), context.ephemeral);
    tokio::pin!(ending);
    let report = loop {
        tokio::select! {
            report = &mut ending => break report?,
            name = signals.next() => {
                output::say(format!("{name}: still taking the lab down, so that nothing is left"));
            }
        }
    };
    if told == Told::InBrief {
        return down::finish_quietly(context, &report);
    }
    down::finish(context, &report, Format::Table)
}

/// Makes sure that a lab runs: for commands that need one and find none.
///
/// # Errors
/// As [`run`].
pub async fn ensure(session: &Session) -> Result<(), Failure> {
    if let Ok(context) = session.places.find(session.lab.as_deref())
        && context.is_running()
    {
        return Ok(());
    }
    output::say("no lab runs; starting one: faultbed up -d");
    let args = UpArgs { detach: true, wait: Span(BRING_MAX), ..UpArgs::default() };
    let plan = Plan::new(args)?;
    let programs = Programs::find()?;
    let lab = prepare::prepare(session, &plan)?;
    bring::bring_up(&lab, &plan, &programs).await?;
    Ok(())
}

/// How long a lab may take to come up where nothing is said.
const BRING_MAX: Duration = Duration::from_secs(60);

/// Runs a cluster of a blueprint in a lab of its own until it is ready, and takes the lab down.
///
/// # Errors
/// It does not become ready in time; or something is left.
pub async fn trial(
    session: &Session,
    name: &str,
    blueprint: Blueprint,
    limit: Duration,
) -> Outcome {
    let cluster = "check".parse().map_err(|e| Failure::no(format!("name the trial: {e}")))?;
    let spec = ClusterSpec { blueprint: name.to_owned(), ..ClusterSpec::default() };
    let missing = lab_file::missing_programs(&spec, &blueprint, Hosts::Here);
    if let Some((_, problem)) = missing.into_iter().next() {
        return Err(problem.failure());
    }
    let change = EditRequest {
        edit: Edit::StartCluster { name: cluster, spec },
        plan: false,
        if_generation: None,
        blueprints: BTreeMap::from([(name.to_owned(), blueprint)]),
        everyone: false,
        force: false,
        files: faultbed_common::program::Files::default(),
    };
    let args = UpArgs { ephemeral: true, wait: Span(limit), ..UpArgs::default() };
    let plan = Plan { args, change: Some(change), file: None };
    let programs = Programs::find()?;
    let mut signals = Signals::listen()?;
    let lab = prepare::prepare(session, &plan)?;
    guard(&plan, &lab, &programs)?;
    let brought = tokio::select! {
        brought = bring::bring_up(&lab, &plan, &programs) => brought,
        name = signals.next() => Err(Failure::no(format!("ended by {name}"))),
    };
    let shown = brought.map(|(_, now)| status::overview(&now));
    if let Ok(text) = &shown {
        output::data(text)?;
    }
    finish(session, &lab, &mut signals, Told::InBrief).await?;
    shown.map(|_| Exit::DONE)
}
