//! One's key, certificate and CAs, in memory and in a directory that nobody else may enter.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    TrustError,
    certificate::{self, Facts},
};

/// The private key.
pub const KEY: &str = "key.pem";
/// The certificate.
pub const CERTIFICATE: &str = "cert.pem";
/// The CAs to trust.
pub const CA: &str = "ca.pem";

/// What one shows, and whom one believes.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The private key, in PEM.
    pub key: String,
    /// The certificate, in PEM.
    pub certificate: String,
    /// The CAs to trust, in PEM.
    pub ca: String,
}

/// Without the key.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads them from their directory.
    ///
    /// # Errors
    /// A file is missing or is not what it should be.
    pub fn read(dir: &Path) -> Result<Self, TrustError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| TrustError::Disk {
                verb: "read",
                path,
                source,
            })
        };
        let read = Self { key: read(KEY)?, certificate: read(CERTIFICATE)?, ca: read(CA)? };
        let of = |name: &str, error: TrustError| {
            TrustError::unreadable(dir.join(name).display().to_string(), error)
        };
        read.facts().map_err(|error| of(CERTIFICATE, error))?;
        certificate::all(&read.ca).map_err(|error| of(CA, error))?;
        Ok(read)
    }

    /// Writes them, each file whole or not at all. The key goes first: a certificate without its key
    /// would be of no use.
    ///
    /// # Errors
    /// The disk does not take them.
    pub fn write(&self, dir: &Path) -> Result<(), TrustError> {
        let disk =
            |path: &Path, source| TrustError::Disk { verb: "write", path: path.to_owned(), source };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| disk(dir, error))?;
        for (name, text) in [(KEY, &self.key), (CA, &self.ca), (CERTIFICATE, &self.certificate)] {
            let path = dir.join(name);
            write_private(&path, text).map_err(|error| disk(&path, error))?;
        }
        Ok(())
    }

    /// What the certificate says.
    ///
    /// # Errors
    /// It is none of a lab.
    pub fn facts(&self) -> Result<Facts, TrustError> {
        Facts::of_pem(&self.certificate)
    }
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// The disk does not take it.
pub fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let fresh: PathBuf = path.with_extension("new");
    if let Err(error) = fs::remove_file(&fresh)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}
