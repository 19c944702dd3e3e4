//! Who may come in from other machines: the lab's CA, its tokens and its members, kept in the store.
//!
//! Several coordinators of a lab have one CA, made by whichever came first. Everything is one guarded
//! commit: a token lets in once, whichever coordinator it is brought to.

pub mod authority;
mod members;
pub mod record;
mod succession;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use faultbed_common::{
    duration::Span,
    name::{CoordinatorName, LabName},
    trust::{Identity, Invited, Role, Token, TokenReply, TokenRequest, URLS_MAX, Who},
};
use faultbed_trust::{TrustError, certificate};
use serde::{Serialize, de::DeserializeOwned};

pub use self::succession::seen;
use self::{
    authority::{Authority, Terms},
    record::{CoordinatorRecord, Rejected, TokenRecord},
};
use crate::{
    editor::{Editor, unix_ms},
    mirror::{Mirror, MirrorHandle},
    store::{Compare, Kv, Op, Revision, StoreError, Txn},
};

/// The longest that a token can be used.
const TOKEN_LASTS_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Tokens in the store at a time, used ones that have not expired included.
const TOKENS_MAX: usize = 1000;

/// Expired tokens that are cleared away at once.
const TOKENS_CLEARED_MAX: usize = 64;

/// How often a guarded commit is tried while others are faster.
const TRIES_MAX: usize = 16;

/// Why somebody does not get what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The token does not let in.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// It makes no sense or is not allowed.
    #[error("{0}")]
    Refused(String),
    /// The store did not answer.
    #[error("reach the store of the lab")]
    Store(#[from] StoreError),
    /// The CA in the store is damaged, or the system gives no random numbers.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Others kept being faster.
    #[error("{TRIES_MAX} other changes were faster; try again")]
    Contended,
}

/// The lab's CA and members, as this coordinator sees them.
#[derive(Debug)]
pub struct Pki {
    mirror: Arc<MirrorHandle>,
    editor: Editor,
    lab: LabName,
    /// This coordinator.
    pub own: Own,
    /// How long certificates count that are issued here.
    pub lifetime: Duration,
    /// The CA as it was last read, by the revision it had.
    known: Mutex<Option<(Revision, Arc<Authority>)>>,
}

/// How this coordinator is called and reached.
#[derive(Debug, Clone)]
pub struct Own {
    /// Its name.
    pub name: CoordinatorName,
    /// Where others reach it, as `https://HOST:PORT`.
    pub urls: Vec<String>,
    /// The hosts in these URLs, for its certificate.
    pub hosts: Vec<String>,
}

impl Pki {
    /// Finds the lab's CA, or makes it, and says in the store where this coordinator is reached.
    ///
    /// # Errors
    /// The store does not answer, or holds what is no CA.
    pub async fn open(
        mirror: Arc<MirrorHandle>,
        editor: Editor,
        own: Own,
        lifetime: Duration,
    ) -> Result<Self, PkiError> {
        let lab = mirror.now().lab.name.clone();
        let pki = Self { mirror, editor, lab, own, lifetime, known: Mutex::new(None) };
        let made = Authority::new(&pki.lab, unix_ms() / 1000, rand::random())?;
        let key = pki.key("ca");
        let found = Txn {
            when: vec![Compare::Absent(key.clone())],
            then: vec![Op::put(key.clone(), text(&made)), Op::Get(key.clone())],
            or_else: vec![Op::Get(key)],
            ..Txn::default()
        };
        let out = pki.mirror.store().txn(found).await?;
        pki.read_authority(out.got.first().and_then(Option::as_ref))?;
        pki.say_where().await?;
        Ok(pki)
    }

    /// Says in the store where this coordinator is reached.
    async fn say_where(&self) -> Result<(), PkiError> {
        let record = CoordinatorRecord { urls: self.own.urls.clone() };
        let place = self.key(&format!("coordinator/{}", self.own.name));
        let then = vec![Op::Get(place.clone()), Op::put(place, text(&record))];
        let out = self.mirror.store().txn(Txn { then, ..Txn::default() }).await?;
        let before = out.got.into_iter().flatten().next();
        let before = before.and_then(|kv| read::<CoordinatorRecord>(&kv));
        if let Some(before) = before.filter(|before| before.urls != record.urls) {
            // Two machines of one name: hosts would know but one of them.
            tracing::warn!(
                name = %self.own.name,
                before = before.urls.join(", "),
                now = record.urls.join(", "),
                "the lab knew a coordinator of this name elsewhere; where that one still runs, give \
                 each its own with --name"
            );
        }
        Ok(())
    }

    /// The CA as it is now.
    ///
    /// # Errors
    /// It is not in the store any more, or damaged.
    pub fn authority(&self) -> Result<Arc<Authority>, TrustError> {
        let seen = self.mirror.now();
        match seen.pki.get("ca") {
            Some(kv) => self.read_authority(Some(kv)),
            // The mirror may not show it yet right after it was made.
            None => self
                .known()
                .as_ref()
                .map(|(_, authority)| Arc::clone(authority))
                .ok_or_else(|| TrustError::unreadable("the lab's CA", "it is not in the store")),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<(Revision, Arc<Authority>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_authority(&self, kv: Option<&Kv>) -> Result<Arc<Authority>, TrustError> {
        let kv = kv.ok_or_else(|| TrustError::unreadable("the lab's CA", "it is gone"))?;
        let mut known = self.known();
        if let Some((at, authority)) = &*known
            && *at >= kv.modified
        {
            return Ok(Arc::clone(authority));
        }
        let read: Authority = serde_json::from_slice(&kv.value)
            .map_err(|error| TrustError::unreadable("the lab's CA in the store", error))?;
        let read = Arc::new(read);
        *known = Some((kv.modified, Arc::clone(&read)));
        Ok(read)
    }

    /// This coordinator's own key and certificate, made now, in PEM.
    ///
    /// # Errors
    /// As [`Pki::authority`].
    pub fn serve(&self) -> Result<(String, String), TrustError> {
        let who = Who::Coordinator(self.own.name.clone());
        let identity = Identity { lab: self.lab.clone(), who };
        self.authority()?.serve(&identity, &self.own.hosts, &self.terms())
    }

    /// A one-time token.
    ///
    /// # Errors
    /// It would last too long, there are too many, or the store does not answer.
    pub async fn invite(&self, request: &TokenRequest, by: &str) -> Result<TokenReply, PkiError> {
        if request.lasts.0.is_zero() || request.lasts.0 > TOKEN_LASTS_MAX {
            let most = Span(TOKEN_LASTS_MAX);
            return Err(PkiError::Refused(format!(
                "a token cannot last {}; write a time up to {most}, such as 1h",
                request.lasts
            )));
        }
        self.clear_expired().await?;
        let (id, secret): ([u8; 8], [u8; 32]) = (rand::random(), rand::random());
        let (id, secret) = (certificate::hex(&id), certificate::hex(&secret));
        let expires_unix_ms =
            unix_ms().saturating_add(faultbed_common::duration::millis(request.lasts.0));
        let record = TokenRecord {
            invited: request.invited.clone(),
            secret_sha256: certificate::fingerprint(secret.as_bytes()),
            expires_unix_ms,
            by: by.to_owned(),
            used: None,
        };
        let key = self.key(&format!("token/{id}"));
        let put = Txn {
            when: vec![Compare::Absent(key.clone())],
            then: vec![Op::put(key, text(&record))],
            ..Txn::default()
        };
        if !self.mirror.store().txn(put).await?.succeeded {
            return Err(PkiError::Contended);
        }
        let ca = self.authority()?.fingerprint()?;
        let token = Token { lab: self.lab.clone(), urls: self.urls(), ca, id, secret };
        Ok(TokenReply { token: token.to_string(), expires_unix_ms })
    }

    async fn clear_expired(&self) -> Result<(), PkiError> {
        let (_, kvs) = self.mirror.store().range(&self.key("token/")).await?;
        if kvs.len() >= TOKENS_MAX {
            return Err(PkiError::Refused(format!(
                "there are {TOKENS_MAX} tokens already; wait until some have expired"
            )));
        }
        let now = unix_ms();
        let is_over = |kv: &&Kv| read::<TokenRecord>(kv).is_none_or(|t| t.expires_unix_ms <= now);
        let over = kvs.iter().filter(is_over).take(TOKENS_CLEARED_MAX);
        let then: Vec<Op> = over.map(|kv| Op::Delete(kv.key.clone())).collect();
        if !then.is_empty() {
            self.mirror.store().txn(Txn { then, ..Txn::default() }).await?;
        }
        Ok(())
    }

    /// Where the lab's coordinators are reached, this one first.
    fn urls(&self) -> Vec<String> {
        let seen = self.mirror.now();
        let others = seen
            .pki
            .iter()
            .filter_map(|(below, kv)| Some((below.strip_prefix("coordinator/")?, kv)))
            .filter(|(name, _)| *name != self.own.name.as_str())
            .filter_map(|(_, kv)| read::<CoordinatorRecord>(kv))
            .flat_map(|record| record.urls);
        let mut urls = self.own.urls.clone();
        for url in others {
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        urls.truncate(URLS_MAX);
        urls
    }

    fn terms(&self) -> Terms {
        Terms { now_unix_s: unix_ms() / 1000, lifetime: self.lifetime, serial: rand::random() }
    }

    fn key(&self, below: &str) -> crate::store::Key {
        self.mirror.keys().pki(below)
    }
}

/// Whether making a token for somebody takes an admin.
#[must_use]
pub fn inviting_takes(invited: &Invited) -> Role {
    match invited {
        Invited::Host { .. } => Role::Operator,
        Invited::User { .. } => Role::Admin,
    }
}

fn text(value: &impl Serialize) -> String {
    // Our types have text keys and no fallible `Serialize`, so this cannot fail.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn read<T: DeserializeOwned>(kv: &Kv) -> Option<T> {
    serde_json::from_slice(&kv.value).ok()
}

/// Where the coordinators are reached that gave an address and no name.
#[must_use]
pub fn control_addresses(seen: &Mirror) -> BTreeSet<SocketAddr> {
    let records = seen.pki.iter().filter(|(below, _)| below.starts_with("coordinator/"));
    let urls = records.filter_map(|(_, kv)| read::<CoordinatorRecord>(kv)).flat_map(|r| r.urls);
    urls.filter_map(|url| url.strip_prefix("https://")?.parse().ok()).collect()
}
