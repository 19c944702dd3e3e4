//! Paths people write, made absolute and checked before any change: programs and configuration files.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use faultbed_common::{
    search,
    spec::{SPEC_BYTES_MAX, content},
};

use crate::cli::failure::Failure;

/// Why a path will not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathProblem {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

impl PathProblem {
    /// As the end of a command.
    #[must_use]
    pub fn failure(self) -> Failure {
        Failure::refused(self.message).next(self.help)
    }
}

/// The current directory.
///
/// # Errors
/// It is gone.
pub fn current_dir() -> Result<PathBuf, Failure> {
    std::env::current_dir().map_err(|e| Failure::io("find the current directory", &e))
}

/// A path as written, made absolute: `~/` is the home directory, all else relative to `base`.
#[must_use]
pub fn absolute(text: &str, base: &Path) -> PathBuf {
    let path = match (text.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => base.join(text),
    };
    // Without following links: a link that is moved to a new build means the new build.
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if plain.file_name().is_some() => {
                // `link/..` is not where the link stands, so only real directories are folded.
                if fs::symlink_metadata(&plain).is_ok_and(|meta| meta.is_symlink()) {
                    plain.push("..");
                } else {
                    plain.pop();
                }
            }
            part => plain.push(part),
        }
    }
    plain
}

/// Where nodes run, as seen from who types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hosts {
    /// On this machine: what is in PATH here is in theirs.
    Here,
    /// On machines of their own, whose programs only they know.
    Elsewhere,
}

/// The program that `path = TEXT` means: a file of this machine, absolute and surely one that can
/// be executed; else a name or `host:/FILE`, which mean the host's own.
///
/// # Errors
/// There is none, it is no program, or this kind of path cannot be had yet.
pub fn program(text: &str, base: &Path, hosts: Hosts) -> Result<String, PathProblem> {
    if text.is_empty() {
        return Err(PathProblem {
            message: "the path is empty".to_owned(),
            help: "write a path with a slash, or a name in PATH".to_owned(),
        });
    }
    if text.contains("://") {
        let problem = |why: String| PathProblem {
            message: format!("{text}: {why}"),
            help: "curl -L URL | sha256sum   # then write URL#sha256=DIGITS".to_owned(),
        };
        return text
            .parse::<faultbed_common::program::Web>()
            .map(|web| web.to_string())
            .map_err(problem);
    }
    if let Some(on_host) = text.strip_prefix("host:") {
        // What is there, only the host knows.
        if Path::new(on_host).is_absolute() {
            return Ok(text.to_owned());
        }
        return Err(PathProblem {
            message: format!("{text:?}: a file of a host is named from its root"),
            help: "write \"host:/usr/bin/etcd\"; a bare name is looked up in the host's PATH"
                .to_owned(),
        });
    }
    if text.contains('/') {
        let path = absolute(text, base);
        check_program(&path)?;
        return into_text(&path);
    }
    // The name stays a name: it means the host's own program, also where that is elsewhere.
    if hosts == Hosts::Elsewhere || in_path(text).is_some() {
        return Ok(text.to_owned());
    }
    Err(PathProblem {
        message: format!("no program `{text}` in PATH"),
        help: format!("install it, or write a path with a slash: ./{text}"),
    })
}

fn into_text(path: &Path) -> Result<String, PathProblem> {
    path.to_str().map(str::to_owned).ok_or_else(|| PathProblem {
        message: format!("{} is not UTF-8", path.display()),
        help: "rename it".to_owned(),
    })
}

/// The first executable file of this name in PATH.
#[must_use]
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| check_program(file).is_ok())
}

/// The first executable file of this name in the directories that a blueprint names besides.
#[must_use]
pub fn in_search(name: &str, patterns: &[String]) -> Option<PathBuf> {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let home = std::env::home_dir();
    let dirs = patterns.iter().flat_map(|p| search::directories(p, home.as_deref(), &names));
    dirs.map(|dir| dir.join(name)).find(|file| check_program(file).is_ok())
}

fn check_program(path: &Path) -> Result<(), PathProblem> {
    let shown = path.display();
    let problem = |message: String, help: String| Err(PathProblem { message, help });
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let help = format!("ls {}", path.parent().unwrap_or(path).display());
            return problem(format!("{shown} does not exist"), help);
        }
        Err(e) => return problem(format!("look at {shown}: {e}"), format!("ls -ld {shown}")),
    };
    if meta.is_dir() {
        return problem(
            format!("{shown} is a directory, not a program"),
            format!("ls {shown}   # and name the program in it"),
        );
    }
    if !meta.is_file() {
        return problem(format!("{shown} is not a file"), format!("ls -l {shown}"));
    }
    if rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_err() {
        return problem(format!("{shown} is not executable"), format!("chmod +x {shown}"));
    }
    Ok(())
}

/// The content of the file that `config = TEXT` means: hosts are sent the content, not the path.
///
/// # Errors
/// It cannot be read, is too large, or is no text.
pub fn config(text: &str, base: &Path) -> Result<String, PathProblem> {
    let path = absolute(text, base);
    read_text(&path)
        .map(content)
        .map_err(|message| PathProblem { message, help: format!("ls -l {}", path.display()) })
}

/// A text file of bounded size.
///
/// # Errors
/// Says what is wrong with it.
pub fn read_text(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let shown = path.display();
    let file = fs::File::open(path).map_err(|e| format!("read {shown}: {e}"))?;
    let mut bytes = Vec::new();
    file.take(SPEC_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("read {shown}: {e}"))?;
    if bytes.len() > SPEC_BYTES_MAX {
        return Err(format!("{shown} is larger than {SPEC_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| format!("{shown} is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn programs_are_found_where_blueprints_say_the_newest_first() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["v8.5.7", "v8.5.10", "v9.0.0"] {
            fs::create_dir(dir.path().join(version)).unwrap();
        }
        let file = |version: &str| dir.path().join(version).join("pd-server");
        for version in ["v8.5.7", "v8.5.10"] {
            fs::write(file(version), "").unwrap();
            fs::set_permissions(file(version), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let pattern = format!("{}/v*", dir.path().display());
        assert_eq!(in_search("pd-server", std::slice::from_ref(&pattern)), Some(file("v8.5.10")));
        assert_eq!(in_search("tikv-server", &[pattern]), None);
    }

    #[test]
    fn paths_are_relative_to_their_file_and_folded() {
        assert_eq!(absolute("bin/./etcd", Path::new("/a/b")), Path::new("/a/b/bin/etcd"));
        assert_eq!(absolute("../bin/etcd", Path::new("/a/b")), Path::new("/a/bin/etcd"));
        assert_eq!(absolute("/x/etcd", Path::new("/a/b")), Path::new("/x/etcd"));
    }

    #[test]
    fn each_way_a_path_can_be_wrong_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("etcd");
        let check =
            |text: &str| program(text, dir.path(), Hosts::Here).map_err(|problem| problem.message);
        assert!(check("./etcd").unwrap_err().contains("does not exist"));
        fs::write(&file, "#!/bin/sh\n").unwrap();
        if rustix::fs::access(&file, rustix::fs::Access::EXEC_OK).is_err() {
            assert!(check("./etcd").unwrap_err().contains("is not executable"));
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(check("./etcd").unwrap(), file.to_str().unwrap());
        assert!(check("./").unwrap_err().contains("is a directory"));
        assert!(check("no-such-program-anywhere").unwrap_err().contains("in PATH"));
        assert_eq!(check("sh").unwrap(), "sh");
        assert_eq!(check("host:/usr/bin/etcd").unwrap(), "host:/usr/bin/etcd");
        assert!(check("host:bin/etcd").unwrap_err().contains("from its root"));
        let elsewhere = |text| program(text, dir.path(), Hosts::Elsewhere);
        assert_eq!(elsewhere("no-such-program-anywhere").unwrap(), "no-such-program-anywhere");
        assert!(elsewhere("./no-such").is_err(), "files are pushed from here");
        assert!(check("https://x/y").unwrap_err().contains("what the file holds"));
        let web = format!("https://x/y#sha256={}", "ab".repeat(32));
        assert_eq!(check(&web).unwrap(), web);
    }

    #[test]
    fn a_file_of_ten_megabytes_is_refused_unread() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("big");
        fs::write(&file, vec![b' '; 10_000_000]).unwrap();
        assert!(read_text(&file).unwrap_err().contains("larger than 1000000 bytes"));
    }
}
