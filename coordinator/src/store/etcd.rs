//! The store in an etcd of the user's. The only file that says `etcd_client`.
//!
//! The client retries nothing, resumes nothing, and its balancer goes on choosing members that are
//! dead, so every call here is bounded in time, and tried again where that cannot do a thing twice:
//! reads always, writes only where the request never left this machine.

mod access;
mod address;
mod error;
#[cfg(test)]
pub(crate) mod server;
#[cfg(test)]
mod tests;

use std::{fmt, future::Future, time::Duration};

use async_trait::async_trait;
use etcd_client as client;
use etcd_client::{Client, ConnectOptions, TxnOpResponse};
use tokio::time::{Instant, timeout, timeout_at};

use self::error::{never_sent, translate};
pub use self::{
    access::{EtcdAccess, EtcdUser},
    address::EtcdAddress,
};
use super::{
    Batch, Compare, Event, Kv, LeaseId, Op, Revision, Store, StoreError, Txn, TxnOut, Watch,
};

/// How often an idle connection is probed. etcd cuts off clients that probe more often than every
/// 5 s (`--grpc-keepalive-min-time`), after a few times, so that only idle watches die of it.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(6);

/// After this a probe counts as lost and the connection as dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// After this a member counts as out of reach.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// After this a call is given up, with all its tries.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// After this the first try of a call is given up. A member that has just died takes with it what it
/// was asked, and a new leader is there after some 1 s: who waited longer for the old answer would be
/// late for the new one. Further tries have the rest of the time: an answer may be a large one.
const FIRST_TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Times a call is made before its error is passed on.
const TRIES: u32 = 6;

/// Pause between tries: another member is chosen then.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Most bytes of one answer; a whole lab is listed in one.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A connection to an etcd cluster.
pub(super) struct Etcd {
    address: EtcdAddress,
    /// For messages.
    access: EtcdAccess,
    client: Client,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Whether doing it twice does no more than doing it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Twice {
    Harmless,
    Harmful,
}

impl Etcd {
    /// Connects, and makes sure that somebody answers.
    pub(super) async fn open(
        address: &EtcdAddress,
        access: &EtcdAccess,
    ) -> Result<Self, StoreError> {
        let options = ConnectOptions::new()
            .with_keep_alive(KEEPALIVE_EVERY, KEEPALIVE_TIMEOUT)
            .with_keep_alive_while_idle(true)
            // A member without a majority would keep a watch open and silent for as long as it lasts.
            .with_require_leader(true)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_timeout(CALL_TIMEOUT);
        let options = access.apply(address, options)?;
        // With a user this asks for a token at once, of a server that may not be there.
        let connecting = timeout(CALL_TIMEOUT, Client::connect(address.urls(), Some(options)));
        let client = match connecting.await {
            Ok(connected) => {
                connected.map_err(|error| access.explain(translate(address, &error)))?
            }
            Err(_) => {
                let why = format!("no answer within {CALL_TIMEOUT:?}");
                return Err(error::unreachable(address, &why));
            }
        };
        let etcd = Self { address: address.clone(), access: access.clone(), client };
        // Connecting is lazy: it succeeds on a dead port.
        etcd.call(Twice::Harmless, || {
            let mut client = etcd.client.maintenance_client();
            async move { client.status().await }
        })
        .await?;
        Ok(etcd)
    }

    /// Makes a call, bounded in time, again where that is safe and may help.
    async fn call<T, F>(&self, twice: Twice, call: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, client::Error>> + Send,
    {
        let deadline = Instant::now() + CALL_TIMEOUT;
        let mut tries = 0;
        loop {
            tries += 1;
            let until = if tries == 1 { Instant::now() + FIRST_TRY_TIMEOUT } else { deadline };
            // The client's own limit is for each try and does not cover waiting for a connection.
            let Ok(answer) = timeout_at(until, call()).await else {
                if twice == Twice::Harmless && until < deadline {
                    continue;
                }
                return Err(self.unreachable("no answer in time"));
            };
            let error = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let translated = self.access.explain(translate(&self.address, &error));
            let again = matches!(translated, StoreError::Unavailable(_))
                && (twice == Twice::Harmless || never_sent(&error));
            if !again || tries >= TRIES || Instant::now() + TRY_AGAIN_AFTER >= deadline {
                return Err(translated);
            }
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
    }

    fn unreachable(&self, why: &str) -> StoreError {
        error::unreachable(&self.address, why)
    }

    fn key(&self, key: &[u8]) -> Vec<u8> {
        [self.address.namespace().as_bytes(), key].concat()
    }

    fn below<'k>(&self, key: &'k [u8]) -> &'k [u8] {
        key.strip_prefix(self.address.namespace().as_bytes()).unwrap_or(key)
    }

    fn kv(&self, kv: &client::KeyValue) -> Kv {
        Kv {
            key: self.below(kv.key()).to_vec(),
            value: kv.value().to_vec(),
            created: revision(kv.create_revision()),
            modified: revision(kv.mod_revision()),
            version: kv.version().unsigned_abs(),
            lease: (kv.lease() != 0).then(|| LeaseId(kv.lease().cast_unsigned())),
        }
    }

    fn compare(&self, compare: &Compare) -> client::Compare {
        let equal = client::CompareOp::Equal;
        match compare {
            Compare::Modified(key, revision) => {
                client::Compare::mod_revision(self.key(key), equal, signed(*revision))
            }
            Compare::Absent(key) => client::Compare::mod_revision(self.key(key), equal, 0),
            Compare::Value(key, value) => {
                client::Compare::value(self.key(key), equal, value.clone())
            }
        }
    }

    fn op(&self, op: &Op) -> client::TxnOp {
        match op {
            Op::Put(key, value, lease) => {
                let lease = lease.map_or(0, |lease| lease.0.cast_signed());
                let options = client::PutOptions::new().with_lease(lease);
                client::TxnOp::put(self.key(key), value.clone(), Some(options))
            }
            Op::Delete(key) => client::TxnOp::delete(self.key(key), None),
            Op::DeletePrefix(prefix) => {
                let options = client::DeleteOptions::new().with_prefix();
                client::TxnOp::delete(self.key(prefix), Some(options))
            }
            Op::Get(key) => client::TxnOp::get(self.key(key), None),
        }
    }

    /// Splits an answer of a watch into whole revisions; etcd never splits one over two answers.
    fn batches(&self, answer: &client::WatchResponse) -> Vec<Batch> {
        let mut batches: Vec<Batch> = Vec::new();
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            let revision = revision(kv.mod_revision());
            let event = match event.event_type() {
                client::EventType::Put => Event::Put(self.kv(kv)),
                client::EventType::Delete => Event::Delete(self.below(kv.key()).to_vec()),
            };
            match batches.last_mut().filter(|batch| batch.revision == revision) {
                Some(batch) => batch.events.push(event),
                None => batches.push(Batch { revision, events: vec![event] }),
            }
        }
        batches
    }

    fn refused_watch(&self, answer: &client::WatchResponse) -> StoreError {
        match answer.compact_revision() {
            0 => self.unreachable(&format!("it ended a watch: {}", answer.cancel_reason())),
            compacted => StoreError::Compacted(revision(compacted)),
        }
    }
}

#[async_trait]
impl Store for Etcd {
    async fn range(&self, prefix: &[u8]) -> Result<(Revision, Vec<Kv>), StoreError> {
        let prefix = self.key(prefix);
        let answer = self.call(Twice::Harmless, || {
            let mut kv = self.client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
            let options = client::GetOptions::new().with_prefix();
            let prefix = prefix.clone();
            async move { kv.get(prefix, Some(options)).await }
        });
        let answer = answer.await?;
        let at = header(answer.header());
        Ok((at, answer.kvs().iter().map(|kv| self.kv(kv)).collect()))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOut, StoreError> {
        txn.check()?;
        let ops = |ops: &[Op]| ops.iter().map(|op| self.op(op)).collect::<Vec<_>>();
        let when: Vec<_> = txn.when.iter().map(|compare| self.compare(compare)).collect();
        let request =
            client::Txn::new().when(when).and_then(ops(&txn.then)).or_else(ops(&txn.or_else));
        let answer = self.call(Twice::Harmful, || {
            let mut kv = self.client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
            let request = request.clone();
            async move { kv.txn(request).await }
        });
        let answer = answer.await?;
        let mut got = Vec::new();
        for response in answer.op_responses() {
            if let TxnOpResponse::Get(read) = response {
                got.push(read.kvs().first().map(|kv| self.kv(kv)));
            }
        }
        Ok(TxnOut { succeeded: answer.succeeded(), revision: header(answer.header()), got })
    }

    async fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, StoreError> {
        super::check_from(from)?;
        let prefix = self.key(prefix);
        let stream = self.call(Twice::Harmless, || {
            let mut watch = self.client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX);
            let options =
                client::WatchOptions::new().with_prefix().with_start_revision(signed(from));
            let prefix = prefix.clone();
            async move { watch.watch(prefix, Some(options)).await }
        });
        let mut stream = stream.await?;
        // The first answer only says that the watch is there; where history is gone, so does it.
        let created = timeout(CALL_TIMEOUT, stream.message()).await;
        match created {
            Err(_) => return Err(self.unreachable("no answer to a watch")),
            Ok(Err(error)) => return Err(translate(&self.address, &error)),
            Ok(Ok(None)) => return Err(self.unreachable("it ended a watch")),
            Ok(Ok(Some(answer))) if answer.canceled() => return Err(self.refused_watch(&answer)),
            Ok(Ok(Some(_))) => {}
        }
        let etcd = Self {
            address: self.address.clone(),
            access: self.access.clone(),
            client: self.client.clone(),
        };
        Ok(Box::pin(async_stream::try_stream! {
            loop {
                let answer = stream.message().await.map_err(|error| translate(&etcd.address, &error));
                let Some(answer) = answer? else {
                    Err(etcd.unreachable("it ended a watch"))?;
                    return;
                };
                if answer.canceled() {
                    Err(etcd.refused_watch(&answer))?;
                }
                for batch in etcd.batches(&answer) {
                    yield batch;
                }
            }
        }))
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = i64::try_from(ttl.as_secs_f64().ceil() as u64).unwrap_or(i64::MAX).max(1);
        // One that is granted twice ends by itself.
        let answer = self.call(Twice::Harmless, || {
            let mut lease = self.client.lease_client();
            async move { lease.grant(seconds, None).await }
        });
        Ok(LeaseId(answer.await?.id().cast_unsigned()))
    }

    async fn lease_keep(&self, id: LeaseId) -> Result<(), StoreError> {
        // A stream for each: one that is kept open does not survive a restart of etcd either.
        let kept = self.call(Twice::Harmless, || {
            let mut lease = self.client.lease_client();
            async move { lease.keep_alive(id.0.cast_signed()).await }
        });
        kept.await.map(drop)
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        let revoked = self.call(Twice::Harmful, || {
            let mut lease = self.client.lease_client();
            async move { lease.revoke(id.0.cast_signed()).await }
        });
        revoked.await.map(drop)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let compacted = self.call(Twice::Harmless, || {
            let mut kv = self.client.kv_client();
            async move { kv.compact(signed(revision), None).await }
        });
        match compacted.await {
            Ok(_) | Err(StoreError::Compacted(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn revision(raw: i64) -> Revision {
    Revision(raw.unsigned_abs())
}

fn signed(revision: Revision) -> i64 {
    revision.0.cast_signed()
}

fn header(header: Option<&client::ResponseHeader>) -> Revision {
    header.map_or(Revision::ABSENT, |header| revision(header.revision()))
}
