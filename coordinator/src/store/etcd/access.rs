//! What opens an etcd that does not let everybody in: its CA, a client certificate, a user.

use std::path::{Path, PathBuf};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use super::{
    EtcdAddress,
    error::{BROKE, WANTS_CERTIFICATE},
};
use crate::store::StoreError;

/// What etcd says to a user it does not know, or with another password.
const WRONG_PASSWORD: &str = "invalid user ID or password";

/// What etcd says where it has users and nobody said who we are.
const NO_USER: &str = "user name is empty";

/// Without the password.
impl std::fmt::Debug for EtcdUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How a coordinator shows an etcd who it is. Agents and the command line never have any of this.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EtcdAccess {
    /// The CA that etcd's certificate is of, a file in PEM.
    pub ca: Option<PathBuf>,
    /// Our certificate, a file in PEM.
    pub cert: Option<PathBuf>,
    /// Its private key, a file in PEM.
    pub key: Option<PathBuf>,
    /// Who we are to etcd.
    pub user: Option<EtcdUser>,
}

/// A user of etcd.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdUser {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
    /// Where it was read, for messages.
    pub from: String,
}

/// Without the password.
impl std::fmt::Debug for EtcdAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdAccess")
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("user", &self.user)
            .finish()
    }
}

fn refuse(why: &str) -> StoreError {
    StoreError::Invalid(format!("open etcd: {why}"))
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|error| refuse(&format!("read {flag} {}: {error}", path.display())))
}

impl EtcdAccess {
    /// Options of a connection with all that is given.
    ///
    /// # Errors
    /// A file cannot be read, or flags do not fit each other or the address.
    pub(super) fn apply(
        &self,
        address: &EtcdAddress,
        mut options: ConnectOptions,
    ) -> Result<ConnectOptions, StoreError> {
        let is_tls = address.urls().iter().any(|url| url.starts_with("https://"));
        if is_tls && !address.urls().iter().all(|url| url.starts_with("https://")) {
            return Err(refuse("some members are https and some http; write all alike"));
        }
        if is_tls {
            let Some(ca) = &self.ca else {
                return Err(refuse("https needs --etcd-ca FILE, the CA of etcd's certificate"));
            };
            let mut tls =
                TlsOptions::new().ca_certificate(Certificate::from_pem(read("--etcd-ca", ca)?));
            match (&self.cert, &self.key) {
                (Some(cert), Some(key)) => {
                    let (cert, key) = (read("--etcd-cert", cert)?, read("--etcd-key", key)?);
                    tls = tls.identity(Identity::from_pem(cert, key));
                }
                (None, None) => {}
                (Some(_), None) => return Err(refuse("--etcd-cert needs --etcd-key FILE")),
                (None, Some(_)) => return Err(refuse("--etcd-key needs --etcd-cert FILE")),
            }
            options = options.with_tls(tls);
        } else if self.ca.is_some() || self.cert.is_some() || self.key.is_some() {
            return Err(refuse("--etcd-ca, --etcd-cert and --etcd-key are for https addresses"));
        }
        if let Some(EtcdUser { name, password, .. }) = &self.user {
            // Tokens end with the server that gave them.
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        Ok(options)
    }

    /// An error of the first call, with the file or value that is to be looked at.
    pub(super) fn explain(&self, error: StoreError) -> StoreError {
        let with = |said: String| {
            if let Some(user) = self.user.as_ref().filter(|_| said.contains(WRONG_PASSWORD)) {
                let EtcdUser { name, from, .. } = user;
                return format!(
                    "{said}: user {name} with the password of {from}; set it right there, or with \
                     `etcdctl user passwd {name}`"
                );
            }
            if said.contains(NO_USER) {
                return format!(
                    "{said}: it wants a user; give --etcd-user NAME and --etcd-password-file FILE"
                );
            }
            // Whether its refusal of a client without one arrives before its reset is a race.
            if self.ca.is_some() && self.cert.is_none() && said.ends_with(BROKE) {
                return format!("{said}; maybe {WANTS_CERTIFICATE}");
            }
            match &self.ca {
                Some(ca) => said.replace("--etcd-ca", &format!("--etcd-ca {}", ca.display())),
                None => said,
            }
        };
        match error {
            StoreError::Unavailable(said) => StoreError::Unavailable(with(said)),
            StoreError::Invalid(said) => StoreError::Invalid(with(said)),
            other @ (StoreError::Compacted(_) | StoreError::NoLease) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use etcd_client::Error;
    use tonic::Status;

    use super::*;
    use crate::store::etcd::error::translate;

    #[test]
    fn who_showed_no_certificate_and_is_hung_up_on_is_told_of_it() {
        let address: EtcdAddress = "https://127.0.0.1:2379".parse().unwrap();
        for (cert, says) in [(None, true), (Some("client.pem".into()), false)] {
            let access = EtcdAccess { ca: Some("ca.pem".into()), cert, ..EtcdAccess::default() };
            for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe] {
                let broke = Status::from_error(Box::new(io::Error::from(kind)));
                let told = access.explain(translate(&address, &Error::GRpcStatus(broke)));
                assert_eq!(told.to_string().contains("--etcd-cert"), says, "{told}");
            }
        }
    }
}
