//! The node's output on disk: appended, rotated by size, and dropped, counted, where the disk is full.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::node::log_tail::{LOG_FILES_MAX, output_path};

/// A line that does not end is broken up once a file is this many times its size.
const OVERSIZE_MAX: u64 = 2;

/// The output files of one run.
#[derive(Debug)]
pub(super) struct Output {
    dir: PathBuf,
    file: Option<File>,
    size: u64,
    within_line: bool,
    bytes_max: u64,
    files: u32,
    dropped: u64,
    /// Of `dropped`, what no line in the output tells of yet.
    untold: u64,
}

impl Output {
    /// `bytes_max` is the size at which a file is full; `files` counts the current one too.
    pub(super) fn new(dir: &Path, bytes_max: u64, files: u32) -> Self {
        Self {
            dir: dir.to_owned(),
            file: None,
            size: 0,
            within_line: false,
            bytes_max: bytes_max.max(1),
            files: files.clamp(1, LOG_FILES_MAX),
            dropped: 0,
            untold: 0,
        }
    }

    /// Bytes that could not be written.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Writes what the node printed. Files change between two lines, when there is a next one.
    pub(super) fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let is_oversize = self.size >= self.bytes_max.saturating_mul(OVERSIZE_MAX);
            if self.size >= self.bytes_max && (!self.within_line || is_oversize) {
                self.rotate();
            }
            // However much was read at once: only the last line in a file goes beyond its size.
            let room = self.bytes_max.saturating_sub(self.size);
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let beyond = bytes.get(room..).unwrap_or_default();
            let end = beyond.iter().position(|byte| *byte == b'\n');
            let end = end.map_or(bytes.len(), |at| room + at + 1);
            let (head, rest) = bytes.split_at(end);
            self.append(head);
            self.within_line = !head.ends_with(b"\n");
            bytes = rest;
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.untold > 0 {
            let told =
                format!("\nfaultbed: {} bytes of output could not be written\n", self.untold);
            if self.try_append(told.as_bytes()).is_ok() {
                self.untold = 0;
            }
        }
        if let Err(lost) = self.try_append(bytes) {
            self.dropped += lost;
            self.untold += lost;
        }
    }

    /// Says how many bytes were not written.
    fn try_append(&mut self, mut bytes: &[u8]) -> Result<(), u64> {
        if self.file.is_none() {
            self.file = open(&self.dir).ok();
            self.size = self.file.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
        }
        let Some(file) = &mut self.file else { return Err(bytes.len() as u64) };
        while !bytes.is_empty() {
            match file.write(bytes) {
                Ok(count) if count > 0 => {
                    self.size += count as u64;
                    bytes = bytes.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return Err(bytes.len() as u64),
            }
        }
        Ok(())
    }

    /// Moves every file one up; the oldest one goes. On a disk that refuses, the file grows on.
    fn rotate(&mut self) {
        for age in (1..self.files).rev() {
            let _not_there_yet =
                fs::rename(output_path(&self.dir, age - 1), output_path(&self.dir, age));
        }
        if self.files == 1 {
            let _not_there = fs::remove_file(output_path(&self.dir, 0));
        }
        self.file = None;
        self.size = 0;
    }
}

fn open(dir: &Path) -> io::Result<File> {
    File::options().append(true).create(true).open(output_path(dir, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(dir: &Path) -> Vec<String> {
        let read = |age| fs::read_to_string(output_path(dir, age)).ok();
        (0..=LOG_FILES_MAX).map_while(read).collect()
    }

    #[test]
    fn files_change_at_the_end_of_a_line_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = Output::new(dir.path(), 12, 3);
        for line in 1..=4 {
            output.write(format!("line {line}").as_bytes());
            output.write(format!(" ends\nrow {line}").as_bytes());
            output.write(b" ends\n");
        }
        for file in kept(dir.path()) {
            assert!(file.ends_with(" ends\n"), "{file:?}");
        }
        assert_eq!(kept(dir.path()).len(), 3);
        assert_eq!(kept(dir.path())[0], "line 4 ends\nrow 4 ends\n");
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = Output::new(dir.path(), 100, 2);
        (0..10_000).for_each(|_| output.write(b"x"));
        let sizes: Vec<usize> = kept(dir.path()).iter().map(String::len).collect();
        assert!(sizes.len() == 2 && sizes.iter().all(|size| *size <= 200), "{sizes:?}");
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told_later() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("run");
        let mut output = Output::new(&dir, 1000, 2);
        output.write(b"lost\n");
        assert_eq!(output.dropped(), 5);
        fs::create_dir(&dir).unwrap();
        output.write(b"kept\n");
        let text = "\nfaultbed: 5 bytes of output could not be written\nkept\n";
        assert_eq!(kept(&dir), [text]);
        assert_eq!(output.dropped(), 5);
    }

    #[test]
    fn a_full_disk_drops_and_counts() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", output_path(dir.path(), 0)).unwrap();
        let mut output = Output::new(dir.path(), 1 << 20, 2);
        output.write(b"one\n");
        output.write(b"two\n");
        assert_eq!(output.dropped(), 8);
    }
}
