//! What etcd and its client say, in words and kinds of our own.

use std::{error::Error as StdError, io};

use etcd_client::Error;
use tonic::{Code, Status};

use super::EtcdAddress;
use crate::store::{Revision, StoreError};

/// Of a connection that was there and is not.
const BROKE: &str = "the connection broke";

/// What helps where a server over TLS hangs up.
const MAY_WANT: &str =
    "it may want a client certificate of its CA: give --etcd-cert and --etcd-key";

/// An error for people and for decisions.
pub(super) fn translate(address: &EtcdAddress, error: &Error) -> StoreError {
    match error {
        Error::GRpcStatus(status) => from_status(address, status),
        Error::LeaseKeepAliveError(why) if why.contains("lease not found") => StoreError::NoLease,
        Error::InvalidArgs(why) => StoreError::Invalid(format!("ask etcd: {why}")),
        Error::InvalidUri(why) => StoreError::Invalid(format!("read etcd address: {why}")),
        // The rest can only be a connection that broke or never was; it is not an exhaustive enum
        // in spirit, since its variants depend on features.
        other => broken(address, other, || other.to_string()),
    }
}

pub(super) fn unreachable(address: &EtcdAddress, why: &str) -> StoreError {
    StoreError::Unavailable(format!("cannot reach etcd at {address}: {why}"))
}

fn from_status(address: &EtcdAddress, status: &Status) -> StoreError {
    let said = status.message().trim_start_matches("etcdserver: ");
    let refused = || StoreError::Unavailable(format!("etcd at {address} refuses: {said}"));
    match status.code() {
        Code::NotFound if said.contains("lease") => StoreError::NoLease,
        // Says so without the revision; a watch of it would tell.
        Code::OutOfRange if said.contains("compacted") => StoreError::Compacted(Revision::ABSENT),
        Code::OutOfRange | Code::InvalidArgument => {
            StoreError::Invalid(format!("ask etcd: {said}"))
        }
        Code::ResourceExhausted if said.contains("space") => StoreError::Unavailable(format!(
            "etcd at {address} is full: {said}; compact and defragment it, then `etcdctl alarm disarm`"
        )),
        Code::ResourceExhausted => StoreError::Invalid(format!("ask etcd: {said}")),
        Code::PermissionDenied | Code::Unauthenticated => refused(),
        Code::DeadlineExceeded => unreachable(address, "no answer in time"),
        Code::Cancelled if said.contains("Timeout expired") => {
            unreachable(address, "no answer in time")
        }
        Code::Cancelled if address.urls().iter().any(|url| url.starts_with("https")) => {
            unreachable(address, &format!("it closed the connection; {MAY_WANT}"))
        }
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => broken(address, status, || said.to_owned()),
    }
}

/// Of a connection that broke, or what else was said. A server that turns away who shows no certificate says
/// so and hangs up, and the second may be heard without the first.
fn broken(
    address: &EtcdAddress,
    error: &(dyn StdError + 'static),
    said: impl Fn() -> String,
) -> StoreError {
    let why = connection(error).unwrap_or_else(said);
    let is_tls = address.urls().iter().any(|url| url.starts_with("https"));
    match why == BROKE && is_tls {
        true => unreachable(address, &format!("{why}; {MAY_WANT}")),
        false => unreachable(address, &why),
    }
}

/// Whether the request certainly did not reach anybody.
pub(super) fn never_sent(error: &Error) -> bool {
    let kind = find_io(error).map(io::Error::kind);
    matches!(
        kind,
        Some(
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::AddrNotAvailable
        )
    )
}

/// What the system said about the connection, such as `connection refused`.
fn connection(error: &(dyn StdError + 'static)) -> Option<String> {
    let found = find_io(error)?;
    Some(match found.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => BROKE.to_owned(),
        io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => in_words(found.to_string()),
    })
}

/// What TLS said, with the flag that helps.
fn in_words(said: String) -> String {
    let flag = if said.contains("UnknownIssuer") {
        "its certificate is not of the CA in --etcd-ca"
    } else if said.contains("NotValidForName") {
        "its certificate is for other names than the address; use one of those"
    } else if said.contains("CertificateRequired") || said.contains("BadCertificate") {
        "it wants a client certificate of its CA: give --etcd-cert and --etcd-key"
    } else {
        return said;
    };
    format!("{flag} ({said})")
}

fn find_io<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e io::Error> {
    let mut next = Some(error);
    // `etcd_client::Error` does not name its source.
    if let Some(Error::GRpcStatus(status)) = error.downcast_ref::<Error>() {
        next = Some(status);
    } else if let Some(Error::TransportError(transport)) = error.downcast_ref::<Error>() {
        next = Some(transport);
    }
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_over_tls_that_hangs_up_may_want_a_certificate() {
        for (url, says) in [("https", true), ("http", false)] {
            let address: EtcdAddress = format!("{url}://127.0.0.1:2379").parse().unwrap();
            let reset = io::Error::from(io::ErrorKind::ConnectionReset);
            let error = Error::GRpcStatus(Status::from_error(Box::new(reset)));
            let said = translate(&address, &error).to_string();
            assert!(said.contains("the connection broke"), "{said}");
            assert_eq!(said.contains("--etcd-cert"), says, "{said}");
        }
    }
}
