//! A disk for tests, in memory: it can break off after any operation, tear a write, lose what was not synced, or be full.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use rand::{Rng, rngs::StdRng};
use redb::StorageBackend;

/// What a disk holds. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Medium(Arc<Mutex<State>>);

#[derive(Debug, Clone, Default)]
struct State {
    /// What a process that goes on sees.
    bytes: Vec<u8>,
    /// What has reached the disk for certain.
    synced: Vec<u8>,
    /// What came after, in order.
    unsynced: Vec<Change>,
    operations: u64,
    /// Everything fails after so many operations.
    breaks_after: Option<u64>,
    full: bool,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                // A write can outlive the resize before it, as on a real disk.
                let end = offset + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(data);
            }
            Self::Resize(len) => bytes.resize(*len, 0),
        }
    }
}

impl Medium {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Another disk with the same on it.
    pub(super) fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.state().clone())))
    }

    /// Operations that changed anything so far.
    pub(super) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Breaks off after this many operations, as if the process were killed; the last one is torn.
    pub(super) fn breaks_after(&self, operations: u64) {
        self.state().breaks_after = Some(operations);
    }

    /// Works again, with all that was written: a process was killed, the system was not.
    pub(super) fn mend(&self) {
        self.state().breaks_after = None;
    }

    /// Works again after the power failed: some of what was not synced is lost, none in order.
    pub(super) fn power_cycle(&self, rng: &mut StdRng) {
        let mut state = self.state();
        let mut bytes = state.synced.clone();
        for change in std::mem::take(&mut state.unsynced) {
            if rng.random() {
                change.apply(&mut bytes);
            }
        }
        state.bytes.clone_from(&bytes);
        state.synced = bytes;
        state.breaks_after = None;
    }

    /// Refuses to write, or stops refusing.
    pub(super) fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    /// How large it is.
    pub(super) fn size(&self) -> usize {
        self.state().bytes.len()
    }
}

impl State {
    /// Counts an operation; `Ok(true)` is one that is torn.
    fn operation(&mut self) -> io::Result<bool> {
        if self.full {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        match self.breaks_after {
            Some(limit) if self.operations >= limit => Err(io::Error::other("killed")),
            limit => {
                self.operations += 1;
                Ok(limit == Some(self.operations))
            }
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.bytes);
        self.unsynced.push(change);
    }
}

impl StorageBackend for Medium {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let state = self.state();
        let from = state.bytes.get(offset..offset + out.len());
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        state.change(Change::Resize(usize::try_from(len).unwrap()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        let unsynced = std::mem::take(&mut state.unsynced);
        for change in unsynced {
            change.apply(&mut state.synced);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let torn = state.operation()?;
        let data = if torn { &data[..data.len() / 2] } else { data };
        state.change(Change::Write(usize::try_from(offset).unwrap(), data.to_vec()));
        if torn { Err(io::Error::other("killed")) } else { Ok(()) }
    }
}
