//! The runtime directory, by which callers find a coordinator: socket, address and token. It is put
//! back where somebody cleared it away, as the end of a login does while a lab goes on.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use tokio::net::UnixListener;

use crate::listen;

/// How often it is looked whether everything is still there.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

const SOCKET: &str = "api.sock";
const TOKEN: &str = "api.token";
const ADDRESS: &str = "api.addr";

/// What a running coordinator keeps in its runtime directory.
#[derive(Debug)]
pub struct Runtime {
    dir: PathBuf,
    token: String,
    address: SocketAddr,
}

impl Runtime {
    /// Clears what an earlier coordinator left, so that whoever reads a file finds a living one,
    /// and opens the socket. Callers queue there until they are served.
    ///
    /// # Errors
    /// The directory cannot be written, or another coordinator listens there.
    pub fn open(
        dir: &Path,
        token: &str,
        address: SocketAddr,
    ) -> anyhow::Result<(Self, UnixListener)> {
        make_private_dir(dir)?;
        for name in [ADDRESS, TOKEN] {
            let _ = fs::remove_file(dir.join(name));
        }
        let runtime = Self { dir: dir.to_owned(), token: token.to_owned(), address };
        let listener = runtime.put()?;
        Ok((runtime, listener))
    }

    fn put(&self) -> anyhow::Result<UnixListener> {
        make_private_dir(&self.dir)?;
        let listener = listen::bind_unix(&self.dir.join(SOCKET))?;
        write_private(&self.dir.join(TOKEN), &self.token)?;
        write_private(&self.dir.join(ADDRESS), &self.address.to_string())?;
        Ok(listener)
    }

    /// A new socket, where the old one or a file beside it is gone.
    pub fn put_back(&self) -> Option<UnixListener> {
        if [SOCKET, TOKEN, ADDRESS].iter().all(|name| self.dir.join(name).exists()) {
            return None;
        }
        tracing::warn!(dir = %self.dir.display(), "the runtime directory was cleared; put it back");
        // Our own socket, if it is still there, answers a look whether another one listens.
        let _ = fs::remove_file(self.dir.join(SOCKET));
        match self.put() {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "put the runtime directory back");
                None
            }
        }
    }

    /// Removes everything again.
    pub fn clear(&self) {
        for name in [SOCKET, ADDRESS, TOKEN] {
            let _ = fs::remove_file(self.dir.join(name));
        }
    }
}

/// Makes a directory that nobody else may enter.
///
/// # Errors
/// It cannot be made.
pub fn make_private_dir(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("make directory {}", path.display()))
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| writeln!(file, "{text}"))
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_cleared_away_is_put_back_and_what_is_there_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("run/lab");
        let address = "127.0.0.1:4000".parse().unwrap();
        let (runtime, _listener) = Runtime::open(&dir, "secret", address).unwrap();
        assert!(runtime.put_back().is_none());
        fs::remove_dir_all(home.path().join("run")).unwrap();
        let _again = runtime.put_back().unwrap();
        assert_eq!(fs::read_to_string(dir.join("api.token")).unwrap(), "secret\n");
        assert!(std::os::unix::net::UnixStream::connect(dir.join("api.sock")).is_ok());
        fs::remove_file(dir.join("api.addr")).unwrap();
        let _again = runtime.put_back().unwrap();
        assert_eq!(fs::read_to_string(dir.join("api.addr")).unwrap(), "127.0.0.1:4000\n");
    }
}
