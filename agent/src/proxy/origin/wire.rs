//! What hosts say to each other: one line of JSON for a question, one for its answer, in order.

use std::net::SocketAddr;

use faultbed_common::{link::Party, name::NodeName};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// The longest line; the longest names with two addresses are half of it.
const LINE_BYTES_MAX: u64 = 512;

/// Whose socket has these two ends?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ask {
    /// The dialler's end: of the host that is asked.
    pub(super) theirs: SocketAddr,
    /// The other: of the host that asks.
    pub(super) ours: SocketAddr,
    /// Whether the connection stands still meanwhile.
    #[serde(default)]
    pub(super) urgent: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Tell {
    /// A node of the lab.
    Node(NodeName),
    /// Some other process, or another user's.
    Clients,
    /// No such socket is there, or it could not be looked at.
    Unknown,
}

impl Tell {
    pub(super) fn of(party: Option<Party>) -> Self {
        match party {
            Some(Party::Node(node)) => Self::Node(node),
            Some(Party::Clients) => Self::Clients,
            None => Self::Unknown,
        }
    }

    pub(super) fn party(self) -> Option<Party> {
        match self {
            Self::Node(node) => Some(Party::Node(node)),
            Self::Clients => Some(Party::Clients),
            Self::Unknown => None,
        }
    }
}

/// A document as a line.
pub(super) fn line(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// The next line; `None` at the end.
///
/// # Errors
/// Where it is too long or cut off, or as the connection says.
pub(super) async fn next_line(
    stream: &mut (impl AsyncBufRead + Unpin),
) -> std::io::Result<Option<String>> {
    let mut text = String::new();
    let count = stream.take(LINE_BYTES_MAX).read_line(&mut text).await?;
    match (count, text.pop()) {
        (0, _) => Ok(None),
        (_, Some('\n')) => Ok(Some(text)),
        (_, _) => Err(std::io::Error::other("read a line: it is too long or cut off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_what_another_host_says() {
        let ask = Ask {
            theirs: "10.0.0.1:40000".parse().unwrap(),
            ours: "[fd77::1]:2379".parse().unwrap(),
            urgent: true,
        };
        let answer = Tell::Node("kv-1".parse().unwrap());
        let texts =
            [serde_json::to_string(&ask), serde_json::to_string(&answer)].map(Result::unwrap);
        assert_eq!(texts[1], r#"{"node":"kv-1"}"#);
        faultbed_fuzz::fuzz!(texts, |text: &[u8]| {
            let _refused = serde_json::from_slice::<Ask>(text);
            let _refused = serde_json::from_slice::<Tell>(text);
        });
    }
}
