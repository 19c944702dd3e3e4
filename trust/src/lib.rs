//! Keys, certificates and TLS connections of a lab across machines: what agents, coordinators and the
//! command line share.
//!
//! One CA of the lab's own signs everything. Who somebody is stands in one URI of the certificate
//! ([`faultbed_common::trust::Identity`]). Only coordinators' certificates can serve, so that no host
//! of the lab can stand in for one.

pub mod ask;
pub mod certificate;
pub mod credentials;
pub mod dial;
pub mod key;
pub mod members;
mod pin;

use std::{sync::Arc, time::Duration};

use rustls::crypto::CryptoProvider;

/// Certificates count from this long before they are issued, for hosts whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(24 * 3600);

/// The one source of cryptography, named wherever one is wanted: with two in a program, rustls could
/// not choose.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Why a key, a certificate or a connection is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It is not what it should be.
    #[error("read {what}: {why}")]
    Unreadable {
        /// What was read.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The disk does not let us.
    #[error("{verb} {}", path.display())]
    Disk {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: std::path::PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A key could not be made or used.
    #[error("make {what}: {why}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// Why it was not.
        why: String,
    },
    /// The lab says no.
    #[error("{what}: {why}")]
    Refused {
        /// What was asked.
        what: String,
        /// Why not.
        why: String,
    },
    /// Nobody is there, or not who is expected.
    #[error("connect to {url}: {why}")]
    Connect {
        /// Who was meant.
        url: String,
        /// Why not.
        why: String,
    },
}

impl TrustError {
    /// For what cannot be read.
    pub fn unreadable(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Unreadable { what: what.into(), why: why.to_string() }
    }
}
