//! The ways in: a unix socket (mode 0600, peer credentials), a loopback port (token, Host, Origin),
//! and [`tls`] for other machines.
//!
//! gRPC and HTTP share all. Whoever gets past the checks here has a [`Caller`]; nobody else reaches
//! a service.

pub mod tls;

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use anyhow::Context;
use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    runtime::{self, Runtime},
    service::access::Caller,
};

/// Connections served at once, over both ways in.
const CONNECTIONS_MAX: usize = 1024;

/// How a connection came.
#[derive(Debug, Clone)]
enum Way {
    /// Over the unix socket, from a process of this user id.
    Unix { uid: u32 },
    /// Over the loopback port.
    Tcp,
}

/// Who may come in.
#[derive(Debug, Clone)]
pub struct Door {
    /// The user the coordinator runs as; root comes in too.
    pub uid: u32,
    /// What a caller of the loopback port must carry.
    pub token: Arc<str>,
    /// The loopback port's own address, which `Host` and `Origin` must name.
    pub address: SocketAddr,
}

/// Where callers come in.
#[derive(Debug)]
pub struct Doors {
    /// The socket in the runtime directory.
    pub unix: UnixListener,
    /// The loopback port.
    pub tcp: TcpListener,
    /// Puts the socket back where it was cleared away.
    pub runtime: Arc<Runtime>,
}

/// Serves `router` on both until `stop`.
pub async fn serve(router: Router, door: Door, mut doors: Doors, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut look = tokio::time::interval(runtime::LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            _ = look.tick() => {
                if let Some(unix) = doors.runtime.put_back() {
                    doors.unix = unix;
                }
                continue;
            }
            unix = doors.unix.accept() => unix.and_then(|(stream, _)| {
                let uid = stream.peer_cred()?.uid();
                Ok((Way::Unix { uid }, Stream::Unix(stream)))
            }),
            tcp = doors.tcp.accept() => tcp.map(|(stream, _)| (Way::Tcp, Stream::Tcp(stream))),
        };
        let (way, stream) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: give those that are open time to end.
                warn!(%error, "accept connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let (router, door, stop) = (router.clone(), door.clone(), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            let router = router.layer(middleware::from_fn(move |request, next| {
                check(door.clone(), way.clone(), request, next)
            }));
            match stream {
                Stream::Unix(stream) => serve_one(router, stream, stop).await,
                Stream::Tcp(stream) => {
                    let _ = stream.set_nodelay(true);
                    serve_one(router, stream, stop).await;
                }
            }
        });
    }
}

enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

async fn serve_one<S>(router: Router, stream: S, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    // Streams to people and agents never end by themselves, so a stop cuts them.
    tokio::select! {
        served = connection => if let Err(error) = served { debug!(%error, "connection ended") },
        () = stop.cancelled() => {}
    }
}

async fn check(door: Door, way: Way, mut request: Request, next: Next) -> Response {
    let checked = match way {
        Way::Unix { uid } if uid == door.uid || uid == 0 => Ok(Caller::local(user_name(uid))),
        Way::Unix { uid } => {
            Err((StatusCode::FORBIDDEN, format!("user {uid} has no part in this lab")))
        }
        Way::Tcp => check_tcp(&door, request.headers(), request.uri().authority())
            .map_err(|(status, why)| (status, why.to_owned())),
    };
    let caller = match checked {
        Ok(caller) => caller,
        Err((status, why)) => return refuse(request.headers(), status, why),
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// A page of another site can make a browser send requests here, but not with the token, nor with
/// our own name as `Host` (DNS rebinding) or `Origin`.
fn check_tcp(
    door: &Door,
    headers: &HeaderMap,
    authority: Option<&axum::http::uri::Authority>,
) -> Result<Caller, (StatusCode, &'static str)> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let own = [door.address.to_string(), format!("localhost:{}", door.address.port())];
    let host = text(header::HOST).or(authority.map(axum::http::uri::Authority::as_str));
    if !host.is_some_and(|host| own.iter().any(|name| name == host)) {
        return Err((StatusCode::FORBIDDEN, "the Host header names another server"));
    }
    if let Some(origin) = text(header::ORIGIN)
        && !own.iter().any(|name| origin == format!("http://{name}"))
    {
        return Err((StatusCode::FORBIDDEN, "pages of other sites may not call this lab"));
    }
    let bearer = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    if !bearer.is_some_and(|token| same(token.as_bytes(), door.token.as_bytes())) {
        let why = "send the token of the lab's api.token file as `Authorization: Bearer TOKEN`";
        return Err((StatusCode::UNAUTHORIZED, why));
    }
    Ok(Caller::local(user_name(door.uid)))
}

/// Compares without telling by its time where the difference is.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |all, (l, r)| all | (l ^ r)) == 0
}

/// Each caller is refused in its own protocol, so that the reason reaches a person.
fn refuse(headers: &HeaderMap, status: StatusCode, why: String) -> Response {
    let content = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    if content.is_some_and(|content| content.starts_with(b"application/grpc")) {
        return tonic::Status::permission_denied(why).into_http();
    }
    (status, format!("{why}\n")).into_response()
}

/// A user's name from /etc/passwd, or its number.
#[must_use]
pub fn user_name(uid: u32) -> String {
    std::fs::read_to_string("/etc/passwd")
        .ok()
        .and_then(|text| {
            text.lines().find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
            })
        })
        .unwrap_or_else(|| format!("uid-{uid}"))
}

/// Binds the unix socket, in place of one that nobody listens on any more.
///
/// # Errors
/// Another coordinator listens there, or the directory cannot be written.
pub fn bind_unix(path: &Path) -> anyhow::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::bail!("another coordinator listens on {}", path.display());
    }
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("remove stale {}", path.display()));
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("close {} to others", path.display()))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door() -> Door {
        Door { uid: 7, token: "secret".into(), address: "127.0.0.1:4000".parse().unwrap() }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn a_missing_token_a_foreign_page_and_a_foreign_name_are_refused() {
        let good = [("host", "127.0.0.1:4000"), ("authorization", "Bearer secret")];
        assert!(check_tcp(&door(), &headers(&good), None).is_ok());
        let cases: [(&[(&'static str, &str)], StatusCode); 4] = [
            (&[("host", "127.0.0.1:4000")], StatusCode::UNAUTHORIZED),
            (
                &[("host", "127.0.0.1:4000"), ("authorization", "Bearer secreT")],
                StatusCode::UNAUTHORIZED,
            ),
            (
                &[("host", "evil.example"), ("authorization", "Bearer secret")],
                StatusCode::FORBIDDEN,
            ),
            (&[good[0], good[1], ("origin", "http://evil.example")], StatusCode::FORBIDDEN),
        ];
        for (pairs, status) in cases {
            assert_eq!(check_tcp(&door(), &headers(pairs), None).unwrap_err().0, status);
        }
    }
}
