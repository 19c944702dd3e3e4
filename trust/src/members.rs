//! Certificates for the members of one database cluster, signed by a CA of its own. Who holds one may do
//! nothing in the lab itself.

use std::{net::IpAddr, time::Duration};

use faultbed_common::tls::{ClusterAuthority, NodeTls};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};

use crate::{BACKDATE, TrustError};

/// How long the CA of a cluster counts.
const CA_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);

/// How long a member's certificate counts; each start of the member brings another.
const LIFETIME: Duration = Duration::from_secs(825 * 24 * 3600);

fn made(what: &'static str) -> impl Fn(rcgen::Error) -> TrustError {
    move |error| TrustError::Make { what, why: error.to_string() }
}

/// A new CA of a cluster.
///
/// # Errors
/// The system gives no random numbers.
pub fn authority(cluster: &str, now_unix_s: u64) -> Result<ClusterAuthority, TrustError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made("CA key"))?;
    let mut params = params(&format!("faultbed cluster {cluster}"), now_unix_s, CA_LIFETIME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(made("CA certificate"))?;
    Ok(ClusterAuthority { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A new key and certificate of one member, in PEM, in this order. It serves and it dials.
///
/// # Errors
/// The authority is none, or a name is none.
pub fn certify(tls: &NodeTls, now_unix_s: u64) -> Result<(String, String), TrustError> {
    let own = KeyPair::from_pem(&tls.authority.key).map_err(made("signature"))?;
    let issuer =
        Issuer::from_ca_cert_pem(&tls.authority.certificate, own).map_err(made("signature"))?;
    let name = tls.names.first().map(String::as_str).unwrap_or_default();
    let mut params = params(name, now_unix_s, LIFETIME);
    for name in &tls.names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.clone().try_into().map_err(made("host name"))?),
        });
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made("key"))?;
    let certificate = params.signed_by(&key, &issuer).map_err(made("certificate"))?;
    Ok((key.serialize_pem(), certificate.pem()))
}

/// The number of a certificate comes from its key, which nobody else has.
fn params(name: &str, now_unix_s: u64, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = date_time_ymd(1970, 1, 1) + Duration::from_secs(now_unix_s);
    params.not_before = now - BACKDATE;
    params.not_after = now + lifetime;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
