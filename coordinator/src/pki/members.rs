//! Who is in: lets somebody in with a token, renews, judges certificates that are shown, takes ways in.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use faultbed_common::trust::{Identity, Invited, Issued, JoinRequest, Who};
use faultbed_trust::certificate::{self, Facts};

use super::{
    Pki, PkiError, TRIES_MAX,
    authority::{self, Authority, Terms},
    read,
    record::{
        self, Admission, Bearer, MemberRecord, Rejected, Standing, TokenRecord, Used, admit, judge,
        member_of,
    },
    text,
};
use crate::{
    decide::edit::{host_readmitted, removed},
    editor::{asked, unix_ms},
    store::{Compare, Kv, Op, StoreError, Txn},
};

/// How long who was let in waits for this coordinator to know it. It is in, whatever becomes of that.
const SHOWN_MAX: Duration = Duration::from_secs(5);

/// By whom and for how long a certificate is signed: one answer for its record and for itself.
struct Issuing {
    authority: Arc<Authority>,
    ca: String,
    terms: Terms,
}

impl Pki {
    /// What somebody is to this lab who shows a certificate. TLS has looked at its CA and time.
    #[must_use]
    pub fn standing(&self, shown: &Facts) -> Standing {
        if shown.identity.lab != self.lab {
            return Standing::Stranger;
        }
        let seen = self.mirror.now();
        let place = format!("member/{}", member_of(&shown.identity.who));
        let member: Option<MemberRecord> = seen.pki.get(&place).and_then(read);
        // TLS has looked at the CA when the connection began; it may have ended since.
        let ca = member.as_ref().and_then(|member| member.ca.as_ref());
        let believes = |ca: &String| self.authority().and_then(|now| now.believes(ca));
        if ca.is_some_and(|ca| matches!(believes(ca), Ok(false))) {
            return Standing::Stranger;
        }
        judge(member.as_ref(), shown)
    }

    /// Why a host is no member any more; `None` where nobody removed it.
    #[must_use]
    pub fn removed(&self, identity: &Identity) -> Option<String> {
        match &identity.who {
            Who::Host(name) if identity.lab == self.lab => removed(&self.mirror.now().lab, name),
            Who::Host(_) | Who::User(..) | Who::Coordinator(_) => None,
        }
    }

    /// Whether some coordinator holds the stream of a host's agent.
    #[must_use]
    pub fn is_connected(&self, who: &Who) -> bool {
        matches!(who, Who::Host(name) if self.mirror.now().alive.contains(name))
    }

    /// Lets somebody in with a token, which is used up by that; false where it was before, by the same key.
    ///
    /// # Errors
    /// The token is unknown, used, expired or for somebody else, or the name is taken. Then it is not
    /// used up.
    pub async fn join(&self, request: &JoinRequest) -> Result<(Issued, bool), PkiError> {
        if request.lab != self.lab {
            return Err(PkiError::Refused(format!(
                "this is lab {}; the token is for lab {}",
                self.lab, request.lab
            )));
        }
        if request.id.len() > 64 || !request.id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Rejected::Unknown.into());
        }
        let secret = certificate::fingerprint(request.secret.as_bytes());
        let key = authority::key_of(&request.request)?;
        let place = self.key(&format!("token/{}", request.id));
        for _ in 0..TRIES_MAX {
            let Some(kv) = self.get(place.clone()).await? else {
                return Err(Rejected::Unknown.into());
            };
            let token: TokenRecord = read(&kv).ok_or(Rejected::Unknown)?;
            let now = unix_ms();
            let bearer = Bearer {
                joining: request.joining,
                name: request.name.as_ref(),
                machine: request.machine.as_ref(),
                key: &key,
            };
            let admission = admit(&token, &secret, &bearer, now)?;
            let mut issued = if admission.is_repeated {
                self.issue_again(&admission.who, &key, &request.request, Rejected::Used.into())
                    .await?
            } else {
                if admission.must_be_new {
                    self.must_be_new(&admission.who).await?;
                }
                self.readmit(&admission.who, &token.by).await?;
                let member = member_of(&admission.who);
                let used = Used { member, key: key.clone(), at_unix_ms: now };
                let used = TokenRecord { used: Some(used), ..token.clone() };
                let issuing = self.issuing()?;
                if !self.let_in(&kv, &used, &admission, &issuing).await? {
                    continue;
                }
                self.issue(&admission.who, &request.request, &issuing)?
            };
            if let Invited::Host { labels, .. } = token.invited {
                issued.labels = labels;
            }
            return Ok((issued, !admission.is_repeated));
        }
        Err(PkiError::Contended)
    }

    /// Lets a host come back that was removed before: its token was made for that.
    async fn readmit(&self, who: &Who, by: &str) -> Result<(), PkiError> {
        let Who::Host(name) = who else { return Ok(()) };
        for _ in 0..TRIES_MAX {
            let seen = self.mirror.now();
            if !seen.lab.removed_hosts.contains_key(name) {
                return Ok(());
            }
            let decision = host_readmitted(&seen.lab, name, &asked(&seen, by))
                .map_err(|refusal| PkiError::Refused(refusal.to_string()))?;
            if self.editor.commit(&seen, &decision, by).await? {
                return Ok(());
            }
        }
        Err(PkiError::Contended)
    }

    /// Refuses a name that somebody has.
    async fn must_be_new(&self, who: &Who) -> Result<(), PkiError> {
        let Who::Host(name) = who else { return Ok(()) };
        let held = self.get(self.member_key(who)).await?.is_some();
        if !held && !self.mirror.now().lab.hosts.contains_key(name) {
            return Ok(());
        }
        Err(PkiError::Refused(format!(
            "there is a host {name} in this lab; give this one another `--name`, or, to put it in \
             that one's place, ask for `faultbed host token --name {name}`"
        )))
    }

    /// Enters a member and uses its token up, in one commit; false where somebody was faster.
    async fn let_in(
        &self,
        seen: &Kv,
        used: &TokenRecord,
        admission: &Admission,
        issuing: &Issuing,
    ) -> Result<bool, PkiError> {
        let place = self.member_key(&admission.who);
        let role = match &admission.who {
            Who::User(_, role) => Some(*role),
            Who::Host(_) | Who::Coordinator(_) => None,
        };
        // Whoever comes in has a key by now; without one there is nothing to enter.
        let Some(Used { key, .. }) = used.used.clone() else { return Ok(false) };
        let member = MemberRecord {
            by: used.by.clone(),
            since_unix_ms: unix_ms(),
            role,
            key,
            until_unix_s: Some(issuing.terms.until_unix_s()),
            ca: Some(issuing.ca.clone()),
        };
        let mut when = vec![Compare::Modified(seen.key.clone(), seen.modified)];
        if admission.must_be_new {
            when.push(Compare::Absent(place.clone()));
        }
        let then = vec![Op::put(seen.key.clone(), text(used)), Op::put(place, text(&member))];
        Ok(self.enter(Txn { when, then, ..Txn::default() }).await?)
    }

    /// Commits what makes somebody a member, and waits until this coordinator goes by it: whoever was let in
    /// comes at once, and would be turned away as a stranger. False where somebody was faster.
    async fn enter(&self, txn: Txn) -> Result<bool, StoreError> {
        let out = self.mirror.store().txn(txn).await?;
        if out.succeeded && !self.mirror.wait(SHOWN_MAX, |seen| seen.revision >= out.revision).await
        {
            tracing::warn!(
                "the store does not show who was let in; who comes is asked to try again"
            );
        }
        Ok(out.succeeded)
    }

    /// A new certificate for whom an old one names, and for the same key.
    ///
    /// # Errors
    /// The request is none or of another key, or the lab does not know the caller any more.
    pub async fn renew(&self, identity: &Identity, request: &str) -> Result<Issued, PkiError> {
        let gone = || PkiError::Refused(format!("{identity} is no member of this lab any more"));
        if identity.lab != self.lab {
            return Err(gone());
        }
        let key = authority::key_of(request)?;
        self.issue_again(&identity.who, &key, request, gone()).await
    }

    /// Another certificate for a member and its key. That it was issued is in the store before
    /// anybody has it: every coordinator knows then how long the member's streams may go on.
    async fn issue_again(
        &self,
        who: &Who,
        key: &str,
        request: &str,
        gone: PkiError,
    ) -> Result<Issued, PkiError> {
        for _ in 0..TRIES_MAX {
            let Some(kv) = self.get(self.member_key(who)).await? else { return Err(gone) };
            let Some(member) = read::<MemberRecord>(&kv) else { return Err(gone) };
            let issuing = self.issuing()?;
            let signed = (issuing.ca.as_str(), issuing.terms.until_unix_s());
            let Some(member) = record::renewed(member, who, key, signed) else { return Err(gone) };
            let put = Txn {
                when: vec![Compare::Modified(kv.key.clone(), kv.modified)],
                then: vec![Op::put(kv.key, text(&member))],
                ..Txn::default()
            };
            if self.enter(put).await? {
                return self.issue(who, request, &issuing);
            }
        }
        Err(PkiError::Contended)
    }

    fn issuing(&self) -> Result<Issuing, PkiError> {
        let authority = self.authority()?;
        Ok(Issuing { ca: authority.fingerprint()?, terms: self.terms(), authority })
    }

    fn issue(&self, who: &Who, request: &str, issuing: &Issuing) -> Result<Issued, PkiError> {
        let identity = Identity { lab: self.lab.clone(), who: who.clone() };
        Ok(Issued {
            certificate: issuing.authority.certify(&identity, request, &issuing.terms)?,
            identity: identity.to_string(),
            ca: issuing.authority.bundle(),
            urls: self.urls(),
            labels: BTreeMap::new(),
        })
    }

    /// Takes somebody's membership: the certificate is refused from now on.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn expel(&self, who: &Who) -> Result<bool, PkiError> {
        let place = self.member_key(who);
        let then = vec![Op::Get(place.clone()), Op::Delete(place)];
        let out = self.mirror.store().txn(Txn { then, ..Txn::default() }).await?;
        Ok(out.got.into_iter().flatten().next().is_some())
    }

    fn member_key(&self, who: &Who) -> crate::store::Key {
        self.key(&format!("member/{}", member_of(who)))
    }

    /// What the store has now.
    pub(super) async fn get(&self, key: crate::store::Key) -> Result<Option<Kv>, StoreError> {
        let get = Txn { then: vec![Op::Get(key)], ..Txn::default() };
        Ok(self.mirror.store().txn(get).await?.got.into_iter().flatten().next())
    }
}
