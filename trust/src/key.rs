//! A key of one's own, and the request to have it certified. The key never leaves its machine.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};

use crate::TrustError;

/// A private key on the curve P-256.
pub struct Key(KeyPair);

/// Without the key.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// A new key.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn new() -> Result<Self, TrustError> {
        let make = |error: rcgen::Error| TrustError::Make { what: "key", why: error.to_string() };
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(make)
    }

    /// A key from its file.
    ///
    /// # Errors
    /// It is none.
    pub fn read(pem: &str) -> Result<Self, TrustError> {
        KeyPair::from_pem(pem).map(Self).map_err(|e| TrustError::unreadable("private key", e))
    }

    /// The key in PEM, for its file.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// A certificate request in PEM. It names nobody: who this is, the coordinator decides.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn request(&self) -> Result<String, TrustError> {
        let make = |error: rcgen::Error| TrustError::Make {
            what: "certificate request",
            why: error.to_string(),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "faultbed");
        params.serialize_request(&self.0).and_then(|request| request.pem()).map_err(make)
    }
}
