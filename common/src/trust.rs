//! Who somebody is across machines: identities in certificates, one-time tokens, and what is said to get them.

use std::{collections::BTreeMap, fmt, str::FromStr};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::name::{CoordinatorName, HostName, LabName, UserName};

/// What every token begins with; the digit is its version.
pub const TOKEN_PREFIX: &str = "fb1.";

/// The longest token that is read, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8192;

/// The most coordinators that a token names.
pub const URLS_MAX: usize = 16;

/// What every identity begins with.
const SCHEME: &str = "faultbed://";

/// What a user may do. Each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees everything, changes nothing.
    Viewer,
    /// Changes the lab, and so runs programs on its hosts.
    Operator,
    /// Says who else may come in.
    Admin,
}

impl Role {
    /// The word in identities and on command lines.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Viewer, Self::Operator, Self::Admin]
            .into_iter()
            .find(|role| role.word() == text)
            .ok_or_else(|| format!("{text:?} is no role; write viewer, operator or admin"))
    }
}

/// Who holds a certificate. Written as a URI, the one name in the certificate that counts:
/// `faultbed://LAB/host/NAME`, `faultbed://LAB/user/NAME/ROLE`, `faultbed://LAB/coordinator/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// The lab it is of.
    pub lab: LabName,
    /// Who in that lab.
    pub who: Who,
}

/// Who somebody is within a lab.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The agent of a host.
    Host(HostName),
    /// A person or program.
    User(UserName, Role),
    /// A coordinator.
    Coordinator(CoordinatorName),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/", self.lab)?;
        match &self.who {
            Who::Host(name) => write!(f, "host/{name}"),
            Who::User(name, role) => write!(f, "user/{name}/{role}"),
            Who::Coordinator(name) => write!(f, "coordinator/{name}"),
        }
    }
}

impl FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| format!("read identity {text:?}: {why}");
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| refuse("it is no faultbed:// URI"))?;
        let parts: Vec<&str> = rest.split('/').collect();
        let name = |error: crate::name::NameError| refuse(&error.to_string());
        let who = match parts.as_slice() {
            [_, "host", host] => Who::Host(host.parse().map_err(name)?),
            [_, "user", user, role] => Who::User(
                user.parse().map_err(name)?,
                role.parse().map_err(|e: String| refuse(&e))?,
            ),
            [_, "coordinator", coordinator] => Who::Coordinator(coordinator.parse().map_err(name)?),
            _ => return Err(refuse("it names neither host, user nor coordinator")),
        };
        Ok(Self { lab: parts[0].parse().map_err(name)?, who })
    }
}

/// A one-time token: where to go, how to know that one is there, and what opens the door once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The lab it is for.
    pub lab: LabName,
    /// Its coordinators, as `https://HOST:PORT`.
    pub urls: Vec<String>,
    /// The SHA-256 of the lab's CA certificate, in lower-case hex. The secret is sent to nobody
    /// who cannot show this CA.
    pub ca: String,
    /// Names the token in the store.
    pub id: String,
    /// Opens the door once.
    pub secret: String,
}

/// Without the secret, so that no log has it.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("lab", &self.lab)
            .field("urls", &self.urls)
            .field("ca", &self.ca)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Why a text is no token. The text itself is not in it: it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read token: {0}; copy the whole line that `faultbed host token` or `user token` printed")]
pub struct TokenError(&'static str);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token has text keys and no fallible `Serialize`, so this cannot fail.
        let json = serde_json::to_vec(self).unwrap_or_default();
        write!(f, "{TOKEN_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let refuse = |why| Err(TokenError(why));
        if text.len() > TOKEN_BYTES_MAX {
            return refuse("it is longer than 8192 bytes");
        }
        let Some(encoded) = text.strip_prefix(TOKEN_PREFIX) else {
            return refuse("it does not begin with `fb1.`");
        };
        let Ok(json) = BASE64_URL_SAFE_NO_PAD.decode(encoded) else {
            return refuse("some of it is missing or changed");
        };
        let Ok(token) = serde_json::from_slice::<Self>(&json) else {
            return refuse("some of it is missing or changed");
        };
        if token.urls.is_empty() || token.urls.len() > URLS_MAX {
            return refuse("it names no coordinator, or more than 16");
        }
        if !token.urls.iter().all(|url| url.starts_with("https://")) {
            return refuse("it names a coordinator without TLS");
        }
        if token.ca.len() != 64 || !token.ca.bytes().all(|b| b.is_ascii_hexdigit()) {
            return refuse("it does not say which CA to trust");
        }
        Ok(token)
    }
}

/// For whom a token is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Invited {
    /// A host.
    Host {
        /// Its name; where there is none, the host says it, and it must be new to the lab.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<HostName>,
        /// Labels it gets.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        labels: BTreeMap<String, String>,
    },
    /// A user.
    User {
        /// The name.
        name: UserName,
        /// What the user may do.
        role: Role,
    },
}

/// As what somebody brings a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Joining {
    /// `faultbed-agent join`.
    Host,
    /// `faultbed context add`.
    User,
}

/// Asks for a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRequest {
    /// For whom.
    #[serde(flatten)]
    pub invited: Invited,
    /// How long it can be used.
    pub lasts: crate::duration::Span,
}

/// Answers a [`TokenRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenReply {
    /// As it is pasted: [`Token`] as text.
    pub token: String,
    /// When it ends, in milliseconds since the epoch.
    pub expires_unix_ms: u64,
}

/// Uses a token up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The lab that is meant.
    pub lab: LabName,
    /// As in the token.
    pub id: String,
    /// As in the token.
    pub secret: String,
    /// A certificate request in PEM. Only its key counts: the coordinator says who that is.
    pub request: String,
    /// As what it is brought: a token for the others is refused, and stays good. `None` is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joining: Option<Joining>,
    /// What a host is to be called; a token for another one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<HostName>,
    /// What its machine is called, for where neither token nor `name` say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<HostName>,
}

/// Asks for a new certificate for whom the connection's certificate names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// A certificate request in PEM, as in [`JoinRequest`].
    pub request: String,
}

/// Says whether the coordinators hold the stream of the host that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// One of them does.
    pub connected: bool,
}

/// Takes a user's way in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpelRequest {
    /// Who.
    pub user: UserName,
}

/// Answers an [`ExpelRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpelReply {
    /// The user had one.
    pub was_member: bool,
}

/// What is asked of the lab's CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum AuthorityRequest {
    /// Which there is.
    Show,
    /// Another CA signs from now on.
    Rotate {
        /// How long the one before is believed still; `None` is for as long as certificates last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        overlap: Option<crate::duration::Span>,
    },
    /// The one before is believed no more.
    End {
        /// Although somebody has no certificate of the new one yet.
        #[serde(default)]
        force: bool,
    },
}

/// Answers an [`AuthorityRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityReply {
    /// The SHA-256 of the certificate of the CA that signs, in lower-case hex, as in tokens.
    pub signs: String,
    /// The CA before it, while it is believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<EndingAuthority>,
}

/// A CA that is believed still, and signs nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndingAuthority {
    /// The SHA-256 of its certificate, in lower-case hex.
    pub ca: String,
    /// When it is believed no more, in milliseconds since the epoch.
    pub until_unix_ms: u64,
    /// How much of that is left, in milliseconds, as the coordinator counts.
    pub left_ms: u64,
    /// Who has no certificate of the new one yet: `host h1`, `user ada`.
    pub holders: Vec<String>,
}

/// A certificate, and all that is needed to use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Who it says one is: an [`Identity`].
    pub identity: String,
    /// The certificate in PEM.
    pub certificate: String,
    /// The CAs to trust, in PEM: several while one takes over from another.
    pub ca: String,
    /// The lab's coordinators, as `https://HOST:PORT`.
    pub urls: Vec<String>,
    /// Labels that the token gave a host.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            lab: "prod".parse().unwrap(),
            urls: vec!["https://10.0.0.1:7400".to_owned()],
            ca: "ab".repeat(32),
            id: "1f".to_owned(),
            secret: "hush".to_owned(),
        }
    }

    #[test]
    fn a_token_is_one_word_that_is_read_as_it_was_written() {
        let text = token().to_string();
        assert!(text.starts_with("fb1.") && !text.contains(char::is_whitespace), "{text}");
        assert_eq!(text.parse(), Ok(token()));
    }

    #[test]
    fn no_log_and_no_error_has_the_secret() {
        assert!(!format!("{:?}", token()).contains("hush"));
        let broken = token().to_string().replace("fb1.", "fb1.!");
        let error = broken.parse::<Token>().unwrap_err().to_string();
        assert!(!error.contains(&broken) && error.contains("copy the whole line"), "{error}");
    }

    #[test]
    fn half_a_token_and_one_without_tls_or_pin_are_refused() {
        let text = token().to_string();
        for bad in [&text[..text.len() - 3], &text[4..], "", "fb1.", "fb2.e30"] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
        for bad in [
            Token { urls: Vec::new(), ..token() },
            Token { urls: vec!["http://10.0.0.1:7400".to_owned()], ..token() },
            Token { ca: String::new(), ..token() },
            Token { id: "x".repeat(TOKEN_BYTES_MAX), ..token() },
        ] {
            assert!(bad.to_string().parse::<Token>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn identities_are_written_as_they_are_read_and_nothing_else_is_one() {
        for text in [
            "faultbed://prod/host/h1",
            "faultbed://a/user/ada/viewer",
            "faultbed://a/coordinator/c1",
        ] {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
        for text in [
            "https://prod/host/h1",
            "faultbed://prod/host",
            "faultbed://prod/host/h1/x",
            "faultbed://prod/host/../h1",
            "faultbed://prod/user/ada",
            "faultbed://prod/user/ada/root",
            "faultbed:///host/h1",
            "faultbed://prod/node/kv-1",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }

    #[test]
    fn roles_contain_each_other() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
    }
}
