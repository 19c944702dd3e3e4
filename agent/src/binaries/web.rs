//! Programs at an `https://` address: asked for over TLS, with certificates of this machine's roots or of the
//! host's own setting. Whether what came is what was wanted, its hash says, not who sent it.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use faultbed_common::program::{PROGRAM_BYTES_MAX, Web};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Bytes, Incoming},
    client::conn::http1,
    header::{CONTENT_RANGE, HOST, HeaderMap, LOCATION, RANGE, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

/// How long it may take until a server is connected to, with its certificate seen.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);

/// How long an answer may take to begin, and each further piece to come.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How often an answer may point elsewhere.
const REDIRECTS_MAX: usize = 5;

/// Largest file of certificates that is read.
const CA_BYTES_MAX: u64 = 4 << 20;

/// Why nothing comes from an address.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The certificates to go by cannot be had.
    #[error("{0}")]
    Roots(String),
    /// Nobody there, or nobody who is trusted.
    #[error("connect to {host}: {why}")]
    Connect {
        /// Who.
        host: String,
        /// Why not.
        why: String,
    },
    /// The server gives something else than the file.
    #[error("GET {url}: the server answers {status}; see that the file is there for everybody")]
    Status {
        /// What was asked for.
        url: String,
        /// What it answered.
        status: StatusCode,
    },
    /// The server points to where nothing is fetched from.
    #[error("GET {url}: it leads to {to}, and {why}; write the address where the file is")]
    Redirect {
        /// What was asked for.
        url: String,
        /// Where it points to.
        to: String,
        /// Why not there.
        why: String,
    },
    /// It is larger than any program.
    #[error("GET {url}: it has {bytes} bytes; a program has at most {PROGRAM_BYTES_MAX}")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// How many the server names.
        bytes: u64,
    },
}

/// What a server gives: from which byte on, how many bytes the whole has where it says so, and the rest.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) offset: u64,
    pub(super) whole: Option<u64>,
    body: Incoming,
}

impl Opened {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// It broke off, or nothing came for too long.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let frame = match timeout(ANSWER_WITHIN, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(told(&error)),
                Err(_) => return Err(format!("no piece within {} s", ANSWER_WITHIN.as_secs())),
            };
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }
}

/// Asks for a file from byte `offset` on. A server that cannot do that gives all of it.
///
/// # Errors
/// Nothing comes from there.
pub(super) async fn open(web: &Web, ca: Option<&Path>, offset: u64) -> Result<Opened, WebError> {
    let ca = ca.map(Path::to_owned);
    let roots = tokio::task::spawn_blocking(move || roots(ca.as_deref())).await;
    let roots = roots.unwrap_or_else(|error| Err(error.to_string())).map_err(WebError::Roots)?;
    let tls = TlsConnector::from(Arc::new(config(roots).map_err(WebError::Roots)?));
    let (mut at, mut offset) = (web.clone(), offset);
    for _ in 0..=REDIRECTS_MAX {
        let answer = get(&tls, &at, offset).await?;
        let whole = match answer.status() {
            StatusCode::OK => {
                offset = 0;
                answer.body().size_hint().exact()
            }
            StatusCode::PARTIAL_CONTENT => {
                whole(answer.headers(), offset).map_err(|why| WebError::Connect {
                    host: at.authority(),
                    why: format!("its answer is wrong: {why}"),
                })?
            }
            // What is here is not the beginning of what is there.
            StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => {
                offset = 0;
                continue;
            }
            status if status.is_redirection() && answer.headers().contains_key(LOCATION) => {
                at = follow(&at, answer.headers())?;
                continue;
            }
            status => return Err(WebError::Status { url: at.url(), status }),
        };
        if let Some(bytes) = whole.filter(|bytes| *bytes > PROGRAM_BYTES_MAX) {
            return Err(WebError::TooLarge { url: at.url(), bytes });
        }
        return Ok(Opened { offset, whole, body: answer.into_body() });
    }
    let why = format!("it was the last of {REDIRECTS_MAX} steps that are followed");
    Err(WebError::Redirect { url: web.url(), to: at.url(), why })
}

/// One request over a connection of its own.
async fn get(tls: &TlsConnector, at: &Web, offset: u64) -> Result<Response<Incoming>, WebError> {
    let failed = |why: String| WebError::Connect { host: at.authority(), why };
    let late = |within: Duration| failed(format!("no answer within {} s", within.as_secs()));
    let name = ServerName::try_from(at.host().to_owned());
    let name =
        name.map_err(|error| failed(format!("it has no name for a certificate: {error}")))?;
    let connect = async {
        let stream = TcpStream::connect((at.host(), at.port())).await?;
        tls.connect(name, stream).await
    };
    let stream = match timeout(CONNECT_WITHIN, connect).await {
        Ok(connected) => connected.map_err(|error| failed(refusal(&error)))?,
        Err(_) => return Err(late(CONNECT_WITHIN)),
    };
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(at.path())
        .header(HOST, at.authority())
        .header(USER_AGENT, concat!("faultbed-agent/", env!("CARGO_PKG_VERSION")));
    if offset > 0 {
        request = request.header(RANGE, format!("bytes={offset}-"));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(error.to_string()))?;
    let answer = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends when the answer is read or dropped.
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    match timeout(ANSWER_WITHIN, answer).await {
        Ok(answer) => answer.map_err(|error| failed(told(&error))),
        Err(_) => Err(late(ANSWER_WITHIN)),
    }
}

/// Where an answer points to.
fn follow(at: &Web, headers: &HeaderMap) -> Result<Web, WebError> {
    let to = headers.get(LOCATION).map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
    let to = to.unwrap_or_default();
    at.follow(&to).map_err(|why| WebError::Redirect { url: at.url(), to, why })
}

/// The size of the whole of which a part comes, `bytes FIRST-LAST/SIZE`, if the part begins at `offset`.
fn whole(headers: &HeaderMap, offset: u64) -> Result<Option<u64>, String> {
    let range = headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let range = range.ok_or("it gives a part and does not say which")?;
    let parts = range.strip_prefix("bytes ").and_then(|range| range.split_once('/'));
    let (part, size) = parts.ok_or_else(|| format!("Content-Range {range:?} means nothing"))?;
    let first = part.split('-').next().and_then(|first| first.parse::<u64>().ok());
    if first != Some(offset) {
        return Err(format!("asked from byte {offset} on, it gives {part}"));
    }
    Ok(size.parse().ok())
}

/// Certificates of this machine, and those of a file.
fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // Roots that nobody understands are no reason to trust no other.
    roots.add_parsable_certificates(found.certs);
    if let Some(path) = ca {
        let failed = |why: String| format!("read fetch_ca {}: {why}", path.display());
        let bytes = fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
        if bytes > CA_BYTES_MAX {
            return Err(failed(format!("it has more than {CA_BYTES_MAX} bytes")));
        }
        let pem = fs::read(path).map_err(|error| failed(error.to_string()))?;
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
        if roots.len() == before {
            return Err(failed("it holds no certificate; write them there as PEM".to_owned()));
        }
    }
    if roots.is_empty() {
        return Err("this machine has no root certificates, by which servers are known: \
                    apt-get install ca-certificates, or say fetch_ca in agent.toml"
            .to_owned());
    }
    Ok(roots)
}

fn config(roots: RootCertStore) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let versions = versions.map_err(|error| error.to_string())?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}

/// Why nobody was connected to, with what helps where the certificate is the reason.
fn refusal(error: &io::Error) -> String {
    let text = error.to_string();
    if text.contains("UnknownIssuer") {
        return format!(
            "{text}; where it has a CA of its own, name its file: fetch_ca in agent.toml"
        );
    }
    text
}

/// An error with what it came from, which hyper keeps apart.
fn told(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
