//! HTTP/1.1 questions over one connection that is kept.

use std::{net::SocketAddr, path::Path};

use faultbed_common::expr::Answer;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
};

use super::tls;

/// Longer answers are refused: a probe wants a word, not a dump.
const BODY_BYTES_MAX: usize = 1 << 20;

/// At most one connection, to the server that was asked last.
#[derive(Debug, Default)]
pub(super) struct Client {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    host: String,
    send: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    pub(super) async fn ask(
        &mut self,
        node_dir: &Path,
        (method, url): (&str, &str),
        body: &str,
    ) -> Result<Answer, String> {
        let (tls, url) = match url.strip_prefix("https://") {
            Some(rest) => (Some(node_dir), rest),
            None => (None, url),
        };
        let (host, path) = url.split_once('/').map_or((url, ""), |(host, path)| (host, path));
        let is_reused = self.open.as_ref().is_some_and(|open| open.host == host);
        match self.ask_once(tls, (method, host, path), body).await {
            // The server may have closed what was kept; a fresh connection tells.
            Err(_) if is_reused => {
                self.open = None;
                self.ask_once(tls, (method, host, path), body).await
            }
            answer => answer,
        }
    }

    async fn ask_once(
        &mut self,
        tls: Option<&Path>,
        (method, host, path): (&str, &str, &str),
        body: &str,
    ) -> Result<Answer, String> {
        let mut open = match self.open.take() {
            Some(open) if open.host == host && open.send.is_ready() => open,
            _ => connect(host, tls).await?,
        };
        let mut request =
            Request::builder().method(method).uri(format!("/{path}")).header(header::HOST, host);
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .map_err(|error| error.to_string())?;
        let response = open.send.send_request(request).await.map_err(describe)?;
        let status = i64::from(response.status().as_u16());
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        self.open = Some(open);
        Ok(Answer { status, text })
    }
}

/// With TLS as the node whose directory `tls` is: its certificate is shown, and its CA believed.
async fn connect(host: &str, tls: Option<&Path>) -> Result<Open, String> {
    let address: SocketAddr = host.parse().map_err(|_| format!("{host} is no address"))?;
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    match tls {
        Some(node_dir) => {
            let stream = tls::connect(stream, address.ip(), node_dir).await?;
            begin(host, stream).await
        }
        None => begin(host, stream).await,
    }
}

async fn begin(
    host: &str,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Open, String> {
    let (send, connection) = handshake(TokioIo::new(stream)).await.map_err(describe)?;
    // It ends with the connection, or when it is dropped.
    let driver = tokio::spawn(async move {
        connection.await.ok();
    });
    Ok(Open { host: host.to_owned(), send, driver: driver.abort_handle() })
}

fn describe(error: hyper::Error) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
