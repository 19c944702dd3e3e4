//! What an agent goes by: from its command line, or from the `agent.toml` that `join` wrote.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use faultbed_common::{
    name::{HostName, LabName},
    session::IDENTITY_PORT,
};
use serde::{Deserialize, Serialize};

use crate::{allow::Allow, args::AgentArgs, session::Coordinator};

/// The file that `join` writes into the agent's directory.
pub const FILE: &str = "agent.toml";

/// The directory of key, certificate and CAs, below the agent's.
pub const IDENTITY: &str = "identity";

/// Everything an agent goes by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The lab it serves.
    pub lab: LabName,
    /// The host it is the agent of.
    pub host: HostName,
    /// Where other hosts reach this one.
    pub address: IpAddr,
    /// Where it keeps everything of its nodes.
    pub dir: PathBuf,
    /// Where its sockets are; a short path.
    pub runtime: PathBuf,
    /// The coordinators, tried in this order.
    pub coordinators: Vec<Coordinator>,
    /// Labels of the host, until the lab gives it others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Where its proxy answers other hosts who dialled from here.
    #[serde(default = "identity_port", skip_serializing_if = "is_identity_port")]
    pub identity_port: u16,
    /// Certificates besides this machine's own by which servers are known that programs are fetched from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch_ca: Option<PathBuf>,
    /// What nodes may be here. It wins over whatever a coordinator says.
    #[serde(default, skip_serializing_if = "Allow::is_everything")]
    pub allow: Allow,
}

fn identity_port() -> u16 {
    IDENTITY_PORT
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_identity_port(port: &u16) -> bool {
    *port == IDENTITY_PORT
}

impl Settings {
    /// What a command line says.
    ///
    /// # Errors
    /// Its file cannot be read, or something is missing.
    pub fn of(args: &AgentArgs) -> anyhow::Result<Self> {
        if let Some(path) = &args.config {
            return Self::read(path);
        }
        let missing = |what: &'static str| move || format!("say --{what}, or --config");
        let dir = args.dir.clone().with_context(missing("dir"))?;
        Ok(Self {
            lab: args.lab.clone().with_context(missing("lab"))?,
            host: args.host.clone().with_context(missing("host"))?,
            address: args.address.with_context(missing("address"))?,
            runtime: args.runtime.clone().with_context(missing("runtime"))?,
            coordinators: args.coordinator.clone(),
            labels: BTreeMap::new(),
            identity_port: args.identity_port,
            fetch_ca: args.fetch_ca.clone(),
            // A limit that cannot be read must not be none.
            allow: Allow::read(&dir.join(FILE)).map_err(anyhow::Error::msg)?,
            dir,
        })
    }

    /// Reads `agent.toml`.
    ///
    /// # Errors
    /// It is not there, or something in it makes no sense: says which line.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut read: Self =
            toml::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        if read.coordinators.is_empty() {
            anyhow::bail!("read {}: coordinators = [] names none; write one", path.display());
        }
        let limits = Allow::parse(&text).map_err(anyhow::Error::msg);
        read.allow = limits.with_context(|| format!("read {}", path.display()))?;
        Ok(read)
    }

    /// As the text of `agent.toml`.
    ///
    /// # Errors
    /// A path is no text.
    pub fn text(&self) -> anyhow::Result<String> {
        let body = toml::to_string(self).context("write agent.toml")?;
        Ok(format!("# Written by `faultbed-agent join`; read when the agent starts.\n{body}"))
    }

    /// Where its proxy answers other hosts; `None` where hosts are only simulated.
    #[must_use]
    pub fn identity_port(&self) -> Option<u16> {
        let is_simulated = self.address.is_ipv4() && self.address.is_loopback();
        (!is_simulated).then_some(self.identity_port)
    }

    /// Where key, certificate and CAs are.
    #[must_use]
    pub fn identity_dir(&self) -> PathBuf {
        self.dir.join(IDENTITY)
    }

    /// Whether a coordinator is on another machine, so that it takes a certificate.
    #[must_use]
    pub fn needs_identity(&self) -> bool {
        self.coordinators.iter().any(|one| matches!(one, Coordinator::Https(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            lab: "prod".parse().unwrap(),
            host: "h1".parse().unwrap(),
            address: "10.0.0.5".parse().unwrap(),
            dir: "/var/lib/faultbed".into(),
            runtime: "/run/faultbed".into(),
            coordinators: vec!["https://10.0.0.1:7400".parse().unwrap()],
            labels: [("rack".to_owned(), "a".to_owned())].into(),
            identity_port: IDENTITY_PORT,
            fetch_ca: Some("/etc/ssl/ours.pem".into()),
            allow: Allow::default(),
        }
    }

    #[test]
    fn the_file_is_read_as_it_was_written_and_limits_can_be_added() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let text = settings().text().unwrap();
        fs::write(&path, &text).unwrap();
        assert_eq!(Settings::read(&path).unwrap(), settings());
        fs::write(&path, format!("{text}\n[allow]\nusers = [\"db\"]\npaths = [\"/opt\"]\n"))
            .unwrap();
        let limited = Settings::read(&path).unwrap();
        assert_eq!(limited.allow.users, Some(vec!["db".to_owned()]));
        assert_eq!(limited.allow.paths, Some(vec!["/opt".into()]));
        assert!(limited.needs_identity());
    }

    #[test]
    fn a_word_that_is_not_known_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        fs::write(&path, settings().text().unwrap().replace("runtime", "runtmie")).unwrap();
        let error = format!("{:#}", Settings::read(&path).unwrap_err());
        assert!(error.contains("runtmie"), "{error}");
    }
}
