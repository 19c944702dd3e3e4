//! What a certificate says: who holds it, and for how long it counts.

use std::time::Duration;

use faultbed_common::trust::Identity;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{BACKDATE, TrustError};

/// What matters of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Who holds it.
    pub identity: Identity,
    /// The SHA-256 of its public key, in lower-case hex: the same in every certificate of a key.
    pub key: String,
    /// When it begins to count, in seconds since the epoch.
    pub from_unix_s: u64,
    /// When it ends, in seconds since the epoch.
    pub until_unix_s: u64,
}

impl Facts {
    /// Reads a certificate in DER. Its signature is not looked at: the handshake does that.
    ///
    /// # Errors
    /// It is none, or does not name exactly one identity.
    pub fn of_der(der: &[u8]) -> Result<Self, TrustError> {
        let unreadable = |why: &dyn std::fmt::Display| TrustError::unreadable("certificate", why);
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| unreadable(&error))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| unreadable(&error))?
            .ok_or_else(|| unreadable(&"it names nobody"))?;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(unreadable(&"it must name exactly one URI"));
        };
        let identity = uri.parse().map_err(|why: String| unreadable(&why))?;
        let validity = certificate.validity();
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        Ok(Self {
            identity,
            key: fingerprint(certificate.public_key().raw),
            from_unix_s: seconds(validity.not_before.timestamp()),
            until_unix_s: seconds(validity.not_after.timestamp()),
        })
    }

    /// Reads a certificate in PEM; the first, where there are several.
    ///
    /// # Errors
    /// As [`Facts::of_der`].
    pub fn of_pem(pem: &str) -> Result<Self, TrustError> {
        Self::of_der(&all(pem)?[0])
    }

    /// How long it counts from when it was issued.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        let whole = Duration::from_secs(self.until_unix_s.saturating_sub(self.from_unix_s));
        whole.saturating_sub(BACKDATE)
    }

    /// When it should be renewed: two thirds into its life, so that there is time to try again.
    #[must_use]
    pub fn renew_at_unix_s(&self) -> u64 {
        self.until_unix_s.saturating_sub(self.lifetime().as_secs() / 3)
    }
}

/// Every certificate in a PEM text; at least one.
///
/// # Errors
/// There is none, or one is damaged.
pub fn all(pem: &str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = read.map_err(|error| TrustError::unreadable("certificate", error))?;
    if found.is_empty() {
        return Err(TrustError::unreadable("certificate", "there is none"));
    }
    Ok(found)
}

/// The SHA-256 of a certificate, in lower-case hex: by this a token names the CA.
#[must_use]
pub fn fingerprint(der: &[u8]) -> String {
    hex(&Sha256::digest(der))
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
