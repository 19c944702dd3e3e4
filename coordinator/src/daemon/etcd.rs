//! Flags that open an etcd which does not let everybody in.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::store::{EtcdAccess, EtcdUser};

/// The environment variable that may hold the password of `--etcd-user`.
const PASSWORD: &str = "FAULTBED_ETCD_PASSWORD";

/// How etcd is shown who this coordinator is.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct EtcdArgs {
    /// The CA that etcd's certificate is of, in PEM; https needs it.
    #[arg(long, value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// Our certificate for etcd, in PEM.
    #[arg(long, value_name = "FILE", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// An etcd user; the password is in --etcd-password-file or FAULTBED_ETCD_PASSWORD.
    #[arg(long, value_name = "NAME")]
    pub etcd_user: Option<String>,
    /// The file with the password of --etcd-user.
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    pub etcd_password_file: Option<PathBuf>,
}

impl EtcdArgs {
    /// What they open.
    ///
    /// # Errors
    /// There is a user and no password.
    pub fn access(&self) -> anyhow::Result<EtcdAccess> {
        let user = match &self.etcd_user {
            None => None,
            Some(name) => {
                let from = match &self.etcd_password_file {
                    Some(path) => format!("--etcd-password-file {}", path.display()),
                    None => PASSWORD.to_owned(),
                };
                Some(EtcdUser { name: name.clone(), password: self.password()?, from })
            }
        };
        Ok(EtcdAccess {
            ca: self.etcd_ca.clone(),
            cert: self.etcd_cert.clone(),
            key: self.etcd_key.clone(),
            user,
        })
    }

    fn password(&self) -> anyhow::Result<String> {
        let found = match &self.etcd_password_file {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .with_context(|| format!("read --etcd-password-file {}", path.display()))?,
            ),
            None => std::env::var(PASSWORD).ok(),
        };
        match found {
            Some(password) => Ok(password.trim_end_matches('\n').to_owned()),
            None => bail!(
                "--etcd-user needs a password: give --etcd-password-file FILE, or set {PASSWORD}"
            ),
        }
    }
}
