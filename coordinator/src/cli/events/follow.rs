//! Follows what one coordinator tells, also over its restarts: nothing is told twice, and what is lost is said.

use std::time::Duration;

use faultbed_common::event::{Event, EventQuery};
use futures::{Stream, StreamExt as _};

use crate::cli::{
    client::Client,
    failure::{Exit, Failure},
};

/// The first try to reach a coordinator again comes after this; each further one after twice as long.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// No try waits longer.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A coordinator that does not answer so many times in a row is given up: that takes ten minutes.
const RETRIES_MAX: u32 = 125;

/// What comes of following.
#[derive(Debug)]
pub(super) enum Heard {
    /// It tells this.
    Event(Event),
    /// It tells nothing now, for this reason, and is asked again.
    Lost(String),
    /// It tells again; with what cannot be told any more.
    Back(Option<String>),
    /// It was asked often enough.
    GivenUp(Failure),
}

/// How far one coordinator's story was heard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thread {
    /// The number of the last event; 0 is none.
    pub(super) last: u64,
}

impl Thread {
    /// Takes the number of the newest event that a coordinator has when it tells again. Says what is
    /// amiss: a journal that was lost begins anew, and its numbers are lower.
    fn resume(&mut self, newest: u64) -> Option<String> {
        (newest < self.last).then(|| {
            self.last = 0;
            "its journal begins anew".to_owned()
        })
    }

    /// Whether an event is new; `missed` are those between that it has forgotten.
    fn take(&mut self, seq: u64) -> Option<u64> {
        let missed = seq.checked_sub(self.last + 1)?;
        self.last = seq;
        Some(missed)
    }
}

/// What a coordinator tells from here on, until it is given up.
pub(super) fn follow(teller: Client, mut thread: Thread) -> impl Stream<Item = Heard> + Send {
    async_stream::stream! {
        let mut client = teller;
        let (mut tries, mut retry) = (0, RETRY_FIRST);
        loop {
            let query = EventQuery { follow: true, tail: None, after: Some(thread.last) };
            let why = match client.events(&query).await {
                Ok(mut events) => loop {
                    match events.next().await {
                        Some(Ok(event)) => {
                            let Some(missed) = thread.take(event.seq) else { continue };
                            retry = RETRY_FIRST;
                            if missed > 0 {
                                yield Heard::Back(Some(format!("{missed} events are not kept any more")));
                            }
                            yield Heard::Event(event);
                        }
                        Some(Err(failure)) => break failure,
                        None => break Failure::unreachable("it ended what it told"),
                    }
                },
                Err(failure) => failure,
            };
            yield Heard::Lost(why.message.clone().unwrap_or_default());
            let mut last = why;
            loop {
                tries += 1;
                if tries > RETRIES_MAX {
                    yield Heard::GivenUp(last);
                    return;
                }
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY_MAX);
                match newest(&client).await {
                    Ok((again, newest)) => {
                        client = again;
                        tries = 0;
                        yield Heard::Back(thread.resume(newest));
                        break;
                    }
                    // Who may not ask any more will not be heard by asking more often.
                    Err(failure) if failure.exit == Exit::REFUSED => {
                        yield Heard::GivenUp(failure);
                        return;
                    }
                    Err(failure) => last = failure,
                }
            }
        }
    }
}

/// Another connection to a coordinator, and the number of its newest event.
async fn newest(client: &Client) -> Result<(Client, u64), Failure> {
    let again = client.again().await?;
    let query = EventQuery { follow: false, tail: Some(1), after: None };
    let mut events = again.events(&query).await?;
    let newest = match events.next().await {
        Some(event) => event?.seq,
        None => 0,
    };
    Ok((again, newest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_not_told_again_and_what_is_forgotten_is_counted() {
        let mut thread = Thread { last: 7 };
        assert_eq!(thread.resume(9), None);
        let taken: Vec<_> = [6, 7, 8, 9, 12].map(|seq| thread.take(seq)).into();
        assert_eq!(taken, [None, None, Some(0), Some(0), Some(2)]);
        assert_eq!(thread.last, 12);
    }

    #[test]
    fn a_journal_that_was_lost_is_told_from_its_beginning() {
        let mut thread = Thread { last: 500 };
        assert!(thread.resume(2).is_some());
        assert_eq!([1, 2].map(|seq| thread.take(seq)), [Some(0); 2]);
    }
}
