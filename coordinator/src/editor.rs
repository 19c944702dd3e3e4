//! Carries decisions into the store: decide purely, commit guarded by what was seen, again where somebody was faster.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use faultbed_common::{
    edit::{EditReply, EditRequest, HistoryEntry},
    program::Content,
    target::Reports,
};
use faultbed_trust::members;

use crate::{
    content::Contents,
    decide::edit::{Asked, Decision, Refusal, decide},
    mirror::{CommitOutcome, Mirror, MirrorHandle},
    store::StoreError,
};

/// How often one edit is decided anew because another one was committed first.
const EDIT_TRIES_MAX: usize = 64;

/// Why an edit did not happen.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It makes no sense or is not allowed; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store did not answer; whether it was committed is known only to `history`.
    #[error("reach the store of the lab")]
    Store(#[from] StoreError),
    /// Others kept being faster.
    #[error("{EDIT_TRIES_MAX} other changes were faster; try again")]
    Contended,
}

/// The one way to change a lab.
#[derive(Debug, Clone)]
pub struct Editor {
    mirror: Arc<MirrorHandle>,
    contents: Arc<Contents>,
}

impl Editor {
    /// An editor of the lab that `mirror` follows, whose pushed programs are in `contents`.
    #[must_use]
    pub fn new(mirror: Arc<MirrorHandle>, contents: Arc<Contents>) -> Self {
        Self { mirror, contents }
    }

    /// Decides and commits one request of `by`.
    ///
    /// # Errors
    /// Refused, contended, or the store is out of reach.
    pub async fn edit(&self, request: &EditRequest, by: &str) -> Result<EditReply, EditError> {
        for _ in 0..EDIT_TRIES_MAX {
            let seen = self.mirror.now();
            let mut decision =
                decide(&seen.lab, &reports_of_living(&seen), request, &asked(&seen, by))?;
            if !request.plan {
                // Nothing is accepted that hosts could not have.
                let missing = |content: &Content| !self.contents.held(content).whole;
                let missing = decision.takes.iter().filter(|(_, content)| missing(content));
                decision.reply.needs.push = missing.map(|(path, _)| path.clone()).collect();
            }
            if request.plan || !decision.reply.changed || !decision.reply.needs.is_empty() {
                return Ok(decision.reply);
            }
            if self.commit(&seen, &decision, by).await? {
                return Ok(decision.reply);
            }
        }
        Err(EditError::Contended)
    }

    /// Commits a decision made from `seen`; false where the lab has moved since.
    ///
    /// # Errors
    /// The store is out of reach.
    pub async fn commit(
        &self,
        seen: &Mirror,
        decision: &Decision,
        by: &str,
    ) -> Result<bool, StoreError> {
        let entry = HistoryEntry {
            generation: decision.lab.generation,
            at_unix_ms: unix_ms(),
            by: by.to_owned(),
            what: decision.what.clone(),
            objects: decision.reply.objects.clone(),
        };
        Ok(match self.mirror.commit(seen, &decision.lab, &entry).await? {
            CommitOutcome::Committed => true,
            CommitOutcome::Conflict => false,
        })
    }
}

/// Reports of hosts whose agent is connected: only these say what is so now.
#[must_use]
pub fn reports_of_living(seen: &Mirror) -> Reports {
    seen.reports
        .iter()
        .filter(|(host, _)| seen.alive.contains(*host))
        .map(|(host, report)| (host.clone(), report.clone()))
        .collect()
}

/// Who asks, now, with fresh dice, and where coordinators are.
#[must_use]
pub fn asked(seen: &Mirror, by: &str) -> Asked {
    let control = crate::pki::control_addresses(seen);
    let now_unix_ms = unix_ms();
    let authority = members::authority(seen.lab.name.as_str(), now_unix_ms / 1000);
    Asked {
        by: by.to_owned(),
        now_unix_ms,
        dice: rand::random(),
        control,
        authority: authority.map_err(|error| error.to_string()),
    }
}

/// Milliseconds since the epoch.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    faultbed_common::duration::millis(since)
}
