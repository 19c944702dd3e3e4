//! `apply FILE` and `plan FILE`: the lab as a file says.

use faultbed_common::edit::Edit;

use crate::cli::{
    Session,
    change::{self, ChangeArgs},
    diff,
    failure::{Exit, Outcome},
    lab_file,
    output::{self, Format},
};

/// The file, named in either way.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct FileArgs {
    /// The lab file
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    path: Option<String>,
    /// The same
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: Option<String>,
}

impl FileArgs {
    fn path(&self) -> &str {
        self.path.as_deref().or(self.file.as_deref()).unwrap_or_default()
    }
}

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Exit 1 where there are changes
    #[arg(long)]
    exit_code: bool,
    /// May touch what others own
    #[arg(long)]
    everyone: bool,
    #[command(flatten)]
    output: output::OutputArgs,
}

/// Runs `apply`.
///
/// # Errors
/// The file has mistakes, or as [`change::perform`].
pub async fn apply(session: &Session, args: &ApplyArgs) -> Outcome {
    let loaded = lab_file::load(args.file.path(), session.hosts())?;
    let client = session.client().await?;
    let request = args.change.request(Edit::Apply(Box::new(loaded.file)), loaded.blueprints);
    let done = change::perform(&client, request, &args.change).await;
    done.map_err(|failure| loaded.source.locate(failure))
}

/// Runs `plan`.
///
/// # Errors
/// The file has mistakes, or the lab refuses or cannot be reached.
pub async fn plan(session: &Session, args: &PlanArgs) -> Outcome {
    let loaded = lab_file::load(args.file.path(), session.hosts())?;
    let client = session.client().await?;
    let change = ChangeArgs { plan: true, everyone: args.everyone, ..ChangeArgs::default() };
    let request = change.request(Edit::Apply(Box::new(loaded.file)), loaded.blueprints);
    let reply = client.edit(&request).await.map_err(|refused| loaded.source.locate(refused))?;
    match args.output.output {
        Format::Json => output::json(&reply)?,
        Format::Table => output::data(diff::plan(&reply))?,
    }
    Ok(if args.exit_code && reply.changed { Exit::NO } else { Exit::DONE })
}
