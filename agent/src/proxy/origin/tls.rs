//! Certificates on both sides: who answers and who asks are hosts of the lab, by one CA.
//!
//! Both show the certificate with which their agents go to coordinators, which is one of a client;
//! so each side judges the other as a server judges its clients, and looks at its one name.

use std::{
    fs, io,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use faultbed_common::name::{HostName, LabName};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use crate::proxy::rule_set::lock;

/// What both sides must speak; another version gets another number.
const PROTOCOL: &[u8] = b"faultbed-identity/1";

/// The configurations, made anew when the files have changed.
#[derive(Debug, Default)]
pub(super) struct Tls {
    known: Mutex<Option<(SystemTime, Arc<Sides>)>>,
}

/// How connections are made and taken.
#[derive(Debug)]
pub(super) struct Sides {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
}

impl Tls {
    /// The configurations for the files as they are now.
    ///
    /// # Errors
    /// A file is missing or of no use.
    pub(super) fn sides(&self, dir: &Path) -> io::Result<Arc<Sides>> {
        let changed = fs::metadata(dir.join("cert.pem"))?.modified()?;
        let mut known = lock(&self.known);
        if let Some((at, sides)) = &*known
            && *at == changed
        {
            return Ok(Arc::clone(sides));
        }
        let sides = Arc::new(load(dir)?);
        *known = Some((changed, Arc::clone(&sides)));
        Ok(sides)
    }
}

fn load(dir: &Path) -> io::Result<Sides> {
    let unreadable = |error| io::Error::other(format!("read certificates in {dir:?}: {error}"));
    let all = |name: &str| -> io::Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_file_iter(dir.join(name))
            .and_then(Iterator::collect)
            .map_err(|error| unreadable(error.to_string()))
    };
    let chain = all("cert.pem")?;
    let key = || {
        PrivateKeyDer::from_pem_file(dir.join("key.pem"))
            .map_err(|error| unreadable(error.to_string()))
    };
    let mut roots = RootCertStore::empty();
    for root in all("ca.pem")? {
        roots.add(root).map_err(|error| unreadable(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let judge = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| unreadable(error.to_string()))?;
    let versions = &[&rustls::version::TLS13];
    let of_tls = |error: Error| unreadable(error.to_string());
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(of_tls)?
        .with_client_cert_verifier(Arc::clone(&judge))
        .with_single_cert(chain.clone(), key()?)
        .map_err(of_tls)?;
    server.alpn_protocols = vec![PROTOCOL.to_vec()];
    // A certificate that was renewed or taken away must count at the next connection.
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(of_tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Peers { judge, provider }))
        .with_client_auth_cert(chain, key()?)
        .map_err(of_tls)?;
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    client.resumption = rustls::client::Resumption::disabled();
    Ok(Sides { client: Arc::new(client), server: Arc::new(server) })
}

/// Judges the certificate of the host that answers: signed by the lab's CA. Which host it is, whoever
/// connected looks at then.
#[derive(Debug)]
struct Peers {
    judge: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Peers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge.verify_client_cert(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

/// The host of this lab that a certificate names; `None` where it names another, or more than one.
pub(super) fn host_of(certificate: &CertificateDer<'_>, lab: &LabName) -> Option<HostName> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut names = certificate.valid_uri_names();
    let name = names.next().filter(|_| names.next().is_none())?;
    name.strip_prefix("faultbed://")?
        .strip_prefix(lab.as_str())?
        .strip_prefix("/host/")?
        .parse()
        .ok()
}

/// What stands for the name of a server, which is not looked at.
pub(super) fn server_name(address: IpAddr) -> ServerName<'static> {
    ServerName::IpAddress(address.into())
}
