//! The lab's own CA: made once, kept in the store, signs who is who. Pure: time and dice are arguments.

use std::{net::IpAddr, time::Duration};

use faultbed_common::{
    name::LabName,
    trust::{Identity, Who},
};
use faultbed_trust::{BACKDATE, TrustError, certificate};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, date_time_ymd,
};
use serde::{Deserialize, Serialize};

/// How long a CA counts. `faultbed ca rotate` replaces it with an overlap long before.
const CA_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);

/// The longest certificate request that is read, in bytes; ours have some 400.
const REQUEST_BYTES_MAX: usize = 8192;

/// The value of `pki/ca`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// The version of this document: 1.
    pub version: u32,
    /// The CA that signs, in PEM.
    pub certificate: String,
    /// Its private key, in PEM.
    pub key: String,
    /// Other CAs that are believed, in PEM: those that signed before, or will.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted: Vec<String>,
    /// The CA that signed before, which is one of `trusted` until its time is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// Who had it take over, or had the one before it end; `None` where that was its beginning or its
    /// time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// A CA that signs nothing any more: its key is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The SHA-256 of its certificate, in lower-case hex.
    pub ca: String,
    /// The last that it signed: the certificate of the CA that signs now, in PEM. It goes with every
    /// certificate, so that who believes only the CA that ends believes the new one too.
    pub vouches: String,
    /// When it is believed no more, in seconds since the epoch.
    pub until_unix_s: u64,
}

/// Without the key.
impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// When a certificate is issued, for how long, and under which number.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Seconds since the epoch.
    pub now_unix_s: u64,
    /// How long it counts.
    pub lifetime: Duration,
    /// Nobody else's number.
    pub serial: [u8; 16],
}

impl Terms {
    /// When such a certificate ends, in seconds since the epoch.
    #[must_use]
    pub fn until_unix_s(&self) -> u64 {
        self.now_unix_s.saturating_add(self.lifetime.as_secs())
    }
}

fn made(what: &'static str) -> impl Fn(rcgen::Error) -> TrustError {
    move |error| TrustError::Make { what, why: error.to_string() }
}

impl Authority {
    /// A new CA of a lab. Its key is made here.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn new(lab: &LabName, now_unix_s: u64, serial: [u8; 16]) -> Result<Self, TrustError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made("CA key"))?;
        let terms = Terms { now_unix_s, lifetime: CA_LIFETIME, serial };
        let params = of_authority(lab, &terms);
        let certificate = params.self_signed(&key).map_err(made("CA certificate"))?;
        Ok(Self {
            version: 1,
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            trusted: Vec::new(),
            ending: None,
            by: None,
        })
    }

    /// The CA that takes over from this one, which is believed for `overlap` more.
    ///
    /// # Errors
    /// As [`Authority::new`]; or this one is damaged.
    pub fn successor(
        &self,
        lab: &LabName,
        now_unix_s: u64,
        serial: [u8; 16],
        overlap: Duration,
    ) -> Result<Self, TrustError> {
        let next = Self::new(lab, now_unix_s, serial)?;
        let key = KeyPair::from_pem(&next.key).map_err(made("CA key"))?;
        let params = of_authority(lab, &Terms { now_unix_s, lifetime: overlap, serial });
        let ending = Ending {
            ca: self.fingerprint()?,
            vouches: self.sign(&params, &key)?,
            until_unix_s: now_unix_s.saturating_add(overlap.as_secs()),
        };
        let trusted = std::iter::once(&self.certificate).chain(&self.trusted).cloned().collect();
        Ok(Self { trusted, ending: Some(ending), ..next })
    }

    /// This CA without the one that ends.
    ///
    /// # Errors
    /// Somebody wrote something else into the store.
    pub fn alone(&self) -> Result<Self, TrustError> {
        let Some(ending) = &self.ending else { return Ok(self.clone()) };
        let mut trusted = Vec::new();
        for ca in &self.trusted {
            if certificate::fingerprint(&certificate::all(ca)?[0]) != ending.ca {
                trusted.push(ca.clone());
            }
        }
        Ok(Self { trusted, ending: None, by: None, ..self.clone() })
    }

    /// The hash by which a host knows whether it has the CAs that count now.
    #[must_use]
    pub fn bundle_hash(&self) -> String {
        certificate::fingerprint(self.bundle().as_bytes())
    }

    /// What is shown with a coordinator's certificate, in PEM: the CAs, the one that signs first, so
    /// that who joins finds the one of the token, and who has others asks for these.
    #[must_use]
    pub fn shown(&self) -> String {
        format!("{}{}", self.bundle(), self.vouched())
    }

    /// What goes with a certificate that this CA signs, in PEM.
    fn vouched(&self) -> &str {
        self.ending.as_ref().map_or("", |ending| &ending.vouches)
    }

    /// Whether this is, or was lately, the CA with this hash.
    ///
    /// # Errors
    /// Somebody wrote something else into the store.
    pub fn believes(&self, ca: &str) -> Result<bool, TrustError> {
        let all = certificate::all(&self.bundle())?;
        Ok(all.iter().any(|der| certificate::fingerprint(der) == ca))
    }

    /// Every CA to believe, the one that signs first, in PEM.
    #[must_use]
    pub fn bundle(&self) -> String {
        std::iter::once(&self.certificate).chain(&self.trusted).cloned().collect()
    }

    /// The hash by which tokens name the CA that signs.
    ///
    /// # Errors
    /// Somebody wrote something else into the store.
    pub fn fingerprint(&self) -> Result<String, TrustError> {
        Ok(certificate::fingerprint(&certificate::all(&self.certificate)?[0]))
    }

    /// Certifies the key of a request for an agent or a user. Nothing else of the request counts.
    /// The certificate cannot serve, so that nobody who joined can stand in for a coordinator.
    ///
    /// # Errors
    /// The request is none, or is not signed with its own key.
    pub fn certify(
        &self,
        identity: &Identity,
        request: &str,
        terms: &Terms,
    ) -> Result<String, TrustError> {
        let request = read_request(request)?;
        let mut params = of_identity(identity, terms)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(format!("{}{}", self.sign(&params, &request.public_key)?, self.vouched()))
    }

    /// Key and certificate of a coordinator that is reached by these names and addresses, in PEM.
    ///
    /// # Errors
    /// A name is none.
    pub fn serve(
        &self,
        identity: &Identity,
        names: &[String],
        terms: &Terms,
    ) -> Result<(String, String), TrustError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made("key"))?;
        let mut params = of_identity(identity, terms)?;
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.clone().try_into().map_err(made("host name"))?),
            });
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok((key.serialize_pem(), self.sign(&params, &key)?))
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<String, TrustError> {
        let own = KeyPair::from_pem(&self.key).map_err(made("signature"))?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, own).map_err(made("signature"))?;
        Ok(params.signed_by(key, &issuer).map_err(made("certificate"))?.pem())
    }
}

fn of_authority(lab: &LabName, terms: &Terms) -> CertificateParams {
    let mut params = dated(terms);
    // The number is in the name too: while one CA takes over from another, chains are found by
    // the issuer's name.
    let number = certificate::hex(&terms.serial[..4]);
    params.distinguished_name = named(&format!("faultbed {lab} {number}"));
    // One more may stand below it: the CA that takes over, for as long as this one vouches for it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The hash of a request's key: who retries with the same key is the same.
///
/// # Errors
/// As [`Authority::certify`].
pub fn key_of(request: &str) -> Result<String, TrustError> {
    Ok(certificate::fingerprint(&read_request(request)?.public_key.subject_public_key_info()))
}

fn read_request(request: &str) -> Result<CertificateSigningRequestParams, TrustError> {
    if request.len() > REQUEST_BYTES_MAX {
        return Err(TrustError::unreadable("certificate request", "it is longer than 8192 bytes"));
    }
    CertificateSigningRequestParams::from_pem(request)
        .map_err(|error| TrustError::unreadable("certificate request", error))
}

fn of_identity(identity: &Identity, terms: &Terms) -> Result<CertificateParams, TrustError> {
    let mut params = dated(terms);
    params.distinguished_name = named(match &identity.who {
        Who::Host(name) => name.as_str(),
        Who::User(name, _) => name.as_str(),
        Who::Coordinator(name) => name.as_str(),
    });
    let uri = identity.to_string().try_into().map_err(made("identity"))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn dated(terms: &Terms) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = date_time_ymd(1970, 1, 1) + Duration::from_secs(terms.now_unix_s);
    params.not_before = now - BACKDATE;
    params.not_after = now + terms.lifetime;
    params.serial_number = Some(SerialNumber::from_slice(&terms.serial));
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

#[cfg(test)]
mod tests {
    use faultbed_trust::{certificate::Facts, key::Key};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn terms() -> Terms {
        Terms { now_unix_s: NOW, lifetime: Duration::from_secs(3600), serial: [7; 16] }
    }

    fn authority() -> Authority {
        Authority::new(&"prod".parse().unwrap(), NOW, [1; 16]).unwrap()
    }

    #[test]
    fn a_certificate_says_who_and_until_when_whatever_the_request_says() {
        let who: Identity = "faultbed://prod/host/h1".parse().unwrap();
        let request = Key::new().unwrap().request().unwrap();
        let pem = authority().certify(&who, &request, &terms()).unwrap();
        let facts = Facts::of_pem(&pem).unwrap();
        assert_eq!(facts.identity, who);
        assert_eq!(
            facts.key,
            key_of(&request).unwrap(),
            "a request and its certificate are of one key"
        );
        assert_eq!(facts.until_unix_s, NOW + 3600);
        assert_eq!(facts.lifetime(), Duration::from_secs(3600));
        assert_eq!(facts.renew_at_unix_s(), NOW + 2400);
    }

    #[test]
    fn the_ca_that_ends_vouches_for_the_next_one_until_it_is_alone() {
        let before = authority();
        let lab = "prod".parse().unwrap();
        let now = before.successor(&lab, NOW, [2; 16], Duration::from_secs(60)).unwrap();
        let (old, new) = (before.fingerprint().unwrap(), now.fingerprint().unwrap());
        assert_ne!(old, new);
        assert!(now.believes(&old).unwrap() && now.believes(&new).unwrap());
        assert_eq!(now.bundle(), format!("{}{}", now.certificate, before.certificate));
        let ending = now.ending.clone().unwrap();
        assert_eq!((ending.ca, ending.until_unix_s), (old.clone(), NOW + 60));
        assert!(!serde_json::to_string(&now).unwrap().contains(before.key.lines().nth(1).unwrap()));
        let who: Identity = "faultbed://prod/host/h1".parse().unwrap();
        let issued = |by: &Authority| {
            let request = Key::new().unwrap().request().unwrap();
            certificate::all(&by.certify(&who, &request, &terms()).unwrap()).unwrap().len()
        };
        assert_eq!(issued(&now), 2, "the word of the old one goes with it");
        let alone = now.alone().unwrap();
        assert!(!alone.believes(&old).unwrap() && alone.believes(&new).unwrap());
        assert_eq!(alone.bundle(), alone.shown());
        assert_eq!(issued(&alone), 1);
    }

    #[test]
    fn a_request_that_is_none_or_was_changed_is_refused() {
        let request = Key::new().unwrap().request().unwrap();
        let mut lines: Vec<String> = request.lines().map(str::to_owned).collect();
        let last = lines.len() - 2;
        lines[last] = lines[last].chars().rev().collect();
        let who: Identity = "faultbed://prod/host/h1".parse().unwrap();
        for bad in ["", "hello", &lines.join("\n"), &"x".repeat(REQUEST_BYTES_MAX + 1)] {
            assert!(authority().certify(&who, bad, &terms()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_same_key_is_known_again_in_another_request() {
        let key = Key::new().unwrap();
        let (first, second) = (key.request().unwrap(), key.request().unwrap());
        assert_eq!(key_of(&first).unwrap(), key_of(&second).unwrap());
        let other = Key::new().unwrap().request().unwrap();
        assert_ne!(key_of(&first).unwrap(), key_of(&other).unwrap());
    }
}
