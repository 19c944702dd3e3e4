//! Follows the status of a lab until goals are met, with a deadline and progress on stderr.

use std::time::{Duration, Instant};

use faultbed_common::{
    duration::Span,
    edit::WatchQuery,
    report::REFUSED,
    status::{NodeStatus, Status},
};
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Goal, Judgement, judge};
use crate::cli::{
    client::{Client, Documents},
    failure::{Exit, Failure},
    output,
    status::words,
    table,
};

/// Goals that depend on how long they are waited for are judged again this often.
const JUDGE_EVERY: Duration = Duration::from_millis(500);

/// Where nobody watches, what is awaited is said at most this often.
const SAID_EVERY: Duration = Duration::from_secs(2);

/// How long a coordinator may be away while something is awaited.
const AWAY_MAX: Duration = Duration::from_secs(10);

/// A coordinator that is away is tried this often.
const TRY_EVERY: Duration = Duration::from_millis(100);

/// And what has not changed since, this often.
const SAID_AGAIN_EVERY: Duration = Duration::from_secs(20);

/// Progress is not shown for what is over sooner, so that quick commands do not flicker.
const SHOWN_AFTER: Duration = Duration::from_millis(300);

/// Characters of such a line; the whole of it is in `status`, and in the error where time runs out.
const SAID_CHARS_MAX: usize = 200;

/// Columns of a terminal that does not say how wide it is.
const WIDTH_DEFAULT: usize = 80;

/// Columns of a moving line beside its message: the spinner before it, the time after it.
const AROUND_MESSAGE: usize = 12;

/// How waiting ended well.
#[derive(Debug, Clone)]
pub struct Waited {
    /// The status that met every goal, without the links of faults, one by one; where all goals are of
    /// faults, of faults alone.
    pub status: Status,
    /// How some were met, in words.
    pub said: Vec<String>,
}

/// Waits until every goal is met.
///
/// # Errors
/// A goal cannot be met any more (exit 1), or `limit` passed (exit 3); says which and why.
pub async fn until(client: &Client, goals: Vec<Goal>, limit: Duration) -> Result<Waited, Failure> {
    // A status of thousands of nodes takes longer to read than a fault to begin.
    let query = WatchQuery { brief: true, only_faults: goals.iter().all(Goal::is_of_a_fault) };
    until_as(client, goals, limit, query).await
}

/// As [`until`], with what the status is to say that met them.
///
/// # Errors
/// As [`until`].
pub async fn until_as(
    client: &Client,
    goals: Vec<Goal>,
    limit: Duration,
    query: WatchQuery,
) -> Result<Waited, Failure> {
    let begun = Instant::now();
    let mut statuses = rewatch(client, query, Duration::ZERO).await?;
    let mut latest: Option<Status> = None;
    let mut progress = Progress::new(begun);
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let news = tokio::time::timeout(left.min(JUDGE_EVERY), statuses.next()).await;
        match news {
            Ok(Some(Ok(status))) => latest = Some(status),
            Ok(Some(Err(failure))) if failure.exit != Exit::UNREACHABLE => return Err(failure),
            Ok(Some(Err(_)) | None) => {
                statuses = rewatch(client, query, AWAY_MAX.min(left)).await?;
            }
            Err(_) => {}
        }
        let Some(status) = &latest else {
            if begun.elapsed() >= limit {
                return Err(late(client, limit, "the lab sent no status"));
            }
            continue;
        };
        match judge_all(status, &goals, begun.elapsed()) {
            All::Met(said) => return Ok(Waited { status: status.clone(), said }),
            All::Never(why) => return Err(never(client, status, &why)),
            All::NotYet(mut why) if begun.elapsed() >= limit => {
                let leaves = |node: &&NodeStatus| {
                    let is_it =
                        |goal: &Goal| matches!(goal, Goal::Removed(name, ..) if *name == node.name);
                    goals.iter().any(is_it)
                };
                why.extend(status.leaving.iter().filter(leaves).filter_map(words::stays));
                return Err(late(client, limit, &why.join("; ")));
            }
            All::NotYet(why) => progress.show(&why),
        }
    }
}

/// Watches anew: a coordinator that ends and comes back loses nothing, so neither does a wait.
async fn rewatch(
    client: &Client,
    query: WatchQuery,
    limit: Duration,
) -> Result<Documents<Status>, Failure> {
    let begun = Instant::now();
    loop {
        match client.watch(query).await {
            Err(failure) if failure.exit == Exit::UNREACHABLE && begun.elapsed() < limit => {
                tokio::time::sleep(TRY_EVERY).await;
            }
            other => return other,
        }
    }
}

enum All {
    Met(Vec<String>),
    NotYet(Vec<String>),
    Never(String),
}

fn judge_all(status: &Status, goals: &[Goal], waited: Duration) -> All {
    let mut said = Vec::new();
    let mut late = Vec::new();
    for goal in goals {
        match judge(status, goal, waited) {
            Judgement::Met(word) => said.extend(word),
            // Two goals of one node may wait for the same.
            Judgement::NotYet(why) if late.contains(&why) => {}
            Judgement::NotYet(why) => late.push(why),
            Judgement::Never(why) => return All::Never(why),
        }
    }
    if late.is_empty() { All::Met(said) } else { All::NotYet(late) }
}

fn late(client: &Client, limit: Duration, why: &str) -> Failure {
    Failure::late(format!("not in time, after {}: {why}", Span(limit)))
        .next(client.context.typed("status"))
        .next(client.context.typed("events"))
}

/// A goal is lost: where nodes crashed, their last words are the answer.
fn never(client: &Client, status: &Status, why: &str) -> Failure {
    let about = status.nodes.iter().find(|n| why.split(' ').next() == Some(n.name.as_str()));
    if why.contains(REFUSED) {
        // Others may have crashed; that is not why this one is lost.
        let failure = Failure::no(why);
        let failure = match about {
            Some(node) => failure.next(client.context.typed(&format!("show {}", node.name))),
            None => failure,
        };
        return failure.next(client.context.typed("history"));
    }
    let crashed = crate::cli::status::crashes(status);
    let failure = Failure::no(if crashed.is_empty() { why } else { &crashed });
    match about {
        Some(node) => failure
            .next(client.context.typed(&format!("logs {}", node.name)))
            .next(client.context.typed(&format!("start {}", node.name))),
        None => failure.next(client.context.typed("status")),
    }
}

/// What is still awaited, on stderr: a moving line for a person, else a line now and then.
struct Progress {
    begun: Instant,
    bar: Option<ProgressBar>,
    said_at: Option<Instant>,
    said: String,
}

impl Progress {
    fn new(begun: Instant) -> Self {
        Self { begun, bar: None, said_at: None, said: String::new() }
    }

    fn show(&mut self, why: &[String]) {
        if self.begun.elapsed() < SHOWN_AFTER {
            return;
        }
        if output::is_watched() {
            let width = table::columns(std::io::stderr()).unwrap_or(WIDTH_DEFAULT);
            let text = table::shorten(&why.join("; "), width.saturating_sub(AROUND_MESSAGE));
            self.bar.get_or_insert_with(spinner).set_message(text);
            return;
        }
        // The first line comes late: most waits are over by then.
        let last = self.said_at.unwrap_or(self.begun);
        let text = why.join("; ");
        let every = if text == self.said { SAID_AGAIN_EVERY } else { SAID_EVERY };
        if last.elapsed() >= every {
            let seconds = self.begun.elapsed().as_secs_f32();
            let shown = table::shorten(&text, SAID_CHARS_MAX);
            output::say(format!("{seconds:5.1} s  {shown}"));
            self.said_at = Some(Instant::now());
            self.said = text;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A moving line on stderr, cleared when dropped or finished.
#[must_use]
pub fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {wide_msg} {elapsed:.dim}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
