//! Reads what a node printed, across the files that its shim rotates.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::records::OUTPUT_FILE;

/// The most that is read for the last lines of a run.
pub const LAST_LINES_BYTES_MAX: u64 = 4 << 20;
/// A line is cut after this many bytes.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// The most that one step of a follower reads.
const FOLLOW_BYTES_MAX: u64 = 1 << 20;
/// No shim keeps more files than this.
pub const LOG_FILES_MAX: u32 = 100;

/// The path of one output file: 0 is the current one, higher numbers are older.
#[must_use]
pub fn output_path(run_dir: &Path, age: u32) -> PathBuf {
    match age {
        0 => run_dir.join(OUTPUT_FILE),
        age => run_dir.join(format!("{OUTPUT_FILE}.{age}")),
    }
}

/// The last `count` lines that a node printed, oldest first; a last line without its end counts.
///
/// # Errors
/// Where the files cannot be read; a run without output has no lines.
pub fn last_lines(run_dir: &Path, count: usize) -> io::Result<Vec<String>> {
    let mut bytes = Vec::new();
    let mut budget = LAST_LINES_BYTES_MAX;
    for age in 0..=LOG_FILES_MAX {
        let Some(mut file) = open(&output_path(run_dir, age))? else {
            // In the midst of a rotation there is no current file.
            if age == 0 {
                continue;
            }
            break;
        };
        let length = file.metadata()?.len();
        let take = length.min(budget);
        file.seek(SeekFrom::Start(length - take))?;
        let mut older = Vec::new();
        file.take(take).read_to_end(&mut older)?;
        older.extend_from_slice(&bytes);
        bytes = older;
        budget -= take;
        // One more line end than lines: what is before it is no part of the last lines.
        let ends = bytes.iter().filter(|byte| **byte == b'\n').count();
        if budget == 0 || ends > count {
            break;
        }
    }
    let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut lines: Vec<String> =
        text.rsplit(|byte| *byte == b'\n').take(count).map(line_text).collect();
    lines.reverse();
    Ok(lines)
}

/// Follows the output of one run, also across rotations.
#[derive(Debug, Clone)]
pub struct Follower {
    path: PathBuf,
    inode: u64,
    offset: u64,
    partial: Vec<u8>,
}

impl Follower {
    /// Follows from the beginning of the current file.
    #[must_use]
    pub fn from_start(run_dir: &Path) -> Self {
        Self { path: run_dir.to_owned(), inode: 0, offset: 0, partial: Vec::new() }
    }

    /// Follows what is printed from now on.
    ///
    /// # Errors
    /// Where the file cannot be looked at.
    pub fn from_end(run_dir: &Path) -> io::Result<Self> {
        let mut follower = Self::from_start(run_dir);
        if let Some(file) = open(&output_path(run_dir, 0))? {
            let metadata = file.metadata()?;
            (follower.inode, follower.offset) = (metadata.ino(), metadata.len());
        }
        Ok(follower)
    }

    /// The lines that were completed since the last call; an empty answer means there is no more
    /// for now. At most some megabytes at once.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn next_lines(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        // Rotated meanwhile: the rest of our file comes first, then all younger ones.
        let age = if self.inode == 0 { Some(0) } else { self.find()? };
        let oldest = age.unwrap_or(0);
        if age.is_none() {
            (self.inode, self.offset) = (0, 0);
        }
        for age in (0..=oldest).rev() {
            let Some(mut file) = open(&output_path(&self.path, age))? else { continue };
            let inode = file.metadata()?.ino();
            if inode != self.inode {
                (self.inode, self.offset) = (inode, 0);
            }
            file.seek(SeekFrom::Start(self.offset))?;
            let count = file.take(FOLLOW_BYTES_MAX).read_to_end(&mut self.partial)? as u64;
            self.offset += count;
            self.cut_lines(&mut lines);
            if count == FOLLOW_BYTES_MAX {
                break;
            }
        }
        Ok(lines)
    }

    /// How old the file is by now that was read last; `None` where it has been removed.
    fn find(&self) -> io::Result<Option<u32>> {
        for age in 0..=LOG_FILES_MAX {
            match open(&output_path(&self.path, age))? {
                Some(file) if file.metadata()?.ino() == self.inode => return Ok(Some(age)),
                Some(_) => {}
                None if age > 0 => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }

    fn cut_lines(&mut self, lines: &mut Vec<String>) {
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else {
            if self.partial.len() > LINE_BYTES_MAX {
                lines.push(line_text(&self.partial));
                self.partial.clear();
            }
            return;
        };
        lines.extend(self.partial[..end].split(|byte| *byte == b'\n').map(line_text));
        self.partial.drain(..=end);
    }
}

fn line_text(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(&line[..line.len().min(LINE_BYTES_MAX)]).into_owned()
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn last_lines_go_back_into_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(last_lines(dir.path(), 3).unwrap().is_empty());
        fs::write(dir.path().join("output.log.1"), "one\ntwo\nth").unwrap();
        fs::write(dir.path().join("output.log"), "ree\nfour\r\nfi").unwrap();
        assert_eq!(last_lines(dir.path(), 3).unwrap(), ["three", "four", "fi"]);
        assert_eq!(last_lines(dir.path(), 9).unwrap(), ["one", "two", "three", "four", "fi"]);
    }

    #[test]
    fn a_follower_loses_no_line_to_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let (now, old) = (dir.path().join("output.log"), dir.path().join("output.log.1"));
        let mut follower = Follower::from_start(dir.path());
        assert!(follower.next_lines().unwrap().is_empty());
        fs::write(&now, "one\ntw").unwrap();
        assert_eq!(follower.next_lines().unwrap(), ["one"]);
        fs::write(&now, "one\ntwo\nthree\n").unwrap();
        fs::rename(&now, &old).unwrap();
        fs::write(&now, "four\n").unwrap();
        assert_eq!(follower.next_lines().unwrap(), ["two", "three", "four"]);
        assert!(follower.next_lines().unwrap().is_empty());
        assert!(Follower::from_end(dir.path()).unwrap().next_lines().unwrap().is_empty());
    }
}
