//! Where coordinators are, and how they are reached: any of them will do.

use std::{path::PathBuf, sync::Arc, time::Duration};

use faultbed_trust::TrustError;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::identity::HostIdentity;

/// Connecting takes no longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A coordinator that does not answer a ping is gone.
const PING_EVERY: Duration = Duration::from_secs(5);

/// Where a coordinator is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Coordinator {
    /// On this machine.
    Unix(PathBuf),
    /// At an address, for tests.
    Http(String),
    /// At a name or an address, with certificates both ways: `https://HOST:PORT`.
    Https(String),
}

impl std::str::FromStr for Coordinator {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None if text.starts_with("http://") => Ok(Self::Http(text.to_owned())),
            None if text.starts_with("https://") => Ok(Self::Https(text.to_owned())),
            None => Err(format!(
                "{text:?} is no coordinator: write https://HOST:PORT, unix:PATH or http://ADDRESS"
            )),
        }
    }
}

/// Written as it is read.
impl std::fmt::Display for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(url) | Self::Https(url) => f.write_str(url),
        }
    }
}

impl serde::Serialize for Coordinator {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Coordinator {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The coordinators of the lab, and what is shown to them.
#[derive(Debug, Clone)]
pub struct Known {
    /// Those of the settings.
    pub coordinators: Vec<Coordinator>,
    /// What is shown to those on other machines.
    pub identity: Option<Arc<HostIdentity>>,
}

/// Why a coordinator cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers, or not as a coordinator would.
    #[error("connect to the coordinator: {}", faultbed_trust::dial::root_cause(.0))]
    Transport(#[from] tonic::transport::Error),
    /// One of us is not who the other trusts.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It is on another machine, and we never joined.
    #[error("connect to {0}: there is no certificate to show; join the lab first")]
    NoIdentity(String),
}

impl Known {
    /// The coordinators to try, with those that renewals told of; never none.
    #[must_use]
    pub fn all(&self) -> Vec<Coordinator> {
        let known = match &self.identity {
            Some(identity) => identity.coordinators(&self.coordinators),
            None => self.coordinators.clone(),
        };
        if known.is_empty() { vec![Coordinator::Unix(PathBuf::new())] } else { known }
    }

    /// A connection to one of them.
    ///
    /// # Errors
    /// It cannot be reached, or does not trust us, or we not it.
    pub async fn connect(&self, coordinator: &Coordinator) -> Result<Channel, ConnectError> {
        match coordinator {
            Coordinator::Http(url) => {
                Ok(settled(Endpoint::from_shared(url.clone())?).connect().await?)
            }
            Coordinator::Https(url) => match &self.identity {
                Some(identity) => Ok(identity.dialer.connect(url, settled).await?),
                None => Err(ConnectError::NoIdentity(url.clone())),
            },
            Coordinator::Unix(path) => {
                let path = path.clone();
                let connector = tower::service_fn(move |_| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                // The name is never looked up: the connector knows where to go.
                let endpoint = settled(Endpoint::from_static("http://coordinator"));
                Ok(endpoint.connect_with_connector(connector).await?)
            }
        }
    }
}

fn settled(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .keep_alive_while_idle(true)
}
