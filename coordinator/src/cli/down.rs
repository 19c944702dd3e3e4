//! `faultbed down`: ends a local lab and proves that nothing is left. Works when every daemon is dead.

pub mod inventory;
pub mod listeners;
pub mod take;

use crate::cli::{
    Session,
    context::{Context, Places},
    failure::{Exit, Failure, Outcome},
    output::{self, Format, OutputArgs},
    table::{Tone, tone},
};
pub use take::{Report, take_down};

/// Arguments of `down`.
#[derive(Debug, clap::Args)]
pub struct DownArgs {
    /// Delete its data too
    #[arg(long)]
    wipe: bool,
    /// End what is left of labs that are no more
    #[arg(long)]
    orphans: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `down`.
///
/// # Errors
/// Something is left: exit 1 with the list.
pub async fn run(session: &Session, args: &DownArgs) -> Outcome {
    if args.orphans {
        return orphans(session, args).await;
    }
    let context = session.places.find(session.lab.as_deref())?;
    context.must_be_own("down")?;
    let report = end(&session.places, context.clone(), args.wipe).await?;
    finish(&context, &report, args.output.output)
}

/// Takes a lab down without blocking the signals of this process.
///
/// # Errors
/// The lab is locked by another command for too long.
pub async fn end(places: &Places, context: Context, wipe: bool) -> Result<Report, Failure> {
    let places = places.clone();
    tokio::task::spawn_blocking(move || take_down(&places, &context, wipe))
        .await
        .map_err(|e| Failure::no(format!("take the lab down: {e}")))?
}

/// Prints what a lab's end left, and judges it.
///
/// # Errors
/// Something is left.
pub fn finish(context: &Context, report: &Report, format: Format) -> Outcome {
    match format {
        Format::Json => output::json(report)?,
        Format::Table => {
            output::data(format!("lab {} is down", tone(&context.name, Tone::Strong)))?;
            output::data(told(report))?;
        }
    }
    judge(context, report)
}

fn judge(context: &Context, report: &Report) -> Outcome {
    if report.left.is_empty() {
        return Ok(Exit::DONE);
    }
    Err(Failure::no(format!(
        "something of lab `{}` is left: {}",
        context.name,
        report.left.join(", ")
    ))
    .next(context.typed("down   # tries again")))
}

/// Says in one line beside other output what a lab's end left, and judges it.
///
/// # Errors
/// Something is left.
pub fn finish_quietly(context: &Context, report: &Report) -> Outcome {
    let kept: String = report.kept.iter().map(|kept| format!("; kept: {kept}")).collect();
    output::say(tone(format!("lab {} is down{kept}", context.name), Tone::Faint));
    judge(context, report)
}

/// A report in lines.
#[must_use]
pub fn told(report: &Report) -> String {
    let lines = |title: &str, mood: Tone, items: &[String]| -> Vec<String> {
        items.iter().map(|item| format!("  {}  {item}", tone(format!("{title:4}"), mood))).collect()
    };
    let mut all = lines("gone", Tone::Good, &report.gone);
    if report.gone.is_empty() {
        all.push("  nothing of it was running".to_owned());
    }
    all.extend(lines("kept", Tone::Calm, &report.kept));
    all.extend(lines("left", Tone::Bad, &report.left));
    all.join("\n")
}

/// Ends the processes of labs whose directory is gone or is no lab's any more.
async fn orphans(session: &Session, args: &DownArgs) -> Outcome {
    let mut whole = Report::default();
    let dirs = tokio::task::spawn_blocking(inventory::lab_dirs)
        .await
        .map_err(|e| Failure::no(format!("look for orphans: {e}")))?;
    for dir in dirs {
        if matches!(Context::read(&dir), Ok(Some(_))) {
            continue;
        }
        let places = session.places.clone();
        let report = tokio::task::spawn_blocking(move || take::end_orphans(&places, &dir))
            .await
            .map_err(|e| Failure::no(format!("end orphans: {e}")))?;
        whole.gone.extend(report.gone);
        whole.left.extend(report.left);
    }
    match args.output.output {
        Format::Json => output::json(&whole)?,
        Format::Table if whole.gone.is_empty() => output::data("no orphans")?,
        Format::Table => output::data(told(&whole))?,
    }
    if whole.left.is_empty() {
        return Ok(Exit::DONE);
    }
    Err(Failure::no(format!("still there: {}", whole.left.join(", ")))
        .next("faultbed down --orphans   # tries again"))
}
