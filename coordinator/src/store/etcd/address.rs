//! Where an etcd is: `http://h1:2379,http://h2:2379`, with an optional path as a namespace for keys.

use std::{fmt, str::FromStr};

use crate::store::StoreError;

/// The members of an etcd cluster, and the namespace that all keys are under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdAddress {
    urls: Vec<String>,
    namespace: String,
}

impl EtcdAddress {
    /// The members' client URLs, without a path.
    #[must_use]
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// What every key begins with; empty, or such as `/team-a`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl FromStr for EtcdAddress {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let refuse = |url: &str, why: &str| {
            StoreError::Invalid(format!(
                "read etcd address {url:?}: {why}; write http://HOST:2379 or http://HOST:2379/NAMESPACE"
            ))
        };
        let mut urls = Vec::new();
        let mut namespace: Option<&str> = None;
        for url in text.split(',').map(str::trim) {
            let Some((scheme, rest)) = url.split_once("://") else {
                return Err(refuse(url, "it has no scheme"));
            };
            if scheme != "http" && scheme != "https" {
                return Err(refuse(url, "its scheme must be http or https"));
            }
            let (authority, path) = match rest.find('/') {
                Some(slash) => (&rest[..slash], rest[slash..].trim_end_matches('/')),
                None => (rest, ""),
            };
            let port = authority.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
            if !matches!(port, Some((host, Ok(_))) if !host.is_empty()) {
                return Err(refuse(url, "it must name a host and a port"));
            }
            if path.contains(['?', '#']) || authority.contains(['?', '#', '@']) {
                return Err(refuse(url, "it must be a host, a port and at most a path"));
            }
            if *namespace.get_or_insert(path) != path {
                return Err(refuse(url, "all members must have the same path"));
            }
            urls.push(format!("{scheme}://{authority}"));
        }
        Ok(Self { urls, namespace: namespace.unwrap_or_default().to_owned() })
    }
}

/// Written as it is read.
impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, url) in self.urls.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{url}{}", self.namespace)?;
        }
        Ok(())
    }
}
