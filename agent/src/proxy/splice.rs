//! Pipes that carry bulk through the kernel without copying, pooled, within the user's pipe budget.

use std::{io, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice},
};

use serde::{Deserialize, Serialize};

use crate::proxy::{carry::descriptor, sys};

/// The size of a pipe while few connections carry bulk: it moves a byte for three quarters of the
/// processor time that one of [`PIPE_BYTES`] takes, which takes half of what one of 64 KiB does.
const BIG_PIPE_BYTES: usize = 1024 * 1024;
/// The size of a pipe once many do.
const PIPE_BYTES: usize = 256 * 1024;
/// A pipe below this size is no gain over reading and writing.
const PIPE_BYTES_MIN: usize = 64 * 1024;
/// Pipes of one process, were all of [`PIPE_BYTES`]. A user without privilege has 64 MiB of pipes,
/// shared by all of the lab's proxies.
pub(crate) const PIPES_MAX: usize = 80;
/// The part of its budget that a worker spends on big pipes.
const BIG_PART: usize = 2;
/// Pipes that are kept although no connection uses them.
const IDLE_MAX: usize = 4;
/// After the user's budget was found used up, it is tried again.
const RETRY_NS: u64 = 1_000_000_000;

/// A pipe and how many bytes are in it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pipe {
    #[serde(with = "descriptor")]
    read: OwnedFd,
    #[serde(with = "descriptor")]
    write: OwnedFd,
    bytes: usize,
    #[serde(default = "ordinary_size")]
    size: usize,
}

/// The size of a pipe from a process that did not say: every pipe was of this one then.
fn ordinary_size() -> usize {
    PIPE_BYTES
}

impl Pipe {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Moves what has arrived at `from` into the empty pipe; 0 is the end of the stream.
    ///
    /// # Errors
    /// As `splice(2)`; EAGAIN is that nothing has arrived, since the pipe is empty.
    pub(crate) fn fill(&mut self, from: &OwnedFd) -> Result<usize, Errno> {
        debug_assert_eq!(self.bytes, 0, "fill only an empty pipe: else EAGAIN is ambiguous");
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let count = splice(from, None, &self.write, None, self.size, flags)?;
        self.bytes += count;
        Ok(count)
    }

    /// Moves what is in the pipe to `to`.
    ///
    /// # Errors
    /// As `splice(2)`; EAGAIN is that `to` takes nothing now.
    pub(crate) fn drain(&mut self, to: &OwnedFd) -> Result<usize, Errno> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let count = splice(&self.read, None, to, None, self.bytes, flags)?;
        self.bytes -= count.min(self.bytes);
        Ok(count)
    }
}

/// One worker's share of the pipes.
#[derive(Debug)]
pub(crate) struct PipePool {
    idle: Vec<Pipe>,
    open_bytes: usize,
    budget_bytes: usize,
    retry_ns: u64,
}

impl PipePool {
    /// A pool of as many pipes of the ordinary size as `pipes`, or fewer bigger ones.
    pub(crate) fn new(pipes: usize) -> Self {
        Self { idle: Vec::new(), open_bytes: 0, budget_bytes: pipes * PIPE_BYTES, retry_ns: 0 }
    }

    /// A pipe, or `None` where the budget is used up: then bytes are read and written.
    pub(crate) fn take(&mut self) -> Option<Pipe> {
        // The last one in has its pages in the processor's cache.
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        let size = self.next_size()?;
        if self.retry_ns > 0 && self.retry_ns > sys::monotonic_ns() {
            return None;
        }
        let Ok(pipe) = open_pipe(size) else {
            self.retry_ns = sys::monotonic_ns() + RETRY_NS;
            return None;
        };
        self.open_bytes += pipe.size;
        Some(pipe)
    }

    /// How big the next pipe may be.
    fn next_size(&self) -> Option<usize> {
        if self.open_bytes + BIG_PIPE_BYTES <= self.budget_bytes / BIG_PART {
            return Some(BIG_PIPE_BYTES);
        }
        (self.open_bytes + PIPE_BYTES <= self.budget_bytes).then_some(PIPE_BYTES)
    }

    /// Counts pipes that connections of another process brought with them, as ordinary ones: where
    /// they are big, the budget is passed until they are given back, and nothing is ever lost to it.
    pub(crate) fn adopt(&mut self, pipes: usize) {
        self.open_bytes += pipes * PIPE_BYTES;
    }

    /// Takes a pipe back. One that still holds bytes of a dead connection is closed.
    pub(crate) fn give(&mut self, pipe: Pipe) {
        if pipe.bytes == 0 && self.idle.len() < IDLE_MAX {
            self.idle.push(pipe);
        } else {
            self.open_bytes = self.open_bytes.saturating_sub(pipe.size);
        }
    }
}

/// A pipe of `size`, or of what the user's budget leaves.
fn open_pipe(size: usize) -> io::Result<Pipe> {
    let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
    // Past the user's budget the size cannot be set, and new pipes are of a page or two.
    let granted = [size, PIPE_BYTES].into_iter().find(|s| fcntl_setpipe_size(&write, *s).is_ok());
    let size = match granted {
        Some(size) => size,
        None => fcntl_getpipe_size(&write)?,
    };
    if size < PIPE_BYTES_MIN {
        return Err(io::Error::other("the user's pipe budget is used up"));
    }
    Ok(Pipe { read, write, bytes: 0, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_pipes_are_big_and_many_stay_within_the_budget() {
        let mut pool = PipePool::new(32);
        let mut taken = Vec::new();
        while let Some(pipe) = pool.take() {
            taken.push(pipe);
            assert!(taken.len() <= 4 + 16, "4 of 1 MiB, then 16 of 256 KiB");
        }
        // A user whose budget is used up by others gets fewer and smaller ones.
        let bytes: usize = taken.iter().map(|pipe| pipe.size).sum();
        assert!(bytes <= 8 * 1024 * 1024, "{bytes}");
        assert_eq!(pool.open_bytes, bytes);
        let count = taken.len();
        taken.drain(..).for_each(|pipe| pool.give(pipe));
        assert_eq!(pool.idle.len(), count.min(IDLE_MAX));
        let kept: usize = pool.idle.iter().map(|pipe| pipe.size).sum();
        assert_eq!(pool.open_bytes, kept, "what is closed is free again");
    }
}
