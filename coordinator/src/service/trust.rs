//! How hosts and users come into the lab from other machines, and stay: invite, join, renew.

use std::sync::{Arc, Mutex, PoisonError};

use faultbed_common::trust::{
    AuthorityRequest, ExpelReply, ExpelRequest, JoinRequest, Presence, RenewRequest, Role,
    TokenRequest, Who,
};
use faultbed_proto::v1::{Document, trust_server::Trust};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::{caller, decode, encode};
use crate::pki::{self, Pki, PkiError};

/// The largest message taken: a token or a certificate request is below a tenth of it.
pub const TRUST_BYTES_MAX: usize = 64 << 10;

/// Tries to join within [`JOIN_WINDOW`] that used no token up: nobody without one can make more work than
/// that, and hundreds of hosts come in as fast as they have tokens.
const JOINS_MAX: u32 = 120;

/// The time that [`JOINS_MAX`] counts in.
const JOIN_WINDOW: std::time::Duration = std::time::Duration::from_secs(60);

/// The service for those who come and those who let them in.
#[derive(Debug, Clone)]
pub struct TrustService {
    /// The lab's CA and members; `None` where the lab is of this machine alone.
    pub pki: Option<Arc<Pki>>,
    /// Bounds how often anybody can try to join.
    pub joins: Arc<Mutex<Window>>,
}

/// Counts what happens within a time.
#[derive(Debug)]
pub struct Window {
    began: Instant,
    count: u32,
}

impl Window {
    /// Begins to count now.
    #[must_use]
    pub fn new() -> Self {
        Self { began: Instant::now(), count: 0 }
    }

    /// Counts one more; false where that is too many.
    fn take(&mut self, now: Instant) -> bool {
        if now.duration_since(self.began) >= JOIN_WINDOW {
            *self = Self { began: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= JOINS_MAX
    }

    /// Takes back one that was counted.
    fn give_back(&mut self) {
        self.count = self.count.saturating_sub(1);
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

impl TrustService {
    fn pki(&self) -> Result<&Arc<Pki>, Status> {
        self.pki.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "this lab is of one machine: its coordinator listens on loopback only; start one \
                 with `faultbed-coordinator --listen ADDRESS:PORT …`, see docs/security.md",
            )
        })
    }
}

#[tonic::async_trait]
impl Trust for TrustService {
    async fn invite(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        let caller = caller(&request)?;
        let pki = self.pki()?;
        let asked: TokenRequest = decode("token request", &request.get_ref().json)?;
        caller.must_be(pki::inviting_takes(&asked.invited)).map_err(Status::permission_denied)?;
        let reply = pki.invite(&asked, &caller.user).await?;
        info!(by = caller.user, invited = ?asked.invited, "token made");
        Ok(Response::new(encode(&reply)?))
    }

    async fn expel(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        let caller = caller(&request)?;
        caller.must_be(Role::Admin).map_err(Status::permission_denied)?;
        let asked: ExpelRequest = decode("expel request", &request.get_ref().json)?;
        // A member is found by its name; the role does not count.
        let who = Who::User(asked.user.clone(), Role::Viewer);
        let was_member = self.pki()?.expel(&who).await?;
        info!(by = caller.user, user = %asked.user, was_member, "user removed");
        Ok(Response::new(encode(&ExpelReply { was_member })?))
    }

    async fn join(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        let pki = self.pki()?;
        let joins = || self.joins.lock().unwrap_or_else(PoisonError::into_inner);
        if !joins().take(Instant::now()) {
            return Err(Status::resource_exhausted(
                "too many tried to join within a minute; try again in a minute",
            ));
        }
        let asked: JoinRequest = decode("join request", &request.get_ref().json)?;
        match pki.join(&asked).await {
            Ok((issued, used_up)) => {
                info!(identity = issued.identity, "joined");
                if used_up {
                    joins().give_back();
                }
                Ok(Response::new(encode(&issued)?))
            }
            Err(error) => {
                warn!(token = asked.id, %error, "refuse to let somebody join");
                Err(error.into())
            }
        }
    }

    async fn renew(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        let caller = caller(&request)?;
        let asked: RenewRequest = decode("renew request", &request.get_ref().json)?;
        let Some(identity) = &caller.identity else {
            return Err(Status::failed_precondition("this connection has no certificate to renew"));
        };
        let issued = self.pki()?.renew(identity, &asked.request).await?;
        info!(%identity, "certificate renewed");
        Ok(Response::new(encode(&issued)?))
    }

    async fn authority(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        let caller = caller(&request)?;
        let asked: AuthorityRequest = decode("question about the CA", &request.get_ref().json)?;
        if asked != AuthorityRequest::Show {
            caller.must_be(Role::Admin).map_err(Status::permission_denied)?;
        }
        let reply = self.pki()?.authority_asked(&asked, &caller.user).await?;
        Ok(Response::new(encode(&reply)?))
    }

    async fn present(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        let caller = caller(&request)?;
        let connected = match &caller.identity {
            Some(identity) => self.pki()?.is_connected(&identity.who),
            None => false,
        };
        Ok(Response::new(encode(&Presence { connected })?))
    }
}

impl From<PkiError> for Status {
    fn from(error: PkiError) -> Self {
        match error {
            PkiError::Rejected(why) => Self::permission_denied(why.to_string()),
            PkiError::Refused(why) => Self::failed_precondition(why),
            PkiError::Store(error) => error.into(),
            PkiError::Trust(error) => Self::invalid_argument(error.to_string()),
            error @ PkiError::Contended => Self::aborted(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_are_bounded_within_a_minute() {
        let mut window = Window::new();
        let began = window.began;
        assert!((0..JOINS_MAX).all(|_| window.take(began)));
        assert!(!window.take(began));
        assert!(window.take(began + JOIN_WINDOW));
    }

    #[test]
    fn a_join_that_used_a_token_up_is_in_nobodys_way() {
        let mut window = Window::new();
        let began = window.began;
        for _ in 0..2 * JOINS_MAX {
            assert!(window.take(began));
            window.give_back();
        }
    }
}
