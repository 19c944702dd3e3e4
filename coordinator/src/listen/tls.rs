//! The way in from other machines: one TLS port for gRPC and HTTP, certificates both ways.
//!
//! A certificate of another CA does not get through the handshake. Without one, only `Join` answers.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::Response,
};
use faultbed_common::trust::{Identity, Who};
use faultbed_trust::{
    certificate::{self, Facts},
    provider,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{refuse, serve_one};
use crate::{
    editor::unix_ms,
    mirror::MirrorHandle,
    pki::{Pki, record::Standing},
    service::access::{Caller, Denied, Parting, is_session, may},
};

/// Connections from other machines served at once. Those of this machine have places of their own.
const CONNECTIONS_MAX: usize = 4096;

/// How long a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// How long a connection without a certificate may last: enough to join.
const STRANGER_MAX: Duration = Duration::from_secs(30);

/// How often it is looked whether the certificate that a connection began with still counts.
const STANDING_LOOK: Duration = Duration::from_secs(1);

/// How long a host that was removed keeps its connection, on which it is told so.
const PARTING_MAX: Duration = Duration::from_secs(5);

/// The shortest wait before it is tried again to end a CA whose time is over.
const OVERDUE_MIN: Duration = Duration::from_secs(1);

/// How often it is looked whether the own certificate needs to be renewed, at most.
const RENEW_LOOK_MAX: Duration = Duration::from_secs(3600);

/// The door for other machines.
#[derive(Debug)]
pub struct TlsDoor {
    listener: TcpListener,
    pki: Arc<Pki>,
    config: Mutex<Arc<ServerConfig>>,
}

impl TlsDoor {
    /// A door with a new certificate.
    ///
    /// # Errors
    /// The lab's CA is damaged.
    pub fn new(listener: TcpListener, pki: Arc<Pki>) -> anyhow::Result<Self> {
        let config = Mutex::new(config_of(&pki)?);
        Ok(Self { listener, pki, config })
    }

    /// Where it is.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }

    /// Serves `router` until `stop`.
    pub async fn serve(self: Arc<Self>, router: Router, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "accept connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (door, router, stop) = (Arc::clone(&self), router.clone(), stop.clone());
            tokio::spawn(async move {
                let _place = place;
                let _ = stream.set_nodelay(true);
                door.one(router, (stream, peer), stop).await;
            });
        }
    }

    async fn one(
        self: Arc<Self>,
        router: Router,
        (stream, peer): (tokio::net::TcpStream, SocketAddr),
        stop: CancellationToken,
    ) {
        let shaken = tokio::time::timeout(HANDSHAKE_MAX, self.acceptor().accept(stream)).await;
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return info!(%peer, %error, "refuse connection"),
            Err(_) => return info!(%peer, "refuse connection: no handshake in time"),
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let shown = match shown.map(|der| Facts::of_der(der)) {
            None => None,
            Some(Ok(facts)) => Some(Arc::new(facts)),
            Some(Err(error)) => return warn!(%peer, %error, "refuse certificate"),
        };
        let (pki, facts) = (Arc::clone(&self.pki), shown.clone());
        let router = router.layer(middleware::from_fn(move |request, next| {
            check(Arc::clone(&pki), facts.clone(), request, next)
        }));
        let served = serve_one(router, stream, stop);
        let Some(shown) = shown else {
            if tokio::time::timeout(STRANGER_MAX, served).await.is_err() {
                debug!(%peer, "end connection without a certificate");
            }
            return;
        };
        tokio::select! {
            () = served => {}
            () = self.counts_no_more(&shown) => {
                info!(%peer, identity = %shown.identity, "end connection: its certificate counts no more");
            }
        }
    }

    /// Returns soon after the certificate of a connection was withdrawn, or ended without having been
    /// renewed: no request would tell on a stream that is open for ever.
    async fn counts_no_more(&self, shown: &Facts) {
        loop {
            tokio::time::sleep(STANDING_LOOK).await;
            match self.pki.standing(shown) {
                Standing::Member { until_unix_s } if unix_ms() / 1000 < until_unix_s => {}
                Standing::Member { .. } | Standing::Stranger | Standing::Replaced => break,
            }
        }
        if self.pki.removed(&shown.identity).is_some() {
            tokio::time::sleep(PARTING_MAX).await;
        }
    }

    /// Renews the own certificate long before it ends, and whenever the lab's CA changes, and ends a
    /// CA that was replaced when its time is over, until `stop`. Connections that are there go on.
    pub async fn renew(self: Arc<Self>, mirror: Arc<MirrorHandle>, stop: CancellationToken) {
        let mut changes = mirror.lab_changes();
        let look = (self.pki.lifetime / 3).min(RENEW_LOOK_MAX);
        let mut renewed = tokio::time::Instant::now();
        let mut held = self.pki.authority().ok();
        loop {
            let overdue =
                self.pki.overlap_left().map(|left| left.clamp(OVERDUE_MIN, RENEW_LOOK_MAX));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(overdue.unwrap_or_default()), if overdue.is_some() => {
                    if let Err(error) = self.pki.end_overdue().await {
                        warn!(%error, "end the CA that was replaced");
                    }
                    continue;
                }
                () = tokio::time::sleep_until(renewed + look) => {}
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = self.pki.authority().ok();
                    if now == held {
                        continue;
                    }
                    held = now;
                }
            }
            renewed = tokio::time::Instant::now();
            match config_of(&self.pki) {
                Ok(config) => {
                    *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
                    debug!("own certificate renewed");
                }
                Err(error) => warn!(error = format!("{error:#}"), "renew own certificate"),
            }
        }
    }
}

/// What the door shows, and whom it believes.
fn config_of(pki: &Pki) -> anyhow::Result<Arc<ServerConfig>> {
    let authority = pki.authority()?;
    let (key, own) = pki.serve()?;
    let mut roots = RootCertStore::empty();
    for ca in certificate::all(&authority.bundle())? {
        roots.add(ca).context("read CA")?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .context("believe the lab's CA")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("read own key")?;
    // The CAs go with the certificate, so that who joins can compare them with the token.
    let chain = certificate::all(&format!("{own}{}", authority.shown()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("choose TLS versions")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .context("use own certificate")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // No session is resumed: each connection shows its certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

async fn check(
    pki: Arc<Pki>,
    shown: Option<Arc<Facts>>,
    mut request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    if let Err(why) = check_origin(headers, request.uri().authority().map(|a| a.as_str())) {
        return refuse(headers, StatusCode::FORBIDDEN, why);
    }
    let mut parting = None;
    if let Some(shown) = &shown
        && let Some(why) = refusal(pki.standing(shown), &shown.identity)
    {
        parting = pki.removed(&shown.identity).map(Parting);
        // Who was removed must hear so, or it would keep its nodes and try for ever.
        if parting.is_none() || !is_session(request.uri().path()) {
            return refuse(headers, StatusCode::FORBIDDEN, why);
        }
    }
    let caller = shown.map(|shown| Caller::certified(shown.identity.clone()));
    match may(caller.as_ref(), request.uri().path()) {
        Ok(()) => {}
        Err(Denied::NoCertificate) => {
            let why = "show a certificate of this lab: `faultbed-agent join TOKEN` or \
                       `faultbed context add TOKEN` gets one";
            return refuse(headers, StatusCode::UNAUTHORIZED, why.to_owned());
        }
        Err(Denied::NotEnough(why)) => return refuse(headers, StatusCode::FORBIDDEN, why),
    }
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    if let Some(parting) = parting {
        request.extensions_mut().insert(parting);
    }
    next.run(request).await
}

/// Why somebody is not let in who shows a certificate of the lab's CA.
fn refusal(standing: Standing, identity: &Identity) -> Option<String> {
    let way_in = way_in(&identity.who);
    match standing {
        Standing::Member { .. } => None,
        Standing::Stranger => Some(format!("{identity} is no member of this lab{way_in}")),
        Standing::Replaced => Some(format!(
            "{identity} has come in anew since, with another key; this certificate counts no \
             more{way_in}"
        )),
    }
}

/// How somebody who is no member comes in again.
fn way_in(who: &Who) -> String {
    match who {
        Who::User(name, role) => {
            format!("; an admin lets it in with `faultbed user token {name} --role {role}`")
        }
        Who::Host(name) => format!("; `faultbed host token --name {name}` lets it in"),
        Who::Coordinator(_) => String::new(),
    }
}

/// A page of another site can make a browser send requests with the user's certificate.
fn check_origin(headers: &HeaderMap, authority: Option<&str>) -> Result<(), String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let host = text(header::HOST).or(authority);
    let own = host.map(|host| format!("https://{host}"));
    if own.is_some_and(|own| origin.as_bytes() == own.as_bytes()) {
        return Ok(());
    }
    Err("pages of other sites may not call this lab".to_owned())
}
