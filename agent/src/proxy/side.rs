//! One socket of a connection: what epoll said of it, and how it is tuned, made deaf and reset.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::OnceLock,
    time::Duration,
};

use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, ipproto, recv,
        send, shutdown, socket_with, sockopt,
    },
};

use serde::{Deserialize, Serialize};

use crate::proxy::{carry::descriptor, sys};

/// An idle connection is asked for a sign of life after this time.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// After a heal at once: whatever the peer said meanwhile, also that it is gone, was dropped.
const KEEPALIVE_IDLE_HEALED: Duration = Duration::from_secs(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_COUNT: u32 = 3;
/// What the kernel takes in before it is read. Left to itself it grows to many megabytes as soon as a
/// sender is faster than its receiver; then bytes leave the processor's cache before anybody reads
/// them, which costs sender, proxy and receiver a quarter of what they carry.
const UNREAD_BYTES_MAX: usize = 512 * 1024;
/// The largest such bound that the system grants; asking for more would leave too little.
const GRANTED: &str = "/proc/sys/net/core/rmem_max";
/// How long a socket without an answer lives during a cut: longer than the quarter of an hour that
/// its peer has (tcp_retries2), and not for ever, should this process die meanwhile.
const PATIENCE_CUT_MS: u32 = 20 * 60 * 1000;
/// The longest time between its retransmissions meanwhile.
const BACKOFF_CUT: Duration = Duration::from_secs(1);
/// What epoll is asked for, once, when a socket joins a worker.
pub(crate) const INTEREST: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

/// A socket and what is known of its readiness. Edge-triggered: a flag falls only when the kernel
/// says EAGAIN, and rises only with an event.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Side {
    #[serde(with = "descriptor")]
    pub(crate) fd: OwnedFd,
    local: IpAddr,
    peer: SocketAddr,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer has ended its stream; a read that is short does not mean that nothing is left.
    pub(crate) hung: bool,
    /// The kernel has reported an error.
    pub(crate) failed: bool,
    deaf: bool,
    /// Deaf for the moment, because all that arrives is lost.
    storm: bool,
    mute: bool,
    /// The kernel stamps what arrives.
    #[serde(default)]
    stamped: bool,
    /// Bytes written to it since it was made.
    pub(crate) written: u64,
}

impl Side {
    pub(crate) fn new(fd: OwnedFd, local: IpAddr, peer: SocketAddr) -> Self {
        Self {
            fd,
            local,
            peer,
            readable: false,
            writable: false,
            hung: false,
            failed: false,
            deaf: false,
            storm: false,
            mute: false,
            stamped: false,
            written: 0,
        }
    }

    /// Notes what epoll said.
    pub(crate) fn note(&mut self, flags: EventFlags) {
        let ended = EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR;
        self.hung |= flags.intersects(ended);
        self.failed |= flags.contains(EventFlags::ERR);
        self.readable |= flags.intersects(EventFlags::IN | ended);
        let writable = EventFlags::OUT | EventFlags::HUP | EventFlags::ERR;
        self.writable |= flags.intersects(writable);
    }

    /// Reads what has arrived.
    ///
    /// # Errors
    /// `AGAIN` where nothing has; any other error is the end of the connection.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        self.set_stamped(false);
        let result = retry(|| recv(&self.fd, &mut *into, RecvFlags::DONTWAIT).map(|(n, _)| n));
        self.note_read(result, into.len());
        result
    }

    /// As [`Self::read`], with how many nanoseconds ago the last of the bytes arrived, where the
    /// kernel says so.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn read_aged(&mut self, into: &mut [u8]) -> Result<(usize, Option<u64>), Errno> {
        self.set_stamped(true);
        let result = retry(|| sys::stamps::recv(&self.fd, &mut *into));
        self.note_read(result.map(|(count, _)| count), into.len());
        result
    }

    fn set_stamped(&mut self, stamped: bool) {
        if self.stamped != stamped {
            self.stamped = stamped;
            // Without stamps the time of bytes runs from when they are read.
            let _no_stamps = sys::stamps::set(&self.fd, stamped);
        }
    }

    fn note_read(&mut self, result: Result<usize, Errno>, wanted: usize) {
        match result {
            Ok(count) if count < wanted && !self.hung => self.readable = false,
            Err(Errno::AGAIN) => self.readable = false,
            Ok(_) | Err(_) => {}
        }
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// Any error but `AGAIN`, which is 0 bytes, is the end of the connection.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let result = retry(|| send(&self.fd, bytes, flags));
        self.count_written(result, bytes.len())
    }

    /// Notes the result of a write, or of a splice, of `wanted` bytes.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(crate) fn count_written(
        &mut self,
        result: Result<usize, Errno>,
        wanted: usize,
    ) -> Result<usize, Errno> {
        let count = match result {
            Ok(count) => count,
            Err(Errno::AGAIN) => 0,
            Err(error) => return Err(error),
        };
        self.written += count as u64;
        if count < wanted {
            self.writable = false;
        }
        Ok(count)
    }

    /// Passes on the end of a stream.
    pub(crate) fn finish(&self) {
        // A peer that is gone has no use for it, and the error shows on the other direction.
        let _gone = shutdown(&self.fd, Shutdown::Write);
    }

    /// Bytes that have arrived and were not read.
    pub(crate) fn unread_bytes(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.fd).unwrap_or(0)
    }

    /// Makes the kernel drop what arrives, or hear again. Says whether it changed anything.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn set_deaf(&mut self, deaf: bool) -> io::Result<bool> {
        if self.deaf == deaf {
            return Ok(false);
        }
        sys::set_deaf(&self.fd, self.local, deaf || self.storm)?;
        self.deaf = deaf;
        // A deaf socket hears no answers to its keepalives: it would end a connection that a
        // real network keeps.
        sockopt::set_socket_keepalive(&self.fd, !deaf)?;
        if deaf {
            // Nor may what it had sent before, and sends again without an answer, end it. An older
            // kernel takes its time after the heal instead.
            sockopt::set_tcp_user_timeout(&self.fd, PATIENCE_CUT_MS)?;
            let _older_kernel = sys::bound_backoff(&self.fd, BACKOFF_CUT);
        } else {
            sockopt::set_tcp_keepidle(&self.fd, KEEPALIVE_IDLE_HEALED)?;
        }
        Ok(true)
    }

    /// Loses all that arrives, or no more of it: as [`Self::set_deaf`], for so short a time that
    /// nothing else need change.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn set_storm(&mut self, storm: bool) -> io::Result<()> {
        if self.storm != storm {
            self.storm = storm;
            sys::set_deaf(&self.fd, self.local, self.deaf || storm)?;
        }
        Ok(())
    }

    /// Makes the kernel send nothing either, where it can: probes, retransmissions and the end of
    /// the connection, should this process die.
    pub(crate) fn set_mute(&mut self, mute: bool) {
        if self.mute == mute {
            return;
        }
        match sys::set_mute(&self.fd, self.peer, mute) {
            Ok(()) => self.mute = mute,
            // A kernel without signatures: what is deaf gets no acknowledgement, and falls silent
            // after what it has already been allowed to send.
            Err(error) => tracing::debug!(%error, mute, "make socket mute"),
        }
    }

    pub(crate) fn is_mute(&self) -> bool {
        self.mute
    }

    /// Bytes written to it that the kernel has not sent.
    pub(crate) fn unsent_bytes(&self) -> u64 {
        sys::unsent_bytes(&self.fd)
    }

    /// Whether its kernel may yet send something of its own accord, as long as it hears its peer: what
    /// it has not sent, and what its peer has not acknowledged. Mostly the peer has the latter and its
    /// word is on the way; but nothing tells that from bytes that were lost, which are sent again.
    pub(crate) fn owes_bytes(&self) -> bool {
        sys::unacknowledged_bytes(&self.fd) > 0
    }

    pub(crate) fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Back to the ordinary pace of keepalives and retransmissions, some time after a heal: before,
    /// a long cut would count as time without an answer.
    pub(crate) fn settle(&self) {
        if self.deaf {
            return;
        }
        let _gone = sockopt::set_tcp_keepidle(&self.fd, KEEPALIVE_IDLE);
        let _gone = sockopt::set_tcp_user_timeout(&self.fd, 0);
        let _older_kernel = sys::bound_backoff(&self.fd, Duration::ZERO);
    }

    /// Ends the connection with a real RST when the descriptor is closed.
    pub(crate) fn reset_on_close(&self) {
        let _gone = sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO));
    }
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Sets what both sockets of a connection have. Accepted ones inherit it from their listener.
///
/// # Errors
/// As the system says.
pub(crate) fn tune(fd: &OwnedFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(fd, true)?;
    sockopt::set_socket_keepalive(fd, true)?;
    sockopt::set_tcp_keepidle(fd, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(fd, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(fd, KEEPALIVE_COUNT)?;
    sys::bound_unsent(fd)?;
    static BOUNDED: OnceLock<bool> = OnceLock::new();
    let granted = || fs::read_to_string(GRANTED).ok()?.trim().parse::<usize>().ok();
    if *BOUNDED.get_or_init(|| granted().is_some_and(|bytes| bytes >= UNREAD_BYTES_MAX)) {
        sockopt::set_socket_recv_buffer_size(fd, UNREAD_BYTES_MAX)?;
    }
    // Which one is allowed does not change while the process lives. The default may be bbr, which
    // halves what loopback can do.
    static CONGESTION: OnceLock<Option<&str>> = OnceLock::new();
    let allowed = |name: &&&str| sockopt::set_tcp_congestion(fd, name).is_ok();
    let name = CONGESTION.get_or_init(|| ["cubic", "reno"].iter().find(allowed).copied());
    if let Some(name) = name {
        let _as_before = sockopt::set_tcp_congestion(fd, name);
    }
    Ok(())
}

/// A new TCP socket for an address, tuned and non-blocking.
///
/// # Errors
/// As the system says, such as EMFILE.
pub(crate) fn new_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    tune(&fd)?;
    Ok(fd)
}
