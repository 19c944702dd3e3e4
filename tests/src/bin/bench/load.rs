//! The load generator: one client and one server for every target, in threads of the benchmark.
//!
//! It must not be the bottleneck: what it sends is one buffer again and again, and what it receives
//! it does not look at. But it does receive it: a server that has the kernel drop what arrived
//! (MSG_TRUNC) is faster than any there is, and hides what congestion control costs.

pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod socket;

/// The first byte of a connection to the stream port says what the server does with the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Counts what comes.
    Sink,
    /// Sends back what comes.
    Echo,
    /// Notes when how much came.
    Record,
    /// Reads messages of 8 bytes, the moment they were sent, and notes how long they took.
    Stamps,
}

impl Mode {
    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Sink => b'S',
            Self::Echo => b'E',
            Self::Record => b'R',
            Self::Stamps => b'T',
        }
    }

    pub(crate) fn of_byte(byte: u8) -> Option<Self> {
        [Self::Sink, Self::Echo, Self::Record, Self::Stamps].into_iter().find(|m| m.byte() == byte)
    }
}

/// Bytes written and read at once in bulk.
pub(crate) const BULK_BYTES: usize = 256 * 1024;
/// Bytes of a request and of its response.
pub(crate) const REQUEST_BYTES: usize = 64;

/// Which processor a thread stays on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    First,
    Last,
}

/// Keeps the calling thread on one processor. Client and server of requests are on different ones, as
/// if on different machines. Else it is chance, renewed for every target, whether an answer has to
/// wake a processor, which takes longer than everything else about it, and which of four busy
/// threads shares a processor with which.
pub(crate) fn stay_at(place: Place) {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return };
    let mut usable = (0..rustix::thread::CpuSet::MAX_CPU).filter(|at| allowed.is_set(*at));
    let chosen = match place {
        Place::First => usable.next(),
        Place::Last => usable.next_back(),
    };
    let mut set = rustix::thread::CpuSet::new();
    set.set(chosen.unwrap_or(0));
    let _anywhere = rustix::thread::sched_setaffinity(None, &set);
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
