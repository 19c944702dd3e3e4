//! The loop that does what nobody asks for: automatic changes, hand edits, and the story of events.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use faultbed_common::{event::EventKind, generation::Generation, status::Status};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    decide::{
        chores,
        edit::decide_hand_edit,
        events::{self, events},
        status::Detail,
    },
    editor::{Editor, asked, reports_of_living, unix_ms},
    journal::Journal,
    mirror::{Mirror, MirrorHandle},
    pki,
    store::keys::{HandEdit, SpecKey, hand_edits},
    view::status_of,
};

/// Ages in statuses move without any change; roles and deadlines are looked at this often.
const RECHECK: Duration = Duration::from_secs(1);

/// What is due by time is looked at no more often.
const OVERDUE: Duration = Duration::from_millis(20);

/// After each look comes a rest so many times as long: a lab of hundreds of hosts has news all the time,
/// and looking at all of it must not be all that a coordinator does.
const REST: u32 = 4;

/// No rest is longer.
const REST_MAX: Duration = Duration::from_millis(250);

/// Changes that are told one by one; a coordinator that begins late tells of many at once.
const CHANGES_MAX: u64 = 20;

/// The author of automatic changes.
pub const AUTOMATIC: &str = "faultbed";

/// The author of changes made in the store itself.
const BY_HAND: &str = "hand";

/// Hand edits that were refused and still stand: what was judged, and why it was refused.
#[derive(Debug, Default)]
pub struct Refused(Mutex<BTreeMap<SpecKey, (HandEdit, Generation, String)>>);

impl Refused {
    /// The refusals as sentences.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        self.lock()
            .iter()
            .map(|(SpecKey { kind, name }, (_, _, why))| {
                format!(
                    "spec/{kind}/{name}: hand edit refused: {why}; the last good version stays in force"
                )
            })
            .collect()
    }

    /// Whether this edit was judged against this generation; another one may judge otherwise.
    fn judged(&self, edit: &HandEdit, generation: Generation) -> bool {
        self.lock().get(&edit.key).is_some_and(|(held, at, _)| held == edit && *at == generation)
    }

    /// Keeps a refusal; true where it is news.
    fn insert(&self, edit: HandEdit, generation: Generation, why: String) -> bool {
        let before = self.lock().insert(edit.key.clone(), (edit.clone(), generation, why.clone()));
        before.is_none_or(|(held, _, reason)| held != edit || reason != why)
    }

    /// Forgets refusals of edits that were taken back.
    fn keep_only(&self, edits: &[HandEdit]) {
        self.lock().retain(|key, _| edits.iter().any(|edit| edit.key == *key));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SpecKey, (HandEdit, Generation, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the loop works with.
#[derive(Debug, Clone)]
pub struct Chores {
    /// The lab as it is in the store.
    pub mirror: Arc<MirrorHandle>,
    /// Commits.
    pub editor: Editor,
    /// Where events go.
    pub journal: Arc<Journal>,
    /// What was refused.
    pub refused: Arc<Refused>,
}

impl Chores {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut changes = self.mirror.news();
        let mut before = self.status(&self.mirror.now());
        let mut ca_before = pki::seen(&self.mirror.now());
        let mut is_news = true;
        loop {
            let looked = tokio::time::Instant::now();
            self.do_one(&self.mirror.now()).await;
            let seen = self.mirror.now();
            // Nothing happens to anybody by time alone that nobody reports.
            if std::mem::take(&mut is_news) {
                let after = self.status(&seen);
                for (kind, subject, text) in self.changes(&before, &after).await {
                    self.journal.write(kind, subject, text);
                }
                let ca = pki::seen(&seen);
                let of_ca = events::authority(ca_before.as_ref(), ca.as_ref());
                for (kind, subject, text) in of_ca.into_iter().chain(events(&before, &after)) {
                    self.journal.write(kind, subject, text);
                }
                (before, ca_before) = (after, ca);
            }
            let rest = (looked.elapsed() * REST).min(REST_MAX);
            let due = chores::next_at_unix_ms(&seen.lab)
                .map_or(RECHECK, |at| Duration::from_millis(at.saturating_sub(unix_ms())))
                // What is overdue by our clock is not by a host's, whose report will wake us.
                .clamp(OVERDUE, RECHECK);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(rest) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    is_news = true;
                }
                () = tokio::time::sleep(due) => {}
            }
        }
    }

    fn status(&self, seen: &Mirror) -> Status {
        let how = (unix_ms(), Detail::NoEvidenceOfLinks);
        status_of(seen, &self.refused.sentences(), how)
    }

    /// The changes that were accepted between two statuses, with what each was.
    async fn changes(&self, before: &Status, after: &Status) -> Vec<events::Found> {
        let (first, last) = (before.generation.0 + 1, after.generation.0);
        let mut found = Vec::new();
        if last.saturating_sub(first) >= CHANGES_MAX {
            let text = format!("generations {first} to {last}: faultbed history");
            found.push((EventKind::Change, after.lab.to_string(), text));
            return found;
        }
        for generation in first..=last {
            match self.mirror.change(Generation(generation)).await {
                Ok(Some(entry)) => found.push(events::change(&after.lab, &entry)),
                Ok(None) | Err(_) => {
                    let text = format!("generation {generation} is accepted");
                    found.push((EventKind::Change, after.lab.to_string(), text));
                }
            }
        }
        found
    }

    /// At most one commit: the next look sees what it did.
    async fn do_one(&self, seen: &Mirror) {
        let reports = reports_of_living(seen);
        let edits = hand_edits(&seen.lab, &seen.specs);
        self.refused.keep_only(&edits);
        for edit in edits {
            if self.refused.judged(&edit, seen.lab.generation) {
                continue;
            }
            let SpecKey { kind, name } = edit.key.clone();
            let words = (kind.as_str(), name.as_str(), edit.value.as_deref());
            match decide_hand_edit(&seen.lab, &reports, words, &asked(seen, BY_HAND)) {
                Ok(decision) => {
                    info!(%kind, %name, "adopt hand edit");
                    if let Err(error) = self.editor.commit(seen, &decision, BY_HAND).await {
                        warn!(%error, "commit hand edit");
                    }
                    return;
                }
                Err(refusal) => {
                    let why = refusal.to_string();
                    if self.refused.insert(edit, seen.lab.generation, why.clone()) {
                        let text = format!("hand edit of spec/{kind}/{name} refused: {why}");
                        self.journal.write(EventKind::Refused, name, text);
                    }
                }
            }
        }
        let ages = seen.fault_ages_ms(tokio::time::Instant::now());
        if let Some(decision) = chores::due(&seen.lab, &reports, &ages, &asked(seen, AUTOMATIC))
            && let Err(error) = self.editor.commit(seen, &decision, AUTOMATIC).await
        {
            warn!(%error, what = decision.what, "commit automatic change");
        }
    }
}
