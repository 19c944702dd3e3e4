//! Which lab a command means, and where its files are. Never talks to it.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use faultbed_common::name::LabName;
use serde::{Deserialize, Serialize};

use crate::cli::{
    failure::{Failure, with_lab},
    up::etcd::EtcdAccess,
};

/// The name of a lab where nobody says one.
pub const LAB_DEFAULT: &str = "lab";

/// The file of a lab's context, in its directory.
pub const CONTEXT_FILE: &str = "lab.json";

/// The longest path of a unix socket that every kernel takes.
const SOCKET_PATH_MAX: usize = 100;

/// Room for the longest socket name in a runtime directory.
const SOCKET_NAME_MAX: usize = 16;

/// `lab.json`: what `up` fixed about a local lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The version of this file: 1.
    pub version: u32,
    /// The lab's name.
    pub name: LabName,
    /// Its hosts are `127.77.OCTET.N`.
    pub octet: u8,
    /// Everything it keeps.
    pub dir: PathBuf,
    /// Its sockets.
    pub runtime: PathBuf,
    /// `embedded`, or `etcd=URL,…`.
    pub store: String,
    /// How many simulated hosts.
    pub hosts: u32,
    /// Tells this life of the lab from another of the same name.
    pub token: String,
    /// Its data goes when it is taken down.
    #[serde(default)]
    pub ephemeral: bool,
    /// How often its time was set with `up --for`: only the newest time ends it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub terms: u32,
    /// What opens its etcd.
    #[serde(default, skip_serializing_if = "EtcdAccess::is_none")]
    pub etcd: EtcdAccess,
    /// Its coordinators, where they were not started here: `https://HOST:PORT`, tried in this order,
    /// or one `unix:PATH`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote: Vec<String>,
}

fn is_zero(terms: &u32) -> bool {
    *terms == 0
}

impl Context {
    /// The coordinator's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("api.sock")
    }

    /// Whether others started its coordinators, so that it is not this user's to take up or down.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        !self.remote.is_empty()
    }

    /// Refuses to take up or down what others run.
    ///
    /// # Errors
    /// Names the coordinators.
    pub fn must_be_own(&self, verb: &str) -> Result<(), Failure> {
        if !self.is_remote() {
            return Ok(());
        }
        let failure = Failure::refused(format!(
            "lab `{}` is run by {}; `{verb}` is for labs of this machine",
            self.name,
            self.remote.join(", ")
        ));
        Err(match verb {
            "up" => failure.next("faultbed up --lab mine   # another lab, on this machine"),
            _ => failure.next(self.typed("delete cluster NAME   # stops what it has")),
        })
    }

    /// Where it is reached, in words.
    #[must_use]
    pub fn place(&self) -> String {
        if self.is_remote() { self.remote.join(", ") } else { self.socket().display().to_string() }
    }

    /// The key and certificate that are shown to its coordinators.
    #[must_use]
    pub fn identity_dir(&self) -> PathBuf {
        self.dir.join("identity")
    }

    /// A command for this lab, to be typed: with `--lab` where neither it is the usual one nor the
    /// environment names it.
    #[must_use]
    pub fn typed(&self, command: &str) -> String {
        let is_set = std::env::var("FAULTBED_LAB").is_ok_and(|name| name == self.name.as_str());
        let line = format!("faultbed {command}");
        if is_set || self.name.as_str() == LAB_DEFAULT {
            line
        } else {
            with_lab(&line, self.name.as_str())
        }
    }

    /// The coordinator's directory.
    #[must_use]
    pub fn coordinator_dir(&self) -> PathBuf {
        self.dir.join("coordinator")
    }

    /// The directory of host `number`, from 1.
    #[must_use]
    pub fn host_dir(&self, number: u32) -> PathBuf {
        self.dir.join("hosts").join(format!("h{number}"))
    }

    /// Whether its coordinator answers connections. Those of other machines are not asked.
    #[must_use]
    pub fn is_running(&self) -> bool {
        if self.is_remote() {
            return true;
        }
        std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
    }

    /// Reads the context of a lab's directory; `None` where there is none.
    ///
    /// # Errors
    /// The file cannot be read or makes no sense.
    pub fn read(dir: &Path) -> Result<Option<Self>, Failure> {
        let path = dir.join(CONTEXT_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Failure::io(format!("read {}", path.display()), &e)),
        };
        serde_json::from_str(&text).map(Some).map_err(|e| {
            Failure::no(format!("read {}: {e}", path.display()))
                .next(format!("rm -r {}   # forgets this lab and its data", dir.display()))
        })
    }

    /// Writes `lab.json`, whole or not at all.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn write(&self) -> Result<(), Failure> {
        let path = self.dir.join(CONTEXT_FILE);
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Failure::no(format!("write {}: {e}", path.display())))?;
        let draft = self.dir.join(".lab.json.new");
        fs::write(&draft, text + "\n")
            .and_then(|()| fs::rename(&draft, &path))
            .map_err(|e| Failure::io(format!("write {}", path.display()), &e))
    }
}

/// The directories of this user.
#[derive(Debug, Clone)]
pub struct Places {
    /// `$XDG_STATE_HOME/faultbed`.
    pub state: PathBuf,
    /// `$XDG_RUNTIME_DIR/faultbed`, else `/tmp/faultbed-UID`.
    pub runtime: PathBuf,
}

impl Places {
    /// From the environment.
    ///
    /// # Errors
    /// There is no home directory.
    pub fn from_env() -> Result<Self, Failure> {
        let absolute = |name: &str| {
            std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        let state = absolute("XDG_STATE_HOME")
            .or_else(|| Some(absolute("HOME")?.join(".local/state")))
            .ok_or_else(|| {
                Failure::refused("find a place for labs: neither XDG_STATE_HOME nor HOME is set")
                    .next("export XDG_STATE_HOME=/var/tmp/$USER")
            })?
            .join("faultbed");
        let uid = rustix::process::getuid().as_raw();
        let runtime = absolute("XDG_RUNTIME_DIR")
            .filter(|dir| fs::metadata(dir).is_ok_and(|meta| meta.uid() == uid))
            .map_or_else(
                || PathBuf::from(format!("/tmp/faultbed-{uid}")),
                |dir| dir.join("faultbed"),
            );
        Ok(Self { state, runtime })
    }

    /// The directory of a lab; a link to it where `up --dir` chose another.
    #[must_use]
    pub fn lab_dir(&self, name: &LabName) -> PathBuf {
        self.state.join("labs").join(name.as_str())
    }

    /// The runtime directory of a lab: short enough for sockets.
    #[must_use]
    pub fn lab_runtime(&self, name: &LabName) -> PathBuf {
        let usual = self.runtime.join(name.as_str());
        if usual.as_os_str().len() + SOCKET_NAME_MAX <= SOCKET_PATH_MAX {
            return usual;
        }
        let uid = rustix::process::getuid().as_raw();
        PathBuf::from(format!("/tmp/faultbed-{uid}")).join(name.as_str())
    }

    /// Every lab of this user, by name. Files that make no sense are left out.
    #[must_use]
    pub fn labs(&self) -> Vec<Context> {
        let Ok(entries) = fs::read_dir(self.state.join("labs")) else { return Vec::new() };
        let mut labs: Vec<Context> = entries
            .flatten()
            .filter_map(|entry| Context::read(&entry.path()).ok().flatten())
            .collect();
        labs.sort_by(|a, b| a.name.cmp(&b.name));
        labs
    }

    fn current_file(&self) -> PathBuf {
        self.state.join("current")
    }

    /// The lab chosen by `context use`.
    #[must_use]
    pub fn current(&self) -> Option<LabName> {
        fs::read_to_string(self.current_file()).ok()?.trim().parse().ok()
    }

    /// Chooses the lab of later commands.
    ///
    /// # Errors
    /// The choice cannot be written.
    pub fn set_current(&self, name: &LabName) -> Result<(), Failure> {
        let path = self.current_file();
        fs::create_dir_all(&self.state)
            .and_then(|()| fs::write(&path, format!("{name}\n")))
            .map_err(|e| Failure::io(format!("write {}", path.display()), &e))
    }

    /// Chooses none.
    ///
    /// # Errors
    /// The choice cannot be removed.
    pub fn forget_current(&self) -> Result<(), Failure> {
        let path = self.current_file();
        fs::remove_file(&path).map_err(|e| Failure::io(format!("remove {}", path.display()), &e))
    }

    /// The lab a command means: the one asked for, else the one chosen, else the single one that
    /// runs, else [`LAB_DEFAULT`].
    ///
    /// # Errors
    /// Several run and none is meant, or the name makes no sense.
    pub fn choose(&self, asked: Option<&str>) -> Result<LabName, Failure> {
        if let Some(text) = asked {
            return lab_name(text);
        }
        if let Some(name) = self.current()
            && Context::read(&self.lab_dir(&name))?.is_some()
        {
            return Ok(name);
        }
        let running: Vec<LabName> =
            self.labs().into_iter().filter(Context::is_running).map(|lab| lab.name).collect();
        pick(&running)
    }

    /// The context of the lab a command means.
    ///
    /// # Errors
    /// As [`Places::choose`], or there is no such lab.
    pub fn find(&self, asked: Option<&str>) -> Result<Context, Failure> {
        let name = self.choose(asked)?;
        let dir = self.lab_dir(&name);
        Context::read(&dir)?.ok_or_else(|| self.missing(&name))
    }

    fn missing(&self, name: &LabName) -> Failure {
        let others: Vec<String> = self.labs().iter().map(|lab| lab.name.to_string()).collect();
        let up = match name.as_str() {
            LAB_DEFAULT => "faultbed up -d".to_owned(),
            name => with_lab("faultbed up -d", name),
        };
        let failure = Failure::unreachable(format!(
            "there is no lab `{name}`: no {}",
            self.lab_dir(name).join(CONTEXT_FILE).display()
        ));
        if others.is_empty() {
            failure.next(up)
        } else {
            failure.next(up).next(format!(
                "faultbed status --lab {}   # there is: {}",
                others[0],
                others.join(", ")
            ))
        }
    }
}

/// The one lab that can be meant.
fn pick(running: &[LabName]) -> Result<LabName, Failure> {
    match running {
        [] => lab_name(LAB_DEFAULT),
        [one] => Ok(one.clone()),
        many => {
            if let Some(usual) = many.iter().find(|name| name.as_str() == LAB_DEFAULT) {
                return Ok(usual.clone());
            }
            let names: Vec<&str> = many.iter().map(AsRef::as_ref).collect();
            Err(Failure::refused(format!("several labs run ({}): say which", names.join(", ")))
                .next(format!("export FAULTBED_LAB={}", names[0])))
        }
    }
}

/// Parses a lab's name.
///
/// # Errors
/// Says what is allowed.
pub fn lab_name(text: &str) -> Result<LabName, Failure> {
    LabName::parse(text).map_err(|e| Failure::refused(e.to_string()).next("faultbed context list"))
}

/// Makes a private directory for sockets, and refuses one that belongs to somebody else.
///
/// # Errors
/// It cannot be made, or is not ours alone.
pub fn make_runtime(dir: &Path) -> Result<(), Failure> {
    let say = |e: std::io::Error| Failure::io(format!("make {}", dir.display()), &e);
    if let Some(parent) = dir.parent() {
        private_dir(parent).map_err(say)?;
    }
    private_dir(dir).map_err(say)?;
    let meta = fs::symlink_metadata(dir).map_err(say)?;
    let parent_meta = dir.parent().map(fs::symlink_metadata).transpose().map_err(say)?;
    let uid = rustix::process::getuid().as_raw();
    let is_safe = |m: &fs::Metadata| m.is_dir() && is_kept(m.uid(), m.mode(), uid);
    if !meta.is_dir() || meta.uid() != uid || !parent_meta.as_ref().is_none_or(is_safe) {
        return Err(Failure::refused(format!(
            "{} belongs to somebody else, so its sockets would not be safe",
            dir.display()
        ))
        .next("export XDG_RUNTIME_DIR=…   # a directory of your own"));
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(say)
}

/// Whether nobody but `uid` and root can put something else in the place of what is in a directory: it
/// is theirs, and others may not write there, or move only what is their own, as in `/tmp`.
fn is_kept(owner: u32, mode: u32, uid: u32) -> bool {
    owner == uid || owner == 0 && (mode & 0o022 == 0 || mode & 0o1000 != 0)
}

fn private_dir(dir: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<LabName> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_single_running_lab_is_meant_and_several_are_asked_about() {
        assert_eq!(pick(&[]).unwrap().as_str(), "lab");
        assert_eq!(pick(&names(&["mine"])).unwrap().as_str(), "mine");
        assert_eq!(pick(&names(&["a", "lab"])).unwrap().as_str(), "lab");
        let failure = pick(&names(&["a", "b"])).unwrap_err();
        assert_eq!(failure.exit, crate::cli::failure::Exit::REFUSED);
        assert!(failure.to_string().ends_with("next: export FAULTBED_LAB=a"), "{failure}");
    }

    #[test]
    fn a_context_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context {
            version: 1,
            name: "lab".parse().unwrap(),
            octet: 7,
            dir: dir.path().to_owned(),
            runtime: "/run/x".into(),
            store: "embedded".into(),
            hosts: 3,
            token: "t".into(),
            ephemeral: false,
            terms: 0,
            etcd: Default::default(),
            remote: Vec::new(),
        };
        assert_eq!(Context::read(dir.path()).unwrap(), None);
        context.write().unwrap();
        assert_eq!(Context::read(dir.path()).unwrap(), Some(context));
    }

    #[test]
    fn sockets_are_kept_below_tmp_but_not_where_others_could_replace_them() {
        let rows = [
            ("ours", 7, 0o755, true),
            ("/tmp", 0, 0o1777, true),
            ("/run/user", 0, 0o755, true),
            ("open to all", 0, 0o777, false),
            ("somebody else's", 8, 0o755, false),
        ];
        for (what, owner, mode, kept) in rows {
            assert_eq!(is_kept(owner, mode, 7), kept, "{what}");
        }
    }

    #[test]
    fn sockets_stay_below_the_limit_of_their_paths() {
        let places = Places { state: "/s".into(), runtime: format!("/{}", "x".repeat(90)).into() };
        let dir = places.lab_runtime(&"lab".parse().unwrap());
        assert!(dir.as_os_str().len() + SOCKET_NAME_MAX <= SOCKET_PATH_MAX, "{}", dir.display());
    }
}
