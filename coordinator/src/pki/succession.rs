//! One CA takes over from another while every connection goes on: begin, watch, end.
//!
//! The new one signs at once, and the old one has vouched for it: who believes only the old one takes
//! its certificates too, and gets the new one with the next renewal. Hosts are told to renew on their
//! streams; the command line sees it in the handshake.

use std::time::Duration;

use faultbed_common::{
    duration::Span,
    trust::{AuthorityReply, AuthorityRequest, EndingAuthority},
};

use super::{
    Pki, PkiError, TRIES_MAX,
    authority::{Authority, Ending},
    read,
    record::MemberRecord,
    text,
};
use crate::{
    decide::events::CaSeen,
    editor::unix_ms,
    mirror::Mirror,
    store::{Compare, Kv, Op, Txn},
};

/// The longest time that a CA is believed after it was replaced: ten years, as long as CAs last.
const OVERLAP_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

fn by_whom(changed: Option<Authority>, by: &str) -> Option<Authority> {
    changed.map(|authority| Authority { by: Some(by.to_owned()), ..authority })
}

/// What every coordinator can tell of the lab's CA; `None` where the lab is of one machine alone.
#[must_use]
pub fn seen(mirror: &Mirror) -> Option<CaSeen> {
    let Authority { certificate, ending, by, .. } = read(mirror.pki.get("ca")?)?;
    Some(CaSeen { signs: certificate, ends: ending.map(|ending| ending.ca), by })
}

impl Pki {
    /// Shows, replaces or ends.
    ///
    /// # Errors
    /// One is ending already, none is, somebody would be locked out, or the store does not answer.
    pub async fn authority_asked(
        &self,
        asked: &AuthorityRequest,
        by: &str,
    ) -> Result<AuthorityReply, PkiError> {
        match asked {
            AuthorityRequest::Show => {}
            AuthorityRequest::Rotate { overlap } => {
                let overlap = overlap.map_or(self.lifetime, |overlap| overlap.0);
                if overlap.as_secs() == 0 || overlap > OVERLAP_MAX {
                    return Err(PkiError::Refused(format!(
                        "a CA cannot be believed for {} more; write a time up to {}, such as 30d",
                        Span(overlap),
                        Span(OVERLAP_MAX)
                    )));
                }
                self.change(|held| Ok(by_whom(self.next(held, overlap)?, by))).await?;
            }
            AuthorityRequest::End { force } => {
                self.change(|held| Ok(by_whom(self.without(held, *force)?, by))).await?;
            }
        }
        let authority = self.authority()?;
        let ending = authority.ending.as_ref().map(|ending| self.tell(&authority, ending));
        Ok(AuthorityReply { signs: authority.fingerprint()?, ending: ending.transpose()? })
    }

    /// What of its time the CA has that ends; `None` where none does.
    #[must_use]
    pub fn overlap_left(&self) -> Option<Duration> {
        let until = self.authority().ok()?.ending.as_ref()?.until_unix_s;
        Some(Duration::from_millis((until * 1000).saturating_sub(unix_ms())))
    }

    /// Ends the CA whose time is over.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn end_overdue(&self) -> Result<(), PkiError> {
        self.change(|held| match &held.ending {
            Some(ending) if ending.until_unix_s <= unix_ms() / 1000 => Ok(Some(held.alone()?)),
            Some(_) | None => Ok(None),
        })
        .await
    }

    fn next(&self, held: &Authority, overlap: Duration) -> Result<Option<Authority>, PkiError> {
        if let Some(ending) = &held.ending {
            let left = Duration::from_secs(ending.until_unix_s.saturating_sub(unix_ms() / 1000));
            return Err(PkiError::Refused(format!(
                "the CA before this one is believed for {} more; `faultbed ca end` ends it now",
                Span(left)
            )));
        }
        Ok(Some(held.successor(&self.lab, unix_ms() / 1000, rand::random(), overlap)?))
    }

    fn without(&self, held: &Authority, force: bool) -> Result<Option<Authority>, PkiError> {
        let Some(ending) = &held.ending else {
            return Err(PkiError::Refused(
                "no CA is ending; `faultbed ca rotate` lets another one take over".to_owned(),
            ));
        };
        let holders = self.tell(held, ending)?.holders;
        if force || holders.is_empty() {
            return Ok(Some(held.alone()?));
        }
        Err(PkiError::Refused(format!(
            "{} would have to join again: they have no certificate of the new CA yet; hosts get it \
             when they connect, users with their next command; `faultbed ca end --force` does not \
             wait for them",
            holders.join(", ")
        )))
    }

    fn tell(&self, now: &Authority, ending: &Ending) -> Result<EndingAuthority, PkiError> {
        let signs = now.fingerprint()?;
        let seen = self.mirror.now();
        let members = seen.pki.iter().filter_map(|(below, kv)| {
            Some((below.strip_prefix("member/")?.replace('/', " "), read::<MemberRecord>(kv)?))
        });
        let has_not = |member: &MemberRecord| member.ca.as_ref() != Some(&signs);
        Ok(EndingAuthority {
            ca: ending.ca.clone(),
            until_unix_ms: ending.until_unix_s.saturating_mul(1000),
            left_ms: ending.until_unix_s.saturating_mul(1000).saturating_sub(unix_ms()),
            holders: members.filter(|(_, member)| has_not(member)).map(|(who, _)| who).collect(),
        })
    }

    /// Changes the CA in one guarded commit; `None` leaves it as it is.
    async fn change(
        &self,
        decide: impl Fn(&Authority) -> Result<Option<Authority>, PkiError>,
    ) -> Result<(), PkiError> {
        for _ in 0..TRIES_MAX {
            let held = self.get(self.key("ca")).await?;
            let authority = self.read_authority(held.as_ref())?;
            let (Some(Kv { key, modified, .. }), Some(next)) = (held, decide(&authority)?) else {
                return Ok(());
            };
            let put = Txn {
                when: vec![Compare::Modified(key.clone(), modified)],
                then: vec![Op::put(key.clone(), text(&next)), Op::Get(key)],
                ..Txn::default()
            };
            let out = self.mirror.store().txn(put).await?;
            if out.succeeded {
                self.read_authority(out.got.first().and_then(Option::as_ref))?;
                return Ok(());
            }
        }
        Err(PkiError::Contended)
    }
}
