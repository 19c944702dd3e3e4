//! Files of the network as programs, each named with its hash. Pure: nothing is asked here.

use std::{fmt, str::FromStr};

use super::Sha256;

/// What such an address begins with; nothing comes without TLS.
const SCHEME: &str = "https://";

/// What follows the address.
const HASH: &str = "sha256=";

/// Longest address.
const BYTES_MAX: usize = 2048;

/// Where servers answer that name no port.
const PORT: u16 = 443;

/// How it is written, for messages.
const SHAPE: &str = "https://HOST/PATH#sha256=64-HEXADECIMAL-DIGITS";

/// A file of the network, and what it must hold: `https://HOST[:PORT]/PATH#sha256=DIGITS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Web {
    /// A name or an address, of IPv6 without brackets.
    host: String,
    port: u16,
    /// From the slash on, with what is behind a `?`.
    path: String,
    sha256: Sha256,
}

impl Web {
    /// Who has it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port of whoever has it.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What is asked for there.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What it must hold.
    #[must_use]
    pub fn sha256(&self) -> &Sha256 {
        &self.sha256
    }

    /// Host and port, as a request names them.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        if self.port == PORT { host } else { format!("{host}:{}", self.port) }
    }

    /// The address alone.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{SCHEME}{}{}", self.authority(), self.path)
    }

    /// The name of the file, as far as the path has one.
    #[must_use]
    pub fn name(&self) -> &str {
        let path = self.path.split('?').next().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default()
    }

    /// Where a server leads that says `to`: what must come from there stays the same.
    ///
    /// # Errors
    /// It leads to where nothing is fetched from; says why.
    pub fn follow(&self, to: &str) -> Result<Self, String> {
        let to = to.split('#').next().unwrap_or_default();
        let whole = if to.contains("://") {
            to.to_owned()
        } else if let Some(authority) = to.strip_prefix("//") {
            format!("{SCHEME}{authority}")
        } else if to.starts_with('/') {
            format!("{SCHEME}{}{to}", self.authority())
        } else {
            let path = self.path.split('?').next().unwrap_or_default();
            let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
            format!("{SCHEME}{}{dir}/{to}", self.authority())
        };
        let (host, port, path) = address(&whole)?;
        Ok(Self { host, port, path, sha256: self.sha256.clone() })
    }
}

impl FromStr for Web {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (url, hash) = text.split_once('#').unwrap_or((text, ""));
        let (host, port, path) = address(url)?;
        let Some(digits) = hash.strip_prefix(HASH) else {
            return Err(format!(
                "it does not say what the file holds; write {SHAPE}, as sha256sum prints it"
            ));
        };
        let sha256 = digits.parse().map_err(|error| format!("{error}"))?;
        Ok(Self { host, port, path, sha256 })
    }
}

impl fmt::Display for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{HASH}{}", self.url(), self.sha256)
    }
}

/// Host, port and path of an address.
fn address(url: &str) -> Result<(String, u16, String), String> {
    if url.len() > BYTES_MAX {
        return Err(format!("it has more than {BYTES_MAX} bytes"));
    }
    if !url.bytes().all(|byte| byte.is_ascii_graphic()) || url.contains(['"', '\\', '<', '>']) {
        return Err("it holds what an address cannot; write blanks and the like as %20".to_owned());
    }
    let Some(rest) = url.strip_prefix(SCHEME) else {
        return Err(format!("nothing is fetched but by https; write {SHAPE}"));
    };
    let (authority, path) = match rest.find(['/', '?']) {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    if authority.contains('@') {
        return Err("it names a user; everybody who sees the lab would see the password".to_owned());
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, port)) => (v6, port.strip_prefix(':')),
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || !host.chars().all(is_host) {
        return Err(format!("{authority:?} is no host; write {SHAPE}"));
    }
    let port = match port {
        None => PORT,
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => port,
            Ok(_) | Err(_) => return Err(format!("{authority:?} has no port; write HOST:443")),
        },
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok((host.to_owned(), port, format!("{slash}{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn web(url: &str) -> Web {
        format!("{url}#sha256={DIGITS}").parse().unwrap()
    }

    #[test]
    fn an_address_says_where_a_file_is_and_what_it_holds() {
        let plain = web("https://example.org/v3/etcd");
        assert_eq!((plain.host(), plain.port(), plain.path()), ("example.org", 443, "/v3/etcd"));
        assert_eq!((plain.name(), plain.sha256().as_str()), ("etcd", DIGITS));
        assert_eq!(plain.to_string(), format!("https://example.org/v3/etcd#sha256={DIGITS}"));
        let port = web("https://10.0.0.1:8443/get?file=etcd/x");
        assert_eq!((port.authority().as_str(), port.name()), ("10.0.0.1:8443", "get"));
        let v6 = web("https://[fd00::1]:444/etcd");
        assert_eq!((v6.host(), v6.url().as_str()), ("fd00::1", "https://[fd00::1]:444/etcd"));
        assert_eq!(web("https://example.org").path(), "/");
    }

    #[test]
    fn what_cannot_be_fetched_says_why() {
        let end = format!("#sha256={DIGITS}");
        for (text, why) in [
            (format!("http://example.org/etcd{end}"), "but by https"),
            (format!("file:///usr/bin/etcd{end}"), "but by https"),
            ("https://example.org/etcd".to_owned(), "what the file holds"),
            ("https://example.org/etcd#sha256=00".to_owned(), "is no SHA-256"),
            ("https://example.org/etcd#md5=00".to_owned(), "what the file holds"),
            (format!("https://ada:pw@example.org/etcd{end}"), "names a user"),
            (format!("https:///etcd{end}"), "is no host"),
            (format!("https://example.org:0/etcd{end}"), "has no port"),
            (format!("https://example.org/a b{end}"), "%20"),
            (format!("https://example.org/a\r\nX: y{end}"), "%20"),
            (format!("https://example.org/{}{end}", "a".repeat(BYTES_MAX)), "more than"),
        ] {
            let error = text.parse::<Web>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_server_leads_only_to_where_there_is_tls_and_never_to_another_content() {
        let at = web("https://example.org/v3/etcd?x");
        for (to, url) in [
            ("https://cdn.example:8443/e#sha256=00", "https://cdn.example:8443/e"),
            ("//cdn.example/e", "https://cdn.example/e"),
            ("/latest/etcd", "https://example.org/latest/etcd"),
            ("etcd-2", "https://example.org/v3/etcd-2"),
        ] {
            let next = at.follow(to).unwrap();
            assert_eq!((next.url().as_str(), next.sha256()), (url, at.sha256()), "{to}");
        }
        for to in ["http://example.org/etcd", "file:///etc/shadow", "ftp://x/y"] {
            assert!(at.follow(to).unwrap_err().contains("but by https"), "{to}");
        }
    }
}
