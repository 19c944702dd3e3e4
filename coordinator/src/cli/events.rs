//! `events` and `history`: what happened, and which changes were accepted.

mod follow;
mod merge;

use std::collections::BTreeMap;

use faultbed_common::{
    edit::HistoryEntry,
    event::{Event, EventKind, EventQuery},
};
use futures::{StreamExt, stream::select_all};

use self::{
    follow::{Heard, Thread},
    merge::{Merger, Told},
};
use crate::cli::{
    Session,
    client::Client,
    diff,
    failure::{Exit, Failure, Outcome},
    output::{self, Format},
    table::{self, Tone, tone},
};

/// Events shown where nothing is said.
const TAIL_DEFAULT: u32 = 50;

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    /// Go on as they happen
    #[arg(short, long)]
    follow: bool,
    /// How many of the past to begin with
    #[arg(short = 'n', long, value_name = "N", default_value_t = TAIL_DEFAULT)]
    tail: u32,
    #[command(flatten)]
    output: output::OutputArgs,
}

/// Arguments of `history`.
#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    /// Show what this generation changed
    #[arg(value_name = "GENERATION")]
    generation: Option<u64>,
    #[command(flatten)]
    output: output::OutputArgs,
}

/// Runs `events`. Each coordinator tells what it saw itself: all of them are asked.
///
/// # Errors
/// The lab cannot be reached.
pub async fn events(session: &Session, args: &EventsArgs) -> Outcome {
    let client = session.client().await?;
    let mut tellers = vec![(client.place(), client.clone())];
    for (place, other) in client.each_other().await {
        match other {
            Ok(other) => tellers.push((place, other)),
            Err(_) => output::say(format!("{place} does not answer; what it alone saw is missing")),
        }
    }
    let mut merger = Merger::default();
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    // One at least, to know from where to go on.
    let past = EventQuery { follow: false, tail: Some(args.tail.max(1)), after: None };
    let mut told = Vec::new();
    for (place, teller) in &tellers {
        let mut events = teller.events(&past).await?;
        while let Some(event) = events.next().await {
            let event = event?;
            last.insert(place.clone(), event.seq);
            told.push((place.clone(), event));
        }
    }
    told.sort_by_key(|(_, event)| event.at_unix_ms);
    for (place, event) in told {
        merger.take(&place, event);
    }
    let merged = merger.told();
    for told in merged.iter().skip(merged.len().saturating_sub(args.tail as usize)) {
        show(told, tellers.len(), args)?;
    }
    if args.follow {
        follow(tellers, last, merger, args).await?;
    }
    Ok(Exit::DONE)
}

/// Goes on with what each tells from here on; what several tell is shown when the first does. Who goes
/// away is waited for.
async fn follow(
    tellers: Vec<(String, Client)>,
    last: BTreeMap<String, u64>,
    mut merger: Merger,
    args: &EventsArgs,
) -> Result<(), Failure> {
    let heard = tellers.into_iter().map(|(place, teller)| {
        let last = last.get(&place).copied().unwrap_or(0);
        let heard = follow::follow(teller, Thread { last });
        heard.map(move |heard| (place.clone(), heard)).boxed()
    });
    let mut streams = select_all(heard);
    let mut given_up = None;
    while let Some((place, heard)) = streams.next().await {
        match heard {
            Heard::Event(event) => {
                if let Some(told) = merger.take(&place, event) {
                    // Whether others tell it too is not known yet.
                    show(&told, told.from.len(), args)?;
                }
            }
            Heard::Lost(why) => {
                output::say(format!("{place} tells no more: {why}; it is asked again"));
            }
            Heard::Back(None) => output::say(format!("{place} tells again")),
            Heard::Back(Some(but)) => output::say(format!("{place} tells again, but {but}")),
            Heard::GivenUp(failure) => {
                output::say(format!("{place} is given up; what it alone sees is missing"));
                given_up = Some(failure);
            }
        }
    }
    given_up.map_or(Ok(()), Err)
}

fn show(told: &Told, tellers: usize, args: &EventsArgs) -> Result<(), Failure> {
    match args.output.output {
        Format::Json => output::json_line(told),
        Format::Table if told.from.len() >= tellers => output::data(line(&told.event)),
        Format::Table => {
            let from = tone(format!("(told by {} alone)", told.from.join(", ")), Tone::Faint);
            output::data(format!("{}  {from}", line(&told.event)))
        }
    }
}

/// One event on one line.
#[must_use]
pub fn line(event: &Event) -> String {
    let mood = match event.kind {
        EventKind::Stuck | EventKind::Refused => Tone::Bad,
        EventKind::Fault => Tone::Warn,
        EventKind::Change | EventKind::Role => Tone::Calm,
        EventKind::Node | EventKind::Host => Tone::Plain,
    };
    // Sentences that name their subject themselves need no second one.
    let is_of_lab = event.kind == EventKind::Change;
    let text = if is_of_lab || event.text.contains(&event.subject) {
        event.text.clone()
    } else {
        format!("{} {}", event.subject, event.text)
    };
    format!("{}  {}", tone(clock(event.at_unix_ms), Tone::Faint), tone(text, mood))
}

/// The local time of day, to the millisecond.
#[must_use]
pub fn clock(at_unix_ms: u64) -> String {
    let at =
        i64::try_from(at_unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    match at {
        Some(at) => at.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S%.3f").to_string(),
        None => at_unix_ms.to_string(),
    }
}

/// Runs `history`.
///
/// # Errors
/// There is no such generation, or the lab cannot be reached.
pub async fn history(session: &Session, args: &HistoryArgs) -> Outcome {
    let client = session.client().await?;
    let entries = client.history().await?;
    let Some(wanted) = args.generation else {
        match args.output.output {
            Format::Json => output::json(&entries)?,
            Format::Table => output::data(entries_table(&entries))?,
        }
        return Ok(Exit::DONE);
    };
    let Some(entry) = entries.iter().find(|entry| entry.generation.0 == wanted) else {
        let known: Vec<String> = entries.iter().map(|e| e.generation.to_string()).collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let mut failure = crate::cli::status::unknown("generation", &wanted.to_string(), &known);
        failure.next = vec![client.context.typed("history")];
        return Err(failure);
    };
    match args.output.output {
        Format::Json => output::json(entry)?,
        Format::Table => output::data(entry_text(entry))?,
    }
    Ok(Exit::DONE)
}

fn entries_table(entries: &[HistoryEntry]) -> String {
    let rows = entries
        .iter()
        .map(|entry| {
            let objects: Vec<String> =
                entry.objects.iter().map(|o| format!("{} {}", o.kind, o.name)).collect();
            vec![
                table::cell(entry.generation, Tone::Strong),
                table::plain(clock(entry.at_unix_ms)),
                table::plain(&entry.by),
                table::plain(&entry.what),
                table::cell(objects.join(", "), Tone::Faint),
            ]
        })
        .collect();
    table::render(&["GENERATION", "AT", "BY", "WHAT", "OBJECTS"], rows)
}

fn entry_text(entry: &HistoryEntry) -> String {
    let reply = faultbed_common::edit::EditReply {
        generation: entry.generation,
        changed: true,
        objects: entry.objects.clone(),
        ..faultbed_common::edit::EditReply::default()
    };
    let what = &entry.what;
    let head = format!("generation {} · {} · {what}", entry.generation, entry.by);
    format!("{}\n\n{}", tone(head, Tone::Strong), diff::plan(&reply))
}
