//! A host of a lab: where it is, what people call it by, and whether new nodes may come to it.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Most labels of one host that a file, a join or a verb may give: people read them all.
pub const LABELS_MAX: usize = 64;

/// Most bytes of a label's key or value.
pub const LABEL_BYTES_MAX: usize = 128;

/// A host of the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Where other hosts reach it.
    pub address: IpAddr,
    /// Under which its agent keeps everything.
    pub dir: PathBuf,
    /// Its labels, as targets and placements see them. They follow from `said`; see
    /// [`Host::relabel`].
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Who said which label.
    #[serde(default, skip_serializing_if = "Said::is_empty")]
    pub said: Said,
    /// Whether no new node may come to it. What runs there goes on.
    #[serde(default, skip_serializing_if = "is_false")]
    pub drained: bool,
    /// The ports its kernel gives to connections that name none (`ip_local_port_range`), first and
    /// last; `None` where it has not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_range: Option<(u16, u16)>,
    /// Where its proxy answers who dialled from there, at its address; `None` where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_port: Option<u16>,
    /// From here on blocks of ports are sought for new nodes, so that those of nodes that have gone
    /// rest while sockets may still have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_block: Option<u16>,
}

/// Who said which label of a host. Each means keeps its own list and changes no other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Said {
    /// When the host joined.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub join: BTreeMap<String, String>,
    /// The lab file that was applied last.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub file: BTreeMap<String, String>,
    /// `host label`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub verb: BTreeMap<String, String>,
}

impl Said {
    /// Whether nobody said anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.join.is_empty() && self.file.is_empty() && self.verb.is_empty()
    }
}

impl Host {
    /// A host without labels that takes nodes.
    #[must_use]
    pub fn new(address: IpAddr, dir: PathBuf) -> Self {
        Self {
            address,
            dir,
            labels: BTreeMap::new(),
            said: Said::default(),
            drained: false,
            port_range: None,
            identity_port: None,
            next_block: None,
        }
    }

    /// Whether it only stands for a machine: all of these are one machine, on its loopback.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        matches!(self.address, IpAddr::V4(address) if address.is_loopback())
    }

    /// Whether what listens on the loopback of one is there for the other.
    #[must_use]
    pub fn shares_machine(&self, other: &Self) -> bool {
        self.address == other.address || self.is_simulated() && other.is_simulated()
    }

    /// Changes what was said of its labels, and makes `labels` follow: of each label, `host label`
    /// has the last word, then the file, then what the host joined with.
    pub fn relabel(&mut self, change: impl FnOnce(&mut Said)) {
        if self.said.is_empty() {
            // Before there were several means, all labels were the file's.
            self.said.file = std::mem::take(&mut self.labels);
        }
        change(&mut self.said);
        let Said { join, file, verb } = &self.said;
        self.labels = join.clone();
        self.labels.extend(file.clone());
        self.labels.extend(verb.clone());
    }
}

/// Says why this cannot be a label, which is written `KEY=VALUE` with others after a comma.
///
/// # Errors
/// It is empty, too long, or holds what separates labels.
pub fn check_label(key: &str, value: &str) -> Result<(), String> {
    let shown = format!("label {key}={value}");
    if key.is_empty() {
        return Err(format!("{shown:?} has no name; a label is written KEY=VALUE"));
    }
    if [key, value].iter().any(|text| text.contains([',', '=']) || text.contains(char::is_control))
    {
        return Err(format!("{shown:?} cannot hold ',', '=' or a line break; leave them out"));
    }
    if key.len().max(value.len()) > LABEL_BYTES_MAX {
        return Err(format!("a label may have {LABEL_BYTES_MAX} bytes on each side; shorten it"));
    }
    Ok(())
}

fn is_false(is: &bool) -> bool {
    !*is
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> BTreeMap<String, String> {
        let pair = |word: &str| word.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        text.split_whitespace().filter_map(pair).collect()
    }

    #[test]
    fn the_verb_goes_before_the_file_and_the_file_before_the_join() {
        let mut host = Host::new([10, 0, 0, 1].into(), "/lab".into());
        host.relabel(|said| said.join = pairs("dc=west disk=nvme"));
        host.relabel(|said| said.file = pairs("dc=east rack=1"));
        host.relabel(|said| said.verb = pairs("rack=2"));
        assert_eq!(host.labels, pairs("dc=east disk=nvme rack=2"));
        // What a means takes back shows what the next one says.
        host.relabel(|said| said.verb.clear());
        assert_eq!(host.labels, pairs("dc=east disk=nvme rack=1"));
        host.relabel(|said| said.file.clear());
        assert_eq!(host.labels, pairs("dc=west disk=nvme"));
    }

    #[test]
    fn labels_of_an_earlier_version_were_the_files() {
        let text = r#"{"address": "127.77.1.1", "dir": "/h1", "labels": {"dc": "east"}}"#;
        let mut host: Host = serde_json::from_str(text).unwrap();
        host.relabel(|said| said.join = pairs("dc=west"));
        assert_eq!(host.labels, pairs("dc=east"));
        host.relabel(|said| said.file.clear());
        assert_eq!(host.labels, pairs("dc=west"));
    }

    #[test]
    fn labels_that_could_not_be_told_apart_are_refused() {
        assert!(check_label("dc", "east").is_ok());
        for (key, value) in [("", "x"), ("a=b", "x"), ("a", "x,y"), ("a", "x\n")] {
            assert!(check_label(key, value).is_err(), "{key}={value}");
        }
        assert!(check_label(&"k".repeat(129), "").is_err());
    }
}
