//! The agent's side of the proxy process: finds it, starts it, tells it, ends it.

use std::path::PathBuf;

use faultbed_common::proxy_spec::ProxyFile;

use crate::reconcile::hands::{ProxyApplied, ProxySeen};

/// The proxy process of this host.
#[derive(Debug)]
pub(super) struct Proxy {
    dir: PathBuf,
    socket: PathBuf,
}

impl Proxy {
    pub(super) fn new(dir: PathBuf, socket: PathBuf) -> Self {
        Self { dir, socket }
    }

    pub(super) fn find(&self) -> Option<u32> {
        None
    }

    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        std::future::ready(())
    }

    pub(super) fn apply(&self, _file: &ProxyFile) -> Result<ProxyApplied, String> {
        Err(format!("no proxy {} {}", self.dir.display(), self.socket.display()))
    }

    pub(super) fn ask(&self) -> Result<ProxySeen, String> {
        Err("no proxy".to_owned())
    }

    pub(super) fn stop(&self) -> Result<(), String> {
        Ok(())
    }
}
