//! What is found on a machine over ssh, what is to be done there, and the scripts that do it. Pure.

use std::fmt;

use serde::Serialize;

/// The agent's unit, as packages install it too.
const UNIT: &str = include_str!("../../../../../deploy/systemd/faultbed-agent.service");

/// Where that unit expects the agent.
const UNIT_PROGRAM: &str = "/usr/bin/faultbed-agent";

/// Where a copied agent waits to be installed: in the home directory of the user at the other end.
pub const UPLOAD: &str = ".faultbed-agent.upload";

/// Digits of a hash that people see.
const HASH_SHOWN: usize = 8;

/// Says what there is on a machine, as `key=value` lines. Runs in any POSIX shell. The two variables
/// are for machines whose directories differ.
pub const LOOK: &str = r#"
as=user; bin=${FAULTBED_BIN_DIR:-$HOME/.local/bin}; dir=$HOME/.local/state/faultbed/agent
if [ "$(id -u)" = 0 ]; then as=root; elif sudo -n true 2>/dev/null; then as=sudo; fi
config=$dir/agent.toml; s=
if [ $as != user ]; then
    bin=${FAULTBED_BIN_DIR:-/usr/local/bin}; dir=/var/lib/faultbed; config=/etc/faultbed/agent.toml
    [ $as = root ] || s="sudo -n"
fi
units=${FAULTBED_UNIT_DIR:-/etc/systemd/system}
hash() { $s sha256sum "$1" 2>/dev/null | cut -d' ' -f1; }
field() { $s sed -n "s/^$1 *= *\"\(.*\)\".*/\1/p" "$config" 2>/dev/null | head -n 1; }
running=no
pid=$($s cat "$dir/agent.pid" 2>/dev/null) && [ -n "$pid" ] && $s kill -0 "$pid" 2>/dev/null && running=yes
echo "as=$as"
echo "system=$(uname -s)"
echo "machine=$(uname -m)"
echo "bin=$bin"
echo "dir=$dir"
echo "units=$units"
[ $as = user ] || [ ! -d "${FAULTBED_SYSTEMD:-/run/systemd/system}" ] || echo "systemd=yes"
echo "agent=$(hash "$bin/faultbed-agent")"
echo "unit=$(hash "$units/faultbed-agent.service")"
echo "lab=$(field lab)"
echo "host=$(field host)"
echo "running=$running"
"#;

/// As whom things are done on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// Root itself.
    Root,
    /// A user who becomes root without a password.
    Sudo,
    /// A user: there is no unit, and nodes are that user's.
    User,
}

/// What was found on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub by: As,
    pub system: String,
    pub machine: String,
    pub bin: String,
    pub dir: String,
    pub units: String,
    pub systemd: bool,
    /// SHA-256 of the agent that is installed; empty where there is none.
    pub agent: String,
    /// SHA-256 of the unit that is installed; empty where there is none.
    pub unit: String,
    /// The lab it joined; empty where none.
    pub lab: String,
    /// Its name there.
    pub host: String,
    /// Whether its agent runs.
    pub running: bool,
}

impl Found {
    /// Reads what [`LOOK`] printed. Other lines, such as a greeting of the machine, are passed over.
    ///
    /// # Errors
    /// It did not run to its end.
    pub fn read(text: &str) -> Result<Self, String> {
        let field = |key: &str| {
            let value = |line: &str| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned());
            text.lines().find_map(value)
        };
        let need = |key: &str| {
            field(key).ok_or_else(|| format!("the machine did not say its {key}: {text:?}"))
        };
        let by = match need("as")?.as_str() {
            "root" => As::Root,
            "sudo" => As::Sudo,
            _ => As::User,
        };
        Ok(Self {
            by,
            system: need("system")?,
            machine: need("machine")?,
            bin: need("bin")?,
            dir: need("dir")?,
            units: need("units")?,
            systemd: field("systemd").is_some(),
            agent: need("agent")?,
            unit: need("unit")?,
            lab: need("lab")?,
            host: need("host")?,
            running: need("running")? == "yes",
        })
    }

    fn program(&self) -> String {
        format!("{}/faultbed-agent", self.bin)
    }

    fn sudo(&self) -> &'static str {
        if self.by == As::Sudo { "sudo -n " } else { "" }
    }

    /// The unit as it is to be on this machine.
    #[must_use]
    pub fn unit_text(&self) -> String {
        UNIT.replace(UNIT_PROGRAM, &self.program())
    }

    /// Prints what the machine's checks are, as JSON.
    #[must_use]
    pub fn doctor(&self) -> String {
        let words = [self.program(), self.dir.clone()].map(|word| quote(&word));
        format!("{}{} doctor -o json --dir {} || true\n", self.sudo(), words[0], words[1])
    }
}

/// What became, or would become, of one thing on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// It was as it should be.
    Unchanged,
    /// It was not there.
    Installed(String),
    /// It was another one.
    Replaced(String, String),
}

impl Step {
    fn of(is: &str, wanted: &str) -> Self {
        if is == wanted {
            Self::Unchanged
        } else if is.is_empty() {
            Self::Installed(short(wanted))
        } else {
            Self::Replaced(short(is), short(wanted))
        }
    }
}

fn short(hash: &str) -> String {
    hash.chars().take(HASH_SHOWN).collect()
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchanged => write!(f, "unchanged"),
            Self::Installed(hash) => write!(f, "installed {hash}"),
            Self::Replaced(old, new) => write!(f, "replaced {old} -> {new}"),
        }
    }
}

/// What is to be done on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub agent: Step,
    /// `None` where there is no systemd, or no root to tell it anything.
    pub unit: Option<Step>,
    pub then: Then,
}

/// What is to be done once agent and unit are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is of the lab and runs what it should.
    Nothing,
    /// Its agent is to become the new one, in place.
    Reload,
    /// It is of the lab, and its agent does not run.
    Start,
    /// It is to join.
    Join,
}

/// The agent and the lab that machines are to have.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub lab: &'a str,
    /// SHA-256 of the agent.
    pub agent: &'a str,
    /// What it runs on: `x86_64`.
    pub machine: &'a str,
    /// Whether the lab has the host that the machine says it is.
    pub is_known: bool,
    /// What it is to be called, where somebody said so.
    pub name: Option<&'a str>,
}

/// What is to be done on a machine so that it is a host of the lab.
///
/// # Errors
/// It cannot be one, or is one of another lab.
pub fn plan(found: &Found, wanted: Wanted<'_>, unit_hash: &str) -> Result<Plan, String> {
    if found.system != "Linux" {
        return Err(format!("it runs {}; hosts run Linux", found.system));
    }
    if found.machine != wanted.machine {
        return Err(format!(
            "it is a {}, and the agent is for {}; name one for it: --agent PATH",
            found.machine, wanted.machine
        ));
    }
    if !found.lab.is_empty() && found.lab != wanted.lab {
        return Err(format!(
            "it is host {} of lab {}; `faultbed host remove {} --lab {}` takes it out there",
            found.host, found.lab, found.host, found.lab
        ));
    }
    if let Some(name) = wanted.name.filter(|name| wanted.is_known && *name != found.host) {
        let host = &found.host;
        return Err(format!(
            "it is host {host} of this lab, not {name}; `faultbed host remove {host}` comes first"
        ));
    }
    let agent = Step::of(&found.agent, wanted.agent);
    let unit = found.systemd.then(|| Step::of(&found.unit, unit_hash));
    let then = if found.lab.is_empty() || !wanted.is_known {
        Then::Join
    } else if !found.running {
        Then::Start
    } else if agent == Step::Unchanged {
        Then::Nothing
    } else {
        Then::Reload
    };
    Ok(Plan { agent, unit, then })
}

/// The script that does what is planned. `join` are the words of the agent after `join`.
#[must_use]
pub fn script(found: &Found, plan: &Plan, join: &[String]) -> String {
    let s = found.sudo();
    let program = quote(&found.program());
    let mut script = String::from("set -eu\n");
    if plan.agent != Step::Unchanged {
        // A program that runs cannot be written over, but another can take its name.
        let bin = quote(&found.bin);
        script.push_str(&format!(
            "{s}mkdir -p {bin}\n{s}install -m 755 {UPLOAD} {program}.new\n\
             {s}mv -f {program}.new {program}\nrm -f {UPLOAD}\n"
        ));
    }
    if plan.unit.as_ref().is_some_and(|unit| *unit != Step::Unchanged) {
        let path = quote(&format!("{}/faultbed-agent.service", found.units));
        let text = found.unit_text();
        script.push_str(&format!(
            "{s}tee {path} >/dev/null <<'END-OF-UNIT'\n{text}END-OF-UNIT\n\
             {s}systemctl daemon-reload\n"
        ));
    }
    let dir = quote(&found.dir);
    let by_unit = found.systemd;
    match plan.then {
        Then::Nothing => {}
        Then::Reload if by_unit => {
            script.push_str(&format!("{s}systemctl reload-or-restart faultbed-agent\n"));
        }
        Then::Reload => script.push_str(&format!("{s}kill -HUP \"$({s}cat {dir}/agent.pid)\"\n")),
        Then::Start if by_unit => {
            script.push_str(&format!("{s}systemctl enable --now faultbed-agent\n"));
        }
        Then::Start => script.push_str(&format!(
            "{s}setsid sh -c 'exec \"$0\" agent --config \"$1\" </dev/null >>\"$2\" 2>&1 &' \
             {program} {} {dir}/agent.log\n",
            config(found)
        )),
        Then::Join => {
            let words: Vec<String> = join.iter().map(|word| quote(word)).collect();
            let own_dir =
                if found.by == As::User { format!(" --dir {dir}") } else { String::new() };
            script.push_str(&format!("{s}{program} join {}{own_dir}\n", words.join(" ")));
        }
    }
    script
}

fn config(found: &Found) -> String {
    match found.by {
        As::Root | As::Sudo => "/etc/faultbed/agent.toml".to_owned(),
        As::User => quote(&format!("{}/agent.toml", found.dir)),
    }
}

/// One word for a shell, whatever is in it.
fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/.-_=,:@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        let text = "Welcome!\nas=root\nsystem=Linux\nmachine=x86_64\nbin=/usr/local/bin\n\
                    dir=/var/lib/faultbed\nunits=/etc/systemd/system\nsystemd=yes\nagent=\nunit=\n\
                    lab=\nhost=\nrunning=no\n";
        Found::read(text).unwrap()
    }

    const WANTED: Wanted<'_> =
        Wanted { lab: "dev", agent: "3c4d5e6f7a", machine: "x86_64", is_known: false, name: None };

    #[test]
    fn a_bare_machine_gets_everything_and_a_second_time_nothing() {
        let bare = found();
        let first = plan(&bare, WANTED, "aaaa").unwrap();
        assert_eq!(first.agent.to_string(), "installed 3c4d5e6f");
        assert_eq!(first.unit, Some(Step::Installed("aaaa".to_owned())));
        assert_eq!(first.then, Then::Join);
        let text = script(&bare, &first, &["fb1.xyz".to_owned(), "--name".to_owned(), "h1".into()]);
        assert!(text.contains("ExecStart=/usr/local/bin/faultbed-agent agent --config"), "{text}");
        assert!(text.ends_with("/usr/local/bin/faultbed-agent join fb1.xyz --name h1\n"), "{text}");
        let again = Found {
            agent: WANTED.agent.to_owned(),
            unit: "aaaa".to_owned(),
            lab: "dev".to_owned(),
            host: "h1".to_owned(),
            running: true,
            ..bare
        };
        let known = Wanted { is_known: true, name: Some("h1"), ..WANTED };
        let second = plan(&again, known, "aaaa").unwrap();
        assert_eq!(second.then, Then::Nothing);
        assert_eq!(script(&again, &second, &[]), "set -eu\n");
    }

    #[test]
    fn another_agent_takes_over_in_place_and_a_host_that_was_removed_joins_anew() {
        let there = Found {
            agent: "1a2b1a2b1a".to_owned(),
            unit: "aaaa".to_owned(),
            lab: "dev".to_owned(),
            host: "h1".to_owned(),
            running: true,
            ..found()
        };
        let known = Wanted { is_known: true, ..WANTED };
        let replaced = plan(&there, known, "aaaa").unwrap();
        assert_eq!(replaced.agent.to_string(), "replaced 1a2b1a2b -> 3c4d5e6f");
        assert_eq!(replaced.then, Then::Reload);
        assert!(script(&there, &replaced, &[]).contains("reload-or-restart"));
        let stopped = Found { running: false, ..there.clone() };
        assert_eq!(plan(&stopped, known, "aaaa").unwrap().then, Then::Start);
        assert_eq!(plan(&there, WANTED, "aaaa").unwrap().then, Then::Join);
        let other = Wanted { name: Some("h5"), ..known };
        assert!(plan(&there, other, "aaaa").unwrap_err().contains("host h1 of this lab, not h5"));
    }

    #[test]
    fn a_user_without_root_gets_no_unit_and_a_directory_of_its_own() {
        let user = Found {
            by: As::User,
            systemd: false,
            bin: "/home/o'neil/.local/bin".to_owned(),
            dir: "/home/o'neil/.local/state/faultbed/agent".to_owned(),
            ..found()
        };
        let planned = plan(&user, WANTED, "aaaa").unwrap();
        assert_eq!(planned.unit, None);
        let text = script(&user, &planned, &["fb1.x".to_owned()]);
        assert!(!text.contains("systemctl") && !text.contains("sudo"), "{text}");
        assert!(text.contains(r"'/home/o'\''neil/.local/bin/faultbed-agent' join fb1.x --dir"));
    }

    #[test]
    fn machines_that_cannot_be_hosts_are_told_why() {
        let other = Found { machine: "aarch64".to_owned(), ..found() };
        assert!(plan(&other, WANTED, "a").unwrap_err().contains("--agent PATH"));
        let other = Found { system: "Darwin".to_owned(), ..found() };
        assert!(plan(&other, WANTED, "a").unwrap_err().contains("hosts run Linux"));
        let other = Found { lab: "prod".to_owned(), host: "x1".to_owned(), ..found() };
        let why = plan(&other, WANTED, "a").unwrap_err();
        assert!(why.contains("host x1 of lab prod") && why.contains("host remove x1"), "{why}");
        assert!(Found::read("as=root\nsystem=Linux\n").is_err());
    }
}
