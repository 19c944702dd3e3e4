//! Programs that come from the machine of whoever asks: told from the host's own, and pinned by their content.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// Hexadecimal digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// Digits of a hash that are shown to people.
const SHOWN_DIGITS: usize = 12;

/// How much of a file is hashed at a time.
const HASH_BYTES: usize = 64 * 1024;

/// Largest program that is taken. The largest database servers have some hundred MiB with symbols.
pub const PROGRAM_BYTES_MAX: u64 = 4 << 30;

/// The name of a program file whose path has none.
const NAME_DEFAULT: &str = "program";

/// The directory below a host's in which programs are kept, each under its hash.
pub const BINS_DIR: &str = "bins";

/// The SHA-256 of a file: 64 lower-case hexadecimal digits, so that it is safe as a file name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sha256(String);

/// What is no SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no SHA-256; it has 64 hexadecimal digits in lower case")]
pub struct NoSha256(String);

impl Sha256 {
    /// The hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::digits(sha2::Sha256::new().chain_update(bytes))
    }

    fn digits(sha: sha2::Sha256) -> Self {
        Self(sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Its digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Enough of it to tell programs apart by eye.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..SHOWN_DIGITS]
    }
}

impl FromStr for Sha256 {
    type Err = NoSha256;

    fn from_str(text: &str) -> Result<Self, NoSha256> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == SHA256_DIGITS && text.bytes().all(is_digit) {
            return Ok(Self(text.to_owned()));
        }
        Err(NoSha256(text.chars().take(2 * SHA256_DIGITS).collect()))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Its hash.
    pub sha256: Sha256,
    /// Its size.
    pub bytes: u64,
}

impl Content {
    /// Hashes all that is left to read.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(from: &mut impl io::Read) -> io::Result<Self> {
        let mut sha = sha2::Sha256::new();
        let mut buffer = vec![0; HASH_BYTES];
        let mut bytes = 0;
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok(Self { sha256: Sha256::digits(sha), bytes }),
                Ok(read) => {
                    bytes += read as u64;
                    sha.update(&buffer[..read]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A program that was pushed, as it was chosen for one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// Where it is on the machine it came from; shown to people and never opened on a host.
    pub path: String,
    /// What it is.
    #[serde(flatten)]
    pub content: Content,
}

impl Pushed {
    /// Where a host keeps it, below its directory. It keeps its name: people read `ps`, and some
    /// programs behave by the name they are called.
    #[must_use]
    pub fn file(&self, host_dir: &Path) -> PathBuf {
        let name = Path::new(&self.path).file_name();
        host_dir
            .join(BINS_DIR)
            .join(self.content.sha256.as_str())
            .join(name.unwrap_or(NAME_DEFAULT.as_ref()))
    }
}

/// What a `path` of a spec means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// A file of the machine of whoever asks.
    Asker(&'a str),
    /// A name in the host's PATH, or a file of the host.
    Host(&'a str),
    /// Something to be fetched from the network.
    Web(&'a str),
}

/// What `path = TEXT` of an accepted spec means. The command line has made files absolute.
#[must_use]
pub fn source(text: &str) -> Source<'_> {
    match text.strip_prefix("host:") {
        Some(on_host) => Source::Host(on_host),
        None if text.contains("://") => Source::Web(text),
        None if text.contains('/') => Source::Asker(text),
        None => Source::Host(text),
    }
}

/// What whoever asks knows of the files of its machine. The lab says which it needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Files {
    /// Whether it looks when it is asked, and pushes what is missing.
    pub can_look: bool,
    /// What it found, by path; `None` where there is no such file.
    pub found: BTreeMap<String, Option<Content>>,
}

/// What the lab needs of whoever asks before a change can be accepted. Nothing was changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Needs {
    /// Paths of files whose content it must say in [`Files::found`].
    pub look: BTreeSet<String>,
    /// Paths of files whose content it must push.
    pub push: BTreeSet<String>,
}

impl Needs {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.look.is_empty() && self.push.is_empty()
    }
}

/// Whether a content is there, asked before a push.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// It is there as a whole.
    pub whole: bool,
    /// How many bytes of it are there from an earlier push, from which the next goes on.
    pub bytes: u64,
}

/// The first message of a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushHead {
    /// What is pushed.
    pub content: Content,
    /// From which byte on.
    pub offset: u64,
}

/// What an agent asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRequest {
    /// For which host; its spec must name the content.
    pub host: crate::name::HostName,
    /// Which.
    pub sha256: Sha256,
    /// From which byte on.
    pub offset: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_means_the_askers_file_only_with_a_slash_and_without_a_scheme() {
        assert_eq!(source("/home/ada/etcd"), Source::Asker("/home/ada/etcd"));
        assert_eq!(source("etcd"), Source::Host("etcd"));
        assert_eq!(source("host:/usr/bin/etcd"), Source::Host("/usr/bin/etcd"));
        assert_eq!(source("https://x/etcd"), Source::Web("https://x/etcd"));
    }

    #[test]
    fn a_content_is_hashed_as_others_hash_it() {
        // As `sha256sum` says of `abc`, the first example of FIPS 180-4.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Sha256::of(b"abc").as_str(), abc);
        let long = vec![7; 3 * HASH_BYTES + 1];
        let content = Content::read(&mut long.as_slice()).unwrap();
        assert_eq!(content, Content { sha256: Sha256::of(&long), bytes: long.len() as u64 });
    }

    #[test]
    fn nothing_but_a_hash_becomes_a_file_name() {
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(good.parse::<Sha256>().unwrap().as_str(), good);
        for bad in ["", "../../etc/passwd", &good.to_uppercase(), &good[1..], "é"] {
            assert!(bad.parse::<Sha256>().is_err(), "{bad}");
        }
        let pushed = |path: &str| Pushed {
            path: path.to_owned(),
            content: Content { sha256: good.parse().unwrap(), bytes: 1 },
        };
        let in_bins = |name: &str| format!("/host/bins/{good}/{name}");
        let file = |path: &str| pushed(path).file(Path::new("/host")).display().to_string();
        assert_eq!(file("/home/ada/etcd"), in_bins("etcd"));
        assert_eq!(file("/home/ada/.."), in_bins("program"));
        let text = serde_json::to_string(&pushed("/bin/etcd")).unwrap();
        assert_eq!(serde_json::from_str::<Pushed>(&text).unwrap(), pushed("/bin/etcd"));
    }
}
