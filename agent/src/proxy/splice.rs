//! Pipes that carry bulk through the kernel without copying, pooled, within the user's pipe budget.

use std::{io, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice},
};

use serde::{Deserialize, Serialize};

use crate::proxy::{carry::descriptor, sys};

/// The size of a pipe: bigger saves little, smaller costs twice the processor time.
const PIPE_BYTES: usize = 256 * 1024;
/// A pipe below this size is no gain over reading and writing.
const PIPE_BYTES_MIN: usize = 64 * 1024;
/// Pipes of one process. A user without privilege has 64 MiB of pipes, shared by all of the lab's proxies.
pub(crate) const PIPES_MAX: usize = 64;
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
        let count = splice(from, None, &self.write, None, PIPE_BYTES, flags)?;
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
    open: usize,
    open_max: usize,
    retry_ns: u64,
}

impl PipePool {
    pub(crate) fn new(open_max: usize) -> Self {
        Self { idle: Vec::new(), open: 0, open_max, retry_ns: 0 }
    }

    /// A pipe, or `None` where the budget is used up: then bytes are read and written.
    pub(crate) fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        if self.open >= self.open_max {
            return None;
        }
        if self.retry_ns > 0 && self.retry_ns > sys::monotonic_ns() {
            return None;
        }
        let Ok(pipe) = open_pipe() else {
            self.retry_ns = sys::monotonic_ns() + RETRY_NS;
            return None;
        };
        self.open += 1;
        Some(pipe)
    }

    /// Counts pipes that connections of another process brought with them.
    pub(crate) fn adopt(&mut self, pipes: usize) {
        self.open += pipes;
    }

    /// Takes a pipe back. One that still holds bytes of a dead connection is closed.
    pub(crate) fn give(&mut self, pipe: Pipe) {
        if pipe.bytes == 0 && self.idle.len() < IDLE_MAX {
            self.idle.push(pipe);
        } else {
            self.open -= 1;
        }
    }
}

fn open_pipe() -> io::Result<Pipe> {
    let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
    // Past the user's budget the size cannot be set, and new pipes are of a page or two.
    if fcntl_setpipe_size(&write, PIPE_BYTES).is_err()
        && fcntl_getpipe_size(&write)? < PIPE_BYTES_MIN
    {
        return Err(io::Error::other("the user's pipe budget is used up"));
    }
    Ok(Pipe { read, write, bytes: 0 })
}
