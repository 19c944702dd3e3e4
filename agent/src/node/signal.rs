//! What an agent does to a run: signals to node and shim, new orders, waiting for the end.
//!
//! Signals go through pidfds that were compared with the record first, so none can ever reach a
//! process that merely has the pid of one of ours.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::process::{Signal, pidfd_send_signal};

use super::{
    process::ProcessId,
    records::{ASKED_FILE, AskedRecord, ORDERS_FILE, RunRecord, ShimOrders, write_record},
};

/// Sends `asked.signal` to the node's main process, after noting that it was asked for.
///
/// # Errors
/// `NotFound` where it is gone; else what refused the note or the signal.
pub fn signal_node(record: &RunRecord, run_dir: &Path, asked: &AskedRecord) -> io::Result<()> {
    write_record(run_dir, ASKED_FILE, asked)?;
    send(&record.node, asked.signal)
}

/// Has the shim end every process of the run with SIGKILL, after noting that it was asked for. The
/// run is over when [`watch`] says so.
///
/// # Errors
/// `NotFound` where the shim is gone; else what refused the note or the signal.
pub fn kill_tree(record: &RunRecord, run_dir: &Path, asked: &AskedRecord) -> io::Result<()> {
    write_record(run_dir, ASKED_FILE, asked)?;
    send(&record.shim, libc::SIGTERM)
}

/// Gives the shim new orders; it follows them within milliseconds.
///
/// # Errors
/// `NotFound` where the shim is gone; else what refused the file or the signal.
pub fn set_orders(run_dir: &Path, record: &RunRecord, orders: &ShimOrders) -> io::Result<()> {
    write_record(run_dir, ORDERS_FILE, orders)?;
    send(&record.shim, libc::SIGHUP)
}

/// A descriptor that becomes readable when the shim is gone, and with it the run.
///
/// # Errors
/// `NotFound` where it is gone already.
pub fn watch(record: &RunRecord) -> io::Result<OwnedFd> {
    open_living(&record.shim)
}

/// Sends a signal to exactly this process.
///
/// # Errors
/// `NotFound` where it is gone; `InvalidInput` where `signal` is no signal.
pub fn send(process: &ProcessId, signal: i32) -> io::Result<()> {
    let signal = Signal::from_named_raw(signal).ok_or(io::ErrorKind::InvalidInput)?;
    match pidfd_send_signal(open_living(process)?, signal) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::SRCH) => Err(io::ErrorKind::NotFound.into()),
        Err(errno) => Err(errno.into()),
    }
}

fn open_living(process: &ProcessId) -> io::Result<OwnedFd> {
    match process.open()? {
        Some((fd, stat)) if !stat.ended() => Ok(fd),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}
