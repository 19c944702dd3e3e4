//! Connects to coordinators over TLS, with the certificate one has at that moment.

use std::{
    error::Error as StdError,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::{TrustError, certificate, credentials::Credentials, pin::Pinned, provider};

/// Connecting, with the handshake, takes no longer.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What connections are made with. Replacing it touches no connection that is there.
#[derive(Debug)]
pub struct Dialer {
    config: Mutex<Arc<ClientConfig>>,
    /// The certificates that the coordinator of the last connection showed, its own first.
    shown: Arc<Mutex<Vec<CertificateDer<'static>>>>,
}

impl Dialer {
    /// Shows one's certificate, and believes the CAs that came with it.
    ///
    /// # Errors
    /// The credentials are damaged, or key and certificate do not belong together.
    pub fn new(credentials: &Credentials) -> Result<Self, TrustError> {
        Ok(Self { config: Mutex::new(Arc::new(config_of(credentials)?)), shown: Arc::default() })
    }

    /// Shows no certificate, and believes only who shows the CA with this hash: for joining.
    ///
    /// # Errors
    /// There is no protocol to speak, which is a bug.
    pub fn pinned(ca_sha256: &str) -> Result<Self, TrustError> {
        let provider = provider();
        let pinned = Pinned { ca: ca_sha256.to_owned(), provider: Arc::clone(&provider) };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TrustError::Make { what: "TLS settings", why: error.to_string() })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned))
            .with_no_client_auth();
        settle(&mut config);
        Ok(Self { config: Mutex::new(Arc::new(config)), shown: Arc::default() })
    }

    /// Shows another certificate from the next connection on.
    ///
    /// # Errors
    /// As [`Dialer::new`]; then the old one stays.
    pub fn replace(&self, credentials: &Credentials) -> Result<(), TrustError> {
        let config = Arc::new(config_of(credentials)?);
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Whether the coordinator of the last connection has other CAs than these in PEM: another one
    /// signs, or one is believed no more. Who is told so renews, and gets them over that call.
    #[must_use]
    pub fn has_news(&self, ca: &str) -> bool {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(signs), Ok(held)) = (shown.get(1), certificate::all(ca)) else { return false };
        held.first() != Some(signs) || !held.iter().all(|ca| shown.contains(ca))
    }

    /// A gRPC channel to `https://HOST:PORT`, connected now. `settle` sets what the caller wants of it.
    ///
    /// # Errors
    /// Nobody is there, or not who is expected: says which.
    pub async fn connect(
        &self,
        url: &str,
        settle: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<Channel, TrustError> {
        self.connect_told(url, settle).await.map(|(channel, _)| channel)
    }

    /// As [`Dialer::connect`], and says which of this machine's addresses the connection has.
    ///
    /// # Errors
    /// As [`Dialer::connect`].
    pub async fn connect_told(
        &self,
        url: &str,
        settle: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<(Channel, Option<SocketAddr>), TrustError> {
        let refuse = |why: String| TrustError::Connect { url: url.to_owned(), why };
        let (host, port) = authority(url).map_err(|why| refuse(why.to_owned()))?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| refuse("it names no host".to_owned()))?;
        let config = Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner));
        let own = Arc::new(Mutex::new(None));
        let (told, host) = (Arc::clone(&own), host.to_owned());
        let shown = Arc::clone(&self.shown);
        let connector = tower::service_fn(move |_| {
            let (config, name, host) = (Arc::clone(&config), name.clone(), host.clone());
            let (told, shown) = (Arc::clone(&told), Arc::clone(&shown));
            async move {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                stream.set_nodelay(true)?;
                *told.lock().unwrap_or_else(PoisonError::into_inner) = stream.local_addr().ok();
                let stream = TlsConnector::from(config).connect(name, stream).await?;
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
                *shown.lock().unwrap_or_else(PoisonError::into_inner) = chain;
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        // The connector does TLS itself, so the endpoint must not ask for it once more.
        let plain = url.replacen("https://", "http://", 1);
        let endpoint = Endpoint::from_shared(plain).map_err(|error| refuse(error.to_string()))?;
        let endpoint = settle(endpoint.connect_timeout(CONNECT_TIMEOUT));
        let connecting = endpoint.connect_with_connector(connector);
        let channel = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| refuse(root_cause(&error)))?,
            Err(_) => return Err(refuse(format!("no answer within {CONNECT_TIMEOUT:?}"))),
        };
        let own = *own.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((channel, own))
    }
}

fn config_of(credentials: &Credentials) -> Result<ClientConfig, TrustError> {
    let mut roots = RootCertStore::empty();
    for ca in certificate::all(&credentials.ca)? {
        roots.add(ca).map_err(|error| TrustError::unreadable("CA certificate", error))?;
    }
    let key = PrivateKeyDer::from_pem_slice(credentials.key.as_bytes())
        .map_err(|error| TrustError::unreadable("private key", error))?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TrustError::Make { what: "TLS settings", why: error.to_string() })?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificate::all(&credentials.certificate)?, key)
        .map_err(|error| TrustError::unreadable("key and certificate", error))?;
    settle(&mut config);
    Ok(config)
}

/// No session is resumed: each connection shows its certificate, so that one that was taken away or
/// renewed is not used again.
fn settle(config: &mut ClientConfig) {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
}

/// Host and port of `https://HOST:PORT`.
fn authority(url: &str) -> Result<(&str, u16), &'static str> {
    let shape = "it is not written https://HOST:PORT";
    let rest = url.strip_prefix("https://").ok_or(shape)?.trim_end_matches('/');
    let (host, port) = rest.rsplit_once(':').ok_or(shape)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port = port.parse().map_err(|_| shape)?;
    if host.is_empty() { Err(shape) } else { Ok((host, port)) }
}

/// The innermost reason, in words for people where it is one of trust.
#[must_use]
pub fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    let text = inner.to_string();
    let has = |part: &str| text.contains(part);
    if has("UnknownIssuer") {
        "it cannot show a certificate of this lab's CA".to_owned()
    } else if has("NotValidForName") {
        format!("its certificate is for another name ({text}); give the coordinator --advertise")
    } else if has("received fatal alert: CertificateExpired") {
        "it says that our certificate has expired; join again with a new token".to_owned()
    } else if has("alert: UnknownCA") || has("alert: DecryptError") {
        "it does not know the CA of our certificate".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinators_are_named_by_host_and_port() {
        assert_eq!(authority("https://c1.example:7400"), Ok(("c1.example", 7400)));
        assert_eq!(authority("https://[::1]:7400/"), Ok(("::1", 7400)));
        for bad in ["http://c1:1", "https://c1", "https://:1", "https://c1:x", "c1:1"] {
            assert!(authority(bad).is_err(), "{bad}");
        }
    }
}
