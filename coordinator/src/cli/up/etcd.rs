//! What opens an etcd of the user's: kept with the lab, given to its coordinator, and looked into by nobody else.

use std::{ffi::OsString, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::{failure::Failure, paths};

/// The flags of the same names of `faultbed-coordinator`.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct EtcdAccess {
    /// The CA that etcd's certificate is of, in PEM; https needs it
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd_ca: Option<PathBuf>,
    /// Your certificate for etcd, in PEM
    #[arg(long, value_name = "FILE", requires = "etcd_key", value_hint = clap::ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "etcd_cert", value_hint = clap::ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd_key: Option<PathBuf>,
    /// An etcd user; the password is in --etcd-password-file or FAULTBED_ETCD_PASSWORD
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd_user: Option<String>,
    /// The file with the password of --etcd-user
    #[arg(long, value_name = "FILE", requires = "etcd_user", value_hint = clap::ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd_password_file: Option<PathBuf>,
}

impl EtcdAccess {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The same with paths that mean the same from everywhere.
    ///
    /// # Errors
    /// There is no current directory.
    pub fn absolute(&self) -> Result<Self, Failure> {
        let base = paths::current_dir()?;
        let absolute = |path: &Option<PathBuf>| {
            path.as_ref().map(|path| paths::absolute(&path.to_string_lossy(), &base))
        };
        Ok(Self {
            etcd_ca: absolute(&self.etcd_ca),
            etcd_cert: absolute(&self.etcd_cert),
            etcd_key: absolute(&self.etcd_key),
            etcd_user: self.etcd_user.clone(),
            etcd_password_file: absolute(&self.etcd_password_file),
        })
    }

    /// The flags, for a coordinator.
    #[must_use]
    pub fn flags(&self) -> Vec<OsString> {
        let files = [
            ("--etcd-ca", &self.etcd_ca),
            ("--etcd-cert", &self.etcd_cert),
            ("--etcd-key", &self.etcd_key),
            ("--etcd-password-file", &self.etcd_password_file),
        ];
        let files = files.into_iter().filter_map(|(flag, path)| Some((flag, path.as_ref()?)));
        let files = files.map(|(flag, path)| (flag, OsString::from(path)));
        let user = self.etcd_user.as_ref().map(|user| ("--etcd-user", OsString::from(user)));
        files.chain(user).flat_map(|(flag, value)| [OsString::from(flag), value]).collect()
    }
}

/// The refusal where a lab keeps its state elsewhere.
#[must_use]
pub fn without_etcd() -> Failure {
    Failure::refused(
        "--etcd-… open the etcd of --store etcd=URL,…, and this lab has an embedded store",
    )
    .next("faultbed up --store etcd=https://HOST:PORT --etcd-ca FILE …")
}
