//! A lab in the foreground: shows what happens until Ctrl-C, TERM, HUP or its time, then takes it down.

use std::time::Duration;

use faultbed_common::event::EventQuery;
use futures::StreamExt;

use super::{Plan, Told, bring, daemons::Programs, finish, prepare::Lab, signals::Signals};
use crate::cli::{
    Session,
    client::Client,
    context::Context,
    events,
    failure::{Exit, Outcome},
    output,
    table::{Tone, tone},
};

/// A coordinator that went away is asked again this often.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Why a foreground lab ends.
enum End {
    Signal(&'static str),
    Time,
    /// Another command took it down.
    Gone,
}

/// Brings the lab up, stays with it, and takes it down.
///
/// # Errors
/// It does not come up, or something is left.
pub async fn foreground(
    session: &Session,
    plan: &Plan,
    lab: Lab,
    programs: &Programs,
    signals: &mut Signals,
) -> Outcome {
    let begun = tokio::time::Instant::now();
    let brought = tokio::select! {
        brought = bring::bring_up(&lab, plan, programs) => brought,
        name = signals.next() => {
            output::say(format!("{name} while the lab was coming up"));
            return finish(session, &lab, signals, Told::Whole).await;
        }
    };
    let client = match brought {
        Ok((client, now)) => {
            output::data(bring::welcome(&client.context, &now, None))?;
            client
        }
        Err(failure) => {
            // Nodes that crashed are a finding: the lab stays, so that one can look.
            let looks = failure.exit == Exit::NO || failure.exit == Exit::LATE;
            let client = Client::connect(lab.context.clone()).await;
            match client {
                Ok(client) if looks && output::is_watched() => {
                    output::say(&failure);
                    client
                }
                _ => {
                    finish(session, &lab, signals, Told::Whole).await?;
                    return Err(failure);
                }
            }
        }
    };
    let typed = tone(lab.context.typed("status"), Tone::Strong);
    output::say(format!("\nCtrl-C takes the lab down; meanwhile in another terminal: {typed}"));
    let end = tokio::select! {
        name = signals.next() => End::Signal(name),
        () = deadline(begun, plan.lifetime(), &lab.context) => End::Time,
        () = tell(&client) => End::Gone,
    };
    match end {
        End::Signal(name) => output::say(format!("\n{name}")),
        End::Time => output::say("\nits time is up"),
        End::Gone => {
            output::say("the lab was taken down by another command");
            return Ok(Exit::DONE);
        }
    }
    finish(session, &lab, signals, Told::Whole).await
}

/// Returns when the lab's time is up, unless another command has set it anew since.
async fn deadline(begun: tokio::time::Instant, lifetime: Option<Duration>, context: &Context) {
    if let Some(lifetime) = lifetime {
        tokio::time::sleep_until(begun + lifetime).await;
        let is_ours = |now: &Context| now.terms == context.terms;
        if Context::read(&context.dir).ok().flatten().as_ref().is_none_or(is_ours) {
            return;
        }
    }
    std::future::pending().await
}

/// Prints events until the lab is no more. A coordinator that only died is waited for.
async fn tell(client: &Client) {
    let context = &client.context;
    let mut said = false;
    loop {
        let query = EventQuery { follow: true, tail: Some(0), after: None };
        if let Ok(client) = Client::connect(context.clone()).await
            && let Ok(mut events) = client.events(&query).await
        {
            said = false;
            while let Some(Ok(event)) = events.next().await {
                output::say(events::line(&event));
            }
        }
        if !is_same(context) {
            return;
        }
        if !said && !context.is_running() {
            output::say(format!(
                "the coordinator went away; nodes and faults go on; bring it back with: {}",
                context.typed("up -d")
            ));
            said = true;
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Whether the lab on disk is still this life of it, and its directory for sockets there.
fn is_same(context: &Context) -> bool {
    let same = matches!(Context::read(&context.dir), Ok(Some(now)) if now.token == context.token);
    same && context.runtime.exists()
}
