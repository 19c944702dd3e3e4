//! The proxy's own upgrade: a running process gives listeners, connections and rules to its successor.
//!
//! The successor asks over the control socket, and sends one end of a line of its own with it. The old
//! one stops accepting (connections wait in the queues of the listeners, which both processes then
//! hold), has its workers stand still and send what they have, and says `End`. From then on:
//!
//! | the successor | the old one |
//! |---|---|
//! | has built everything, has touched nothing: `Ready` | waits |
//! | waits | `Yours`: it moves no byte any more |
//! | puts the rules in force, carries, accepts: `Taken` | ends |
//!
//! If the successor ends before it has heard `Yours`, the old one goes on as if nothing had happened.
//! The kernel tells it: a line whose end was closed with a message unheard is reset, not ended. If the
//! successor had heard it, bytes may be gone with it: then the old one resets every connection, since
//! a stream that goes on must be whole, and goes on with listeners and rules.
//!
//! Faults act all the while: what a deaf or mute socket does, and the steering of SYNs, is the
//! kernel's, and stays with the sockets; and of what is not, no byte moves. A deadline that falls into
//! this time is late by what is left of it.

mod give;
mod line;
mod take;

pub(crate) use give::{Decision, Estate, Freeze, Given, give};
pub(crate) use line::{FORMAT, FORMAT_OLDEST, Line, Word};
#[cfg(test)]
pub(crate) use take::ask;
pub(crate) use take::{Fetched, fetch};

use std::{io, os::fd::OwnedFd};

use serde::{Deserialize, Serialize};

use crate::proxy::{
    carry::{Luggage, descriptor, pack},
    engine::Inheritance,
    handover::line::Content,
    pair::Pair,
    timers::Alarm,
};

/// Descriptors after which a parcel is sent; a connection has six at most. Each is duplicated for
/// that time, which must be possible where connections have all but the reserve.
const PARCEL_DESCRIPTORS: usize = 100;
/// Bytes after which a parcel is sent.
const PARCEL_BYTES: usize = 4 * 1024 * 1024;

/// What is not a listener's or a connection's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Base {
    /// The lock of the directory.
    #[serde(with = "descriptor")]
    pub(crate) lock: OwnedFd,
    /// The control socket.
    #[serde(with = "descriptor")]
    pub(crate) control: OwnedFd,
    pub(crate) inheritance: Inheritance,
}

/// A connection, and when it must be looked at again, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound(deserialize = "P: Deserialize<'de>"))]
pub(crate) struct Carried<P = Box<Pair>> {
    pub(crate) pair: P,
    pub(crate) alarms: Vec<(u64, Alarm)>,
}

/// Fills parcels with documents, one a line, and sends each that is full.
#[derive(Debug)]
pub(crate) struct Shipper<'a> {
    line: &'a Line,
    content: Content,
    document: Vec<u8>,
    luggage: Luggage,
}

impl<'a> Shipper<'a> {
    fn new(line: &'a Line, content: Content) -> Self {
        Self { line, content, document: Vec::new(), luggage: Luggage::default() }
    }

    /// Adds one thing.
    ///
    /// # Errors
    /// Where it cannot be written or sent.
    pub(crate) fn add(&mut self, value: &impl Serialize) -> io::Result<()> {
        self.document.extend(pack(&mut self.luggage, value)?);
        self.document.push(b'\n');
        let bytes = self.document.len() + self.luggage.bytes.len();
        if self.luggage.descriptors.len() >= PARCEL_DESCRIPTORS || bytes >= PARCEL_BYTES {
            self.send()?;
        }
        Ok(())
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// Where it cannot be sent.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        if !self.document.is_empty() {
            self.line.ship(self.content, &self.document, &self.luggage)?;
        }
        (self.document, self.luggage) = (Vec::new(), Luggage::default());
        Ok(())
    }
}
