//! The agent's way to a proxy process: one request, one reply, bounded in time and size.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::proxy::wire::{Applied, Op, ProxyState, Request, VERSION};

/// A proxy that takes longer is not well.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest reply that is read.
const REPLY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why a proxy did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It does not run, or does not answer.
    #[error("reach proxy")]
    Unreachable(#[source] io::Error),
    /// It answered something else than this release understands.
    #[error("understand proxy")]
    Foreign(#[source] serde_json::Error),
    /// It could not.
    #[error("{0}")]
    Refused(String),
}

/// Speaks to one proxy process. Holds no connection between requests.
#[derive(Debug, Clone)]
pub struct ProxyClient {
    socket: PathBuf,
}

impl ProxyClient {
    /// A client of the proxy whose control socket is `socket`. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Has the proxy read its file again; returns when it is in force on every connection.
    ///
    /// # Errors
    /// Where the proxy cannot be reached in 5 s, or the file is not in force.
    pub fn apply(&self) -> Result<Applied, ProxyError> {
        self.ask(Op::Apply)
    }

    /// What the proxy is and what faults did.
    ///
    /// # Errors
    /// Where the proxy cannot be reached in 5 s.
    pub fn report(&self) -> Result<ProxyState, ProxyError> {
        self.ask(Op::Report)
    }

    /// Has the proxy close everything and exit.
    ///
    /// # Errors
    /// Where the proxy cannot be reached in 5 s.
    pub fn stop(&self) -> Result<(), ProxyError> {
        #[derive(Deserialize)]
        struct Nothing {}
        self.ask::<Nothing>(Op::Stop).map(|Nothing {}| ())
    }

    fn ask<T: DeserializeOwned>(&self, op: Op) -> Result<T, ProxyError> {
        let reply = self.exchange(op).map_err(ProxyError::Unreachable)?;
        let refused: Refused = serde_json::from_str(&reply).map_err(ProxyError::Foreign)?;
        if let Refused { ok: false, error } = refused {
            return Err(ProxyError::Refused(error));
        }
        serde_json::from_str(&reply).map_err(ProxyError::Foreign)
    }

    fn exchange(&self, op: Op) -> io::Result<String> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut request = serde_json::to_vec(&Request { v: VERSION, op, formats: None })?;
        request.push(b'\n');
        stream.write_all(&request)?;
        let mut reply = String::new();
        BufReader::new(stream.take(REPLY_BYTES_MAX)).read_line(&mut reply)?;
        if reply.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(reply)
    }
}

#[derive(Deserialize)]
struct Refused {
    ok: bool,
    #[serde(default)]
    error: String,
}
