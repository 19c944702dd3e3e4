//! Events of this coordinator: a bounded ring in memory, appended to a file so that a restart keeps them.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use faultbed_common::event::{Event, EventKind};
use tokio::sync::watch;
use tracing::warn;

use crate::editor::unix_ms;

/// Events kept; older ones are forgotten.
pub const EVENTS_MAX: usize = 5_000;

/// The events of one coordinator.
#[derive(Debug)]
pub struct Journal {
    inner: Mutex<Inner>,
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    ring: VecDeque<Event>,
    path: PathBuf,
    file: Option<File>,
    lines: usize,
}

impl Journal {
    /// Opens the journal at `path`, with what an earlier coordinator wrote there. A journal that
    /// cannot be read or written is no reason not to run: events are then kept in memory only.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        let mut ring: VecDeque<Event> = File::open(path)
            .map(|file| {
                BufReader::new(file)
                    .lines()
                    .map_while(Result::ok)
                    .filter_map(|line| serde_json::from_str(&line).ok())
                    .collect()
            })
            .unwrap_or_default();
        while ring.len() > EVENTS_MAX {
            ring.pop_front();
        }
        let newest = ring.back().map_or(0, |event| event.seq);
        let mut inner = Inner { ring, path: path.to_owned(), file: None, lines: 0 };
        inner.rewrite();
        Self { inner: Mutex::new(inner), newest: watch::Sender::new(newest) }
    }

    /// Adds an event.
    pub fn write(&self, kind: EventKind, subject: String, text: String) {
        let seq = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let seq = inner.ring.back().map_or(0, |event| event.seq) + 1;
            inner.push(Event { seq, at_unix_ms: unix_ms(), kind, subject, text });
            seq
        };
        self.newest.send_replace(seq);
    }

    /// The events after `seq`, oldest first.
    #[must_use]
    pub fn after(&self, seq: u64) -> Vec<Event> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.ring.iter().filter(|event| event.seq > seq).cloned().collect()
    }

    /// Tells when there is a newer event.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

impl Inner {
    fn push(&mut self, event: Event) {
        let line = serde_json::to_string(&event).unwrap_or_default();
        self.ring.push_back(event);
        if self.ring.len() > EVENTS_MAX {
            self.ring.pop_front();
        }
        if self.lines >= 2 * EVENTS_MAX {
            self.rewrite();
        } else if let Some(file) = &mut self.file {
            self.lines += 1;
            if let Err(error) = writeln!(file, "{line}") {
                warn!(%error, path = %self.path.display(), "write journal; events stay in memory");
                self.file = None;
            }
        }
    }

    /// Writes the ring as the whole file, so that the file stays bounded as the ring does.
    fn rewrite(&mut self) {
        let mut text = String::new();
        for event in &self.ring {
            text.push_str(&serde_json::to_string(event).unwrap_or_default());
            text.push('\n');
        }
        let fresh = self.path.with_extension("new");
        let replaced = std::fs::write(&fresh, text)
            .and_then(|()| std::fs::rename(&fresh, &self.path))
            .and_then(|()| OpenOptions::new().append(true).open(&self.path));
        match replaced {
            Ok(file) => (self.file, self.lines) = (Some(file), self.ring.len()),
            Err(error) => {
                warn!(%error, path = %self.path.display(), "open journal; events stay in memory");
                self.file = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_a_restart_and_numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let journal = Journal::open(&path);
        journal.write(EventKind::Node, "kv-1".to_owned(), "kv-1 is ready".to_owned());
        drop(journal);
        let journal = Journal::open(&path);
        journal.write(EventKind::Node, "kv-1".to_owned(), "kv-1 crashed".to_owned());
        let texts: Vec<_> = journal.after(0).into_iter().map(|e| (e.seq, e.text)).collect();
        assert_eq!(texts, [(1, "kv-1 is ready".to_owned()), (2, "kv-1 crashed".to_owned())]);
        assert_eq!(journal.after(1).len(), 1);
    }

    #[test]
    fn the_ring_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("events.jsonl"));
        for n in 0..EVENTS_MAX + 10 {
            journal.write(EventKind::Node, String::new(), n.to_string());
        }
        assert_eq!(journal.after(0).len(), EVENTS_MAX);
    }
}
