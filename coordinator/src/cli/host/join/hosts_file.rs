//! The file of hosts to bring in: one line for each, `user@host [name=h1] [address=A] [label=K=V]…`. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use faultbed_common::{lab::check_label, name::HostName};

/// Most hosts of one file or command line.
pub const HOSTS_MAX: usize = 500;

/// A machine to bring into the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What `ssh` is told: `user@host`, or a name of the user's ssh configuration.
    pub at: String,
    /// The host's name in the lab; without it the machine says its own.
    pub name: Option<HostName>,
    /// Where other hosts reach it; without it the machine finds out.
    pub address: Option<IpAddr>,
    /// Labels it joins with.
    pub labels: BTreeMap<String, String>,
}

impl Target {
    /// A machine of which only this is known.
    ///
    /// # Errors
    /// `ssh` would not take it for a destination.
    pub fn new(at: &str) -> Result<Self, String> {
        if at.is_empty() || at.starts_with('-') || at.contains(|c: char| c.is_whitespace()) {
            return Err(format!("{at:?} is no destination of ssh; write user@host"));
        }
        if at.contains(':') && !at.contains("://") {
            return Err(format!(
                "{at:?} holds a ':'; a port belongs into ~/.ssh/config, or write ssh://user@host:22"
            ));
        }
        Ok(Self { at: at.to_owned(), name: None, address: None, labels: BTreeMap::new() })
    }

    fn read(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let mut target = Self::new(words.next().unwrap_or_default())?;
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                return Err(format!("{word:?} is not understood; {WORDS}"));
            };
            match key {
                "name" => target.name = Some(value.parse().map_err(|e| format!("name: {e}"))?),
                "address" => {
                    let address = value.parse().map_err(|_| {
                        format!("address {value:?} is no IP address; write one such as 10.0.0.7")
                    })?;
                    target.address = Some(address);
                }
                "label" => {
                    let (key, value) = value.split_once('=').ok_or_else(|| {
                        format!("label {value:?} has no value; write label=KEY=VALUE")
                    })?;
                    check_label(key, value)?;
                    target.labels.insert(key.to_owned(), value.to_owned());
                }
                _ => return Err(format!("{key:?} is not understood; {WORDS}")),
            }
        }
        Ok(target)
    }
}

const WORDS: &str = "after the destination there may be name=, address= and label=KEY=VALUE";

/// Reads a hosts file. Lines that begin with `#` are remarks.
///
/// # Errors
/// Each line that is wrong, as `FILE:LINE: why`.
pub fn read(file: &str, text: &str) -> Result<Vec<Target>, Vec<String>> {
    let mut targets: Vec<(usize, Target)> = Vec::new();
    let mut wrong = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split(" #").next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match Target::read(line) {
            Ok(target) => match clash(&targets, &target) {
                Some(why) => wrong.push(format!("{file}:{number}: {why}")),
                None => targets.push((number, target)),
            },
            Err(why) => wrong.push(format!("{file}:{number}: {why}")),
        }
    }
    if targets.len() > HOSTS_MAX {
        wrong.push(format!("{file}: {} hosts; at most {HOSTS_MAX} at a time", targets.len()));
    }
    if wrong.is_empty() {
        Ok(targets.into_iter().map(|(_, target)| target).collect())
    } else {
        Err(wrong)
    }
}

/// Why a line cannot stand beside those before it.
fn clash(before: &[(usize, Target)], target: &Target) -> Option<String> {
    before.iter().find_map(|(line, other)| {
        if other.at == target.at {
            return Some(format!("{} is in line {line} already", target.at));
        }
        let name = target.name.as_ref().filter(|name| other.name.as_ref() == Some(*name))?;
        Some(format!("name {name} is taken by line {line}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_who_where_and_with_which_labels() {
        let text = "# ours\nroot@10.0.0.1 name=h1 address=10.1.0.1 label=dc=east label=rack=2  # new\n\nlab-2\n";
        let targets = read("hosts", text).unwrap();
        assert_eq!(targets.len(), 2);
        assert_eq!(targets[0].at, "root@10.0.0.1");
        assert_eq!(targets[0].name, Some("h1".parse().unwrap()));
        assert_eq!(targets[0].address, Some("10.1.0.1".parse().unwrap()));
        assert_eq!(targets[0].labels["rack"], "2");
        assert_eq!(targets[1], Target::new("lab-2").unwrap());
    }

    #[test]
    fn every_wrong_line_is_told_with_file_and_line() {
        let text = "a@h1 name=h1\na@h2 name=h1\na@h1\na@h3 nmae=h3\na@h4 address=h4\n\
                    a@h5 label=dc\n-oProxyCommand=x\na@h6 name=H6\na@h7 fast\na@h8:22\n";
        let wrong = read("lab.hosts", text).unwrap_err();
        let expected = [
            "lab.hosts:2: name h1 is taken by line 1",
            "lab.hosts:3: a@h1 is in line 1 already",
            "lab.hosts:4: \"nmae\" is not understood; after the destination",
            "lab.hosts:5: address \"h4\" is no IP address",
            "lab.hosts:6: label \"dc\" has no value",
            "lab.hosts:7: \"-oProxyCommand=x\" is no destination",
            "lab.hosts:8: name: ",
            "lab.hosts:9: \"fast\" is not understood",
            "lab.hosts:10: \"a@h8:22\" holds a ':'",
        ];
        assert_eq!(wrong.len(), expected.len(), "{wrong:#?}");
        for (line, begins) in wrong.iter().zip(expected) {
            assert!(line.starts_with(begins), "{line}");
        }
    }
}
