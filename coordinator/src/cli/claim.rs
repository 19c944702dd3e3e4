//! Claims the addresses of local labs, machine-wide: two labs of anybody on one machine never collide.

use std::{
    fs::{self, File},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use faultbed_common::name::LabName;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::cli::{context::Context, down::listeners, failure::Failure};

/// Where the users of this machine keep their claims.
pub const CLAIMS_DIR: &str = "/tmp/faultbed-claims";

/// The largest octet a lab can have.
const OCTET_MAX: u8 = 254;

/// How long another claim may take.
const LOCK_MAX: Duration = Duration::from_secs(60);

/// A held lock is asked for again after this.
const LOCK_EVERY: Duration = Duration::from_millis(20);

/// One claim, in a file named by its octet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    lab: LabName,
    dir: PathBuf,
}

/// All claims of the machine, locked until dropped.
#[derive(Debug)]
pub struct Claims {
    dir: PathBuf,
    _lock: File,
}

impl Claims {
    /// Locks the claims.
    ///
    /// # Errors
    /// The directory is unsafe or cannot be made, or the lock is held for too long.
    pub fn lock(dir: &Path) -> Result<Self, Failure> {
        let say =
            |e: std::io::Error| Failure::io(format!("claim addresses in {}", dir.display()), &e);
        make_shared(dir).map_err(say)?;
        let meta = fs::symlink_metadata(dir).map_err(say)?;
        if !meta.is_dir() || meta.mode() & 0o1000 == 0 {
            return Err(Failure::refused(format!(
                "{} is not a directory with the sticky bit, so claims in it would not be safe",
                dir.display()
            ))
            .next(format!("ls -ld {}   # and ask its owner to remove it", dir.display())));
        }
        let lock = open_lock(&dir.join("lock")).map_err(say)?;
        flock(&lock, LOCK_MAX).map_err(say)?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// Claims an octet for a lab: the one it had, else the lowest that is free. The caller writes
    /// `lab.json` while it holds this lock.
    ///
    /// # Errors
    /// The one it had is another lab's now, or all are taken.
    pub fn claim(&self, had: Option<u8>, lab: &LabName, dir: &Path) -> Result<u8, Failure> {
        if let Some(octet) = had {
            return match self.holder(octet) {
                Some(claim) if claim.dir != dir => Err(Failure::refused(format!(
                    "the addresses 127.77.{octet}.* of lab `{lab}` are lab `{}`'s now ({})",
                    claim.lab,
                    claim.dir.display()
                ))
                .next(format!("faultbed down --wipe --lab {}", claim.lab))
                .next(format!("faultbed down --wipe --lab {lab}   # or begin this one anew"))),
                Some(_) => Ok(octet),
                None => self.write(octet, lab, dir).map(|()| octet),
            };
        }
        let free = (1..=OCTET_MAX)
            .filter(|octet| self.holder(*octet).is_none())
            // A lab in a container with a /tmp of its own is seen by its listeners alone.
            .find(|octet| listeners::of_octet(*octet).is_empty());
        let Some(octet) = free else {
            return Err(Failure::refused(
                "all 254 address ranges of this machine are taken by labs",
            )
            .next("faultbed context list"));
        };
        self.write(octet, lab, dir)?;
        Ok(octet)
    }

    /// Gives an octet back, if it is this lab's.
    pub fn release(&self, octet: u8, dir: &Path) {
        if self.read(octet).is_some_and(|claim| claim.dir == dir) {
            let _ = fs::remove_file(self.path(octet));
        }
    }

    /// How many are taken.
    #[must_use]
    pub fn count(&self) -> usize {
        (1..=OCTET_MAX).filter(|octet| self.holder(*octet).is_some()).count()
    }

    /// The living claim of an octet; one whose lab is gone is removed.
    fn holder(&self, octet: u8) -> Option<Claim> {
        let path = self.path(octet);
        if !path.exists() {
            return None;
        }
        let Some(claim) = self.read(octet) else {
            // Of another user, or half written: not ours to judge.
            return Some(Claim { lab: "unknown".parse().ok()?, dir: path });
        };
        if is_stale(&claim, octet) && fs::remove_file(&path).is_ok() {
            return None;
        }
        Some(claim)
    }

    fn read(&self, octet: u8) -> Option<Claim> {
        serde_json::from_str(&fs::read_to_string(self.path(octet)).ok()?).ok()
    }

    fn write(&self, octet: u8, lab: &LabName, dir: &Path) -> Result<(), Failure> {
        let path = self.path(octet);
        let claim = Claim { lab: lab.clone(), dir: dir.to_owned() };
        let text = serde_json::to_string(&claim)
            .map_err(|e| Failure::no(format!("write {}: {e}", path.display())))?;
        fs::write(&path, text).map_err(|e| Failure::io(format!("write {}", path.display()), &e))
    }

    fn path(&self, octet: u8) -> PathBuf {
        self.dir.join(octet.to_string())
    }
}

/// The lab's directory is gone, or its `lab.json` names another octet.
fn is_stale(claim: &Claim, octet: u8) -> bool {
    match fs::metadata(&claim.dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return true,
        Err(_) => return false,
        Ok(_) => {}
    }
    match Context::read(&claim.dir) {
        Ok(None) => true,
        Ok(Some(context)) => context.octet != octet,
        Err(_) => false,
    }
}

fn make_shared(dir: &Path) -> std::io::Result<()> {
    match fs::DirBuilder::new().mode(0o1777).create(dir) {
        // The umask may have taken bits away.
        Ok(()) => fs::set_permissions(dir, fs::Permissions::from_mode(0o1777)),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// Opens without creating first: kernels refuse to create over other users' files in shared places.
fn open_lock(path: &Path) -> std::io::Result<File> {
    match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let options = File::options().read(true).write(true).create(true).mode(0o644).clone();
            options.open(path)
        }
        other => other,
    }
}

/// Takes a lock within a time.
///
/// # Errors
/// It is held for longer.
pub fn flock(file: &File, limit: Duration) -> std::io::Result<()> {
    let begun = Instant::now();
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < limit => {
                std::thread::sleep(LOCK_EVERY);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let why = format!("another command has held its lock for {limit:?}; try again");
                return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, why));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(dir: &Path, name: &str, octet: u8) -> PathBuf {
        let dir = dir.join(name);
        fs::create_dir_all(&dir).unwrap();
        let context = Context {
            version: 1,
            name: name.parse().unwrap(),
            octet,
            dir: dir.clone(),
            runtime: dir.clone(),
            store: "embedded".into(),
            hosts: 1,
            token: String::new(),
            ephemeral: false,
            terms: 0,
            etcd: Default::default(),
            remote: Vec::new(),
        };
        context.write().unwrap();
        dir
    }

    #[test]
    fn labs_get_octets_of_their_own_and_those_of_gone_labs_are_free_again() {
        let base = tempfile::tempdir().unwrap();
        let claims = Claims::lock(&base.path().join("claims")).unwrap();
        let name = |text: &str| text.parse::<LabName>().unwrap();
        let dir_a = base.path().join("a");
        let first = claims.claim(None, &name("a"), &dir_a).unwrap();
        lab(base.path(), "a", first);
        let dir_b = base.path().join("b");
        let second = claims.claim(None, &name("b"), &dir_b).unwrap();
        lab(base.path(), "b", second);
        assert_ne!(first, second);
        assert_eq!(claims.claim(Some(first), &name("a"), &dir_a).unwrap(), first, "kept");
        let clash = claims.claim(Some(second), &name("a"), &dir_a).unwrap_err().to_string();
        assert!(clash.contains("lab `b`'s now"), "{clash}");
        fs::remove_dir_all(&dir_a).unwrap();
        assert_eq!(claims.claim(None, &name("c"), &base.path().join("c")).unwrap(), first);
        assert_eq!(claims.count(), 1, "the claim without a lab.json is stale");
    }
}
