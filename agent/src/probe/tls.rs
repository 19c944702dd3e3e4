//! Asks a node that speaks TLS, as one of its peers would: with a certificate of its cluster.

use std::{fs, net::IpAddr, path::Path, sync::Arc};

use faultbed_common::tls::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, TLS_DIR};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Files are read for each connection: a node that was started again has others.
pub(super) async fn connect(
    stream: TcpStream,
    to: IpAddr,
    node_dir: &Path,
) -> Result<TlsStream<TcpStream>, String> {
    let connector = TlsConnector::from(Arc::new(config(node_dir)?));
    let name = ServerName::IpAddress(to.into());
    connector.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))
}

fn config(node_dir: &Path) -> Result<ClientConfig, String> {
    let dir = node_dir.join(TLS_DIR);
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read(&path).map_err(|error| format!("read {}: {error}", path.display()))
    };
    let unreadable = |error: rustls::pki_types::pem::Error| format!("read certificates: {error}");
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(&read(CA_FILE)?).map_err(unreadable)?;
    roots.add(ca).map_err(|error| format!("read the CA: {error}"))?;
    let own = CertificateDer::from_pem_slice(&read(CERTIFICATE_FILE)?).map_err(unreadable)?;
    let key = PrivateKeyDer::from_pem_slice(&read(KEY_FILE)?).map_err(unreadable)?;
    ClientConfig::builder_with_provider(faultbed_trust::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![own], key)
        .map_err(|error| error.to_string())
}
