//! The calls by which one gets a certificate, and keeps one.

use std::{net::IpAddr, time::Duration};

use faultbed_common::{
    name::HostName,
    trust::{Issued, JoinRequest, Joining, RenewRequest, Token},
};
use faultbed_proto::v1::{Document, trust_client::TrustClient};
use tonic::{Code, Request, Response, Status};

use crate::{TrustError, credentials::Credentials, dial::Dialer, key::Key};

/// How long a coordinator may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// Who brings a token.
#[derive(Debug, Clone)]
pub enum Bearer {
    /// A machine that is to be a host.
    Host {
        /// What it is to be called, where somebody said so.
        name: Option<HostName>,
        /// What its machine is called.
        machine: Option<HostName>,
    },
    /// A person or program.
    User,
}

/// Uses a token up at the first coordinator that answers; says from which address of this machine.
/// The secret is sent only to who shows the CA that the token names.
///
/// # Errors
/// The token does not let in, or nobody of the lab can be reached.
pub async fn join(
    token: &Token,
    key: &Key,
    bearer: Bearer,
) -> Result<(Issued, Option<IpAddr>), TrustError> {
    let (joining, name, machine) = match bearer {
        Bearer::Host { name, machine } => (Joining::Host, name, machine),
        Bearer::User => (Joining::User, None, None),
    };
    let request = JoinRequest {
        lab: token.lab.clone(),
        id: token.id.clone(),
        secret: token.secret.clone(),
        request: key.request()?,
        joining: Some(joining),
        name,
        machine,
    };
    let document = document(&request)?;
    let dialer = Dialer::pinned(&token.ca)?;
    let mut last = TrustError::unreadable("token", "it names no coordinator");
    for url in &token.urls {
        let what = format!("join lab {} at {url}", token.lab);
        let (channel, own) = match dialer.connect_told(url, |endpoint| endpoint).await {
            Ok(connected) => connected,
            Err(error) => {
                tracing::debug!(%error, "try the next coordinator");
                last = error;
                continue;
            }
        };
        match TrustClient::new(channel).join(limited(document.clone())).await {
            Ok(answer) => {
                let issued = read(&what, &answer)?;
                return Ok((issued, own.map(|own| own.ip().to_canonical())));
            }
            // Another coordinator would say the same.
            Err(status) if !is_passing(&status) => return Err(refused(what, &status)),
            Err(status) => last = refused(what, &status),
        }
    }
    Err(last)
}

/// A new certificate for the same key, from one coordinator.
///
/// # Errors
/// It cannot be reached, refuses, or answers with a certificate of somebody else.
pub async fn renew(
    dialer: &Dialer,
    url: &str,
    held: &Credentials,
) -> Result<(Credentials, Issued), TrustError> {
    let what = format!("renew certificate at {url}");
    // The key stays: with it, only one file has to change for the new certificate to count.
    let request = RenewRequest { request: Key::read(&held.key)?.request()? };
    let channel = dialer.connect(url, |endpoint| endpoint).await?;
    let answer = TrustClient::new(channel).renew(limited(document(&request)?)).await;
    let issued: Issued = read(&what, &answer.map_err(|status| refused(what.clone(), &status))?)?;
    let renewed = Credentials {
        key: held.key.clone(),
        certificate: issued.certificate.clone(),
        ca: issued.ca.clone(),
    };
    if renewed.facts()?.identity != held.facts()?.identity {
        let why = "it answered with a certificate of somebody else".to_owned();
        return Err(TrustError::Refused { what, why });
    }
    Ok((renewed, issued))
}

fn document(value: &impl serde::Serialize) -> Result<Document, TrustError> {
    let json = serde_json::to_string(value)
        .map_err(|error| TrustError::Make { what: "request", why: error.to_string() })?;
    Ok(Document { json })
}

fn limited(document: Document) -> Request<Document> {
    let mut request = Request::new(document);
    request.set_timeout(ANSWER_MAX);
    request
}

fn read(what: &str, answer: &Response<Document>) -> Result<Issued, TrustError> {
    serde_json::from_str(&answer.get_ref().json)
        .map_err(|error| TrustError::unreadable(format!("the answer to: {what}"), error))
}

fn refused(what: String, status: &Status) -> TrustError {
    TrustError::Refused { what, why: status.message().to_owned() }
}

/// Whether another coordinator, or this one later, may say something else.
fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Internal
            | Code::ResourceExhausted
    )
}
