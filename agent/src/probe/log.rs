//! Looks for a line in a node's output, reading only what is new.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use regex::Regex;

/// At most so much is read for one question; the next goes on from there.
const BYTES_MAX: u64 = 1 << 20;

/// Where reading goes on, and the line if it was found: what was printed once stays true.
#[derive(Debug, Default)]
pub(super) struct Reader {
    inode: u64,
    offset: u64,
    pattern: Option<(String, Regex)>,
    found: Option<String>,
}

impl Reader {
    pub(super) async fn find(
        &mut self,
        path: &Path,
        pattern: &str,
    ) -> Result<Option<String>, String> {
        // A local file is read in microseconds; giving way to others costs more.
        tokio::task::yield_now().await;
        if self.pattern.as_ref().is_none_or(|(text, _)| text != pattern) {
            let regex = Regex::new(pattern).map_err(|error| error.to_string())?;
            *self = Self { pattern: Some((pattern.to_owned(), regex)), ..Self::default() };
        }
        if self.found.is_none() {
            match self.read(path) {
                Ok(found) => self.found = found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(self.found.clone())
    }

    fn read(&mut self, path: &Path) -> io::Result<Option<String>> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.ino() != self.inode || metadata.len() < self.offset {
            (self.inode, self.offset) = (metadata.ino(), 0);
        }
        let end = metadata.len().min(self.offset + BYTES_MAX);
        file.seek(SeekFrom::Start(self.offset))?;
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        while self.offset < end {
            line.clear();
            let read = lines.read_until(b'\n', &mut line)?;
            // The rest of a line that is being written comes with the next question.
            if read == 0 || line.last() != Some(&b'\n') {
                break;
            }
            self.offset += u64::try_from(read).unwrap_or(0);
            let text = String::from_utf8_lossy(&line);
            let is_match = self.pattern.as_ref().is_some_and(|(_, regex)| regex.is_match(&text));
            if is_match {
                return Ok(Some(text.trim_end().to_owned()));
            }
        }
        Ok(None)
    }
}
