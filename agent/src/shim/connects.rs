//! The thread that answers for connects: binds those to proxies of the lab to what names the node.
//! What would listen where a proxy does is bound to the private address, and what waits for a disk that
//! is to stand still is not answered before it may go on.
//!
//! While it works on a call, the calling thread of the node waits, so it does nothing else: no file,
//! no allocation, no lock but the one around a table that is swapped whole. Whatever happens, the
//! answer is to go on: a connect that cannot be named goes out unbound and is counted, and what the
//! kernel then says is what it would have said without us.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use faultbed_common::report::Identity;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{AddressFamily, SocketType, bind, getsockname, sockopt},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use super::{
    filter::SYNCS,
    peer_memory::{RawAddress, read_address, read_message_address},
    ports::Ports,
    sockaddr::{DialTable, Source, bindable, parse},
    stall::Stall,
};
use crate::node::records::IdentityRecord;

/// The thread's stack; it uses less than a tenth of it.
const STACK_BYTES: usize = 64 * 1024;
/// Threads of the node whose descriptors are kept open: opening one costs some microseconds.
const CALLERS_MAX: usize = 16;
/// Room for the kernel's notification, which may grow in later releases.
const NOTIFICATION_WORDS: usize = 32;
/// Makes the kernel hand the processor over between caller and thread (Linux 6.6).
const SYNC_WAKE_UP: libc::c_ulong = 1;
/// Opens a pidfd for a thread that need not lead its process (Linux 6.9).
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);

/// What the thread shares with the shim's main thread.
#[derive(Debug)]
pub(super) struct Shared {
    dials: Mutex<DialTable>,
    counters: Counters,
    /// A change of a counter has been announced and not yet been read.
    announced: AtomicBool,
    /// Wakes the main thread, which writes the counters down.
    wake: OwnedFd,
    /// Calls that wait for a disk.
    stall: Stall,
    /// Where the answers go that calls which waited get in the end.
    answers: OnceLock<OwnedFd>,
}

#[derive(Debug, Default)]
struct Counters {
    bound: AtomicU64,
    unread: AtomicU64,
    nodump: AtomicU64,
    app_bound: AtomicU64,
    no_port: AtomicU64,
}

impl Shared {
    /// `wake` is an eventfd that is written when counters change after [`Shared::record`].
    pub(super) fn new(dials: DialTable, wake: OwnedFd) -> Self {
        let (dials, counters) = (Mutex::new(dials), Counters::default());
        let (announced, stall) = (AtomicBool::new(false), Stall::default());
        Self { dials, counters, announced, wake, stall, answers: OnceLock::new() }
    }

    /// Keeps calls that wait for a disk waiting from now on, or lets them go on. Without a listener
    /// there are none.
    pub(super) fn stall(&self, stands_still: bool) {
        if stands_still {
            self.stall.begin();
            return;
        }
        let waited = self.stall.end();
        if let Some(listener) = self.answers.get() {
            waited.into_iter().for_each(|call| answer(listener, call, None));
        }
    }

    /// Puts another table in the place of the current one.
    pub(super) fn set_dials(&self, dials: DialTable) {
        let mut current = self.dials.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *current, dials);
        drop(current);
        // Freed only now, so that no caller waits for it.
        drop(old);
    }

    /// The counters now. `listener` is why there is none, if so.
    pub(super) fn record(&self, listener: Result<(), &str>) -> IdentityRecord {
        self.announced.store(false, Relaxed);
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let counters = &self.counters;
        let mut record = IdentityRecord {
            identity: Identity::Address,
            bound: read(&counters.bound),
            unread: read(&counters.unread),
            nodump: read(&counters.nodump),
            app_bound: read(&counters.app_bound),
            no_port: read(&counters.no_port),
        };
        record.identity = identity(&record, listener);
        record
    }

    /// Empties the eventfd after a wake-up.
    pub(super) fn hear_wake(&self) {
        let mut count = [0; 8];
        let _nothing_there = rustix::io::read(&self.wake, &mut count);
    }

    /// The eventfd.
    pub(super) fn wake_fd(&self) -> &OwnedFd {
        &self.wake
    }

    fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::NotOurs => return,
            Outcome::Bound => &self.counters.bound,
            Outcome::Unread => &self.counters.unread,
            Outcome::NoDump => &self.counters.nodump,
            Outcome::AppBound => &self.counters.app_bound,
            Outcome::NoPort => &self.counters.no_port,
        };
        counter.fetch_add(1, Relaxed);
        // One system call for many counts: the main thread writes at most once a second.
        if !self.announced.swap(true, Relaxed) {
            let _main_is_behind = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// How the node's connections are named, for people.
fn identity(record: &IdentityRecord, listener: Result<(), &str>) -> Identity {
    if let Err(why) = listener {
        return Identity::Lookup(why.to_owned());
    }
    let reasons = [
        ("app-bound", record.app_bound),
        ("nodump", record.nodump),
        ("unread", record.unread),
        ("no-port", record.no_port),
    ];
    match reasons.into_iter().find(|(_, count)| *count > 0) {
        Some((why, count)) => Identity::Lookup(format!("{why}: {count} connects went out unbound")),
        None => Identity::Address,
    }
}

/// What became of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// No destination of ours, or nothing that will connect.
    NotOurs,
    /// It dials from the private address, or from a port of the block.
    Bound,
    /// The destination could not be read.
    Unread,
    /// The caller may not be looked into.
    NoDump,
    /// The program bound the socket to another address.
    AppBound,
    /// What names the node cannot be had: no free port, or no such address on this machine.
    NoPort,
}

/// A call that waits.
struct Call {
    id: u64,
    tid: u32,
    number: libc::c_long,
    arguments: [u64; 6],
}

/// Starts the thread. It ends when the last process under the filter has.
pub(super) fn spawn(listener: OwnedFd, shared: Arc<Shared>, private: IpAddr) -> io::Result<()> {
    let threads = probe_pidfd_thread();
    // Set once, before anybody could ask.
    shared.answers.set(listener.try_clone()?).ok();
    let (callers, ports) = (Callers::default(), Ports::open());
    let mut desk = Desk { listener, shared, private, threads, callers, ports };
    let thread = std::thread::Builder::new().name("connects".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(move || desk.serve()).map(drop)
}

/// Whether the kernel opens pidfds for threads.
fn probe_pidfd_thread() -> bool {
    pidfd_open(rustix::thread::gettid(), PIDFD_THREAD).is_ok()
}

struct Desk {
    listener: OwnedFd,
    shared: Arc<Shared>,
    private: IpAddr,
    threads: bool,
    callers: Callers,
    ports: Ports,
}

impl Desk {
    fn serve(&mut self) {
        ask_for_sync_wake_up(&self.listener);
        loop {
            match receive(&self.listener) {
                Ok(call) => {
                    // Without an answer the node would hang, and without this thread each of its
                    // connects would fail: a mistake of ours must cost no more than one name.
                    if SYNCS.contains(&call.number) || call.number == libc::SYS_msync {
                        if !self.shared.stall.hold(call.id) {
                            answer(&self.listener, call.id, None);
                        }
                        continue;
                    }
                    if call.number == libc::SYS_bind {
                        let done = panic::catch_unwind(AssertUnwindSafe(|| self.listen(&call)));
                        answer(&self.listener, call.id, done.ok().flatten());
                        continue;
                    }
                    let decision = panic::catch_unwind(AssertUnwindSafe(|| self.decide(&call)));
                    self.shared.count(decision.unwrap_or(Outcome::Unread));
                    answer(&self.listener, call.id, None);
                }
                // ENOENT: the caller was interrupted; or, on newer kernels, there is none left.
                Err(_) if self.nobody_left() => return,
                Err(_) => {}
            }
        }
    }

    /// Whether no process is left that could call. Also keeps unforeseen errors from spinning: it
    /// waits for the next call where there is somebody.
    fn nobody_left(&self) -> bool {
        let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
        let _interrupted = poll(&mut fds, None);
        fds[0].revents().intersects(PollFlags::HUP | PollFlags::NVAL)
    }

    /// Looks at one call, and binds its socket if it goes to a proxy of the lab.
    fn decide(&mut self, call: &Call) -> Outcome {
        let raw = match destination(call) {
            Ok(raw) => raw,
            Err(error) => return not_read(&error),
        };
        let Some(destination) = parse(raw.bytes()) else { return Outcome::NotOurs };
        let dials = self.shared.dials.lock().unwrap_or_else(PoisonError::into_inner);
        let source = dials.source(&destination);
        drop(dials);
        let Some(source) = source else { return Outcome::NotOurs };
        // A descriptor is an int: the upper half of the register is anything. None is negative.
        let Ok(number) = i32::try_from(call.arguments[0] & 0xffff_ffff) else {
            return Outcome::NotOurs;
        };
        match self.callers.descriptor(call.tid, number, self.threads) {
            // Asked after the descriptor was taken: then it was the caller's, and not that of
            // another process which got its thread's id.
            Ok(_) if !still_waits(&self.listener, call.id) => Outcome::NotOurs,
            Ok(socket) => self.bind(&socket, source, destination).unwrap_or(Outcome::NotOurs),
            Err(Errno::PERM | Errno::ACCESS) => Outcome::NoDump,
            // No such descriptor, or no such thread any more: the kernel has the right answer.
            Err(_) => Outcome::NotOurs,
        }
    }

    /// Some databases bind the address that they tell others, and nothing else. That one is the
    /// proxy's, so they get their private address instead, at the same port. `None` where it is none
    /// of ours, and the kernel answers.
    fn listen(&mut self, call: &Call) -> Option<Result<(), Errno>> {
        let wanted = parse(destination(call).ok()?.bytes())?;
        let dials = self.shared.dials.lock().unwrap_or_else(PoisonError::into_inner);
        let source = dials.source(&wanted);
        drop(dials);
        if source != Some(Source::Private) {
            return None;
        }
        let number = i32::try_from(call.arguments[0] & 0xffff_ffff).ok()?;
        let socket = self.callers.descriptor(call.tid, number, self.threads).ok()?;
        if !still_waits(&self.listener, call.id) {
            return None;
        }
        let is_v6 = sockopt::socket_domain(&socket).ok()? == AddressFamily::INET6;
        let own = bindable(SocketAddr::new(self.private, wanted.port()), is_v6)?;
        Some(bind(&socket, &own))
    }

    /// Binds a stream socket to what names the node where it dials to.
    fn bind(
        &mut self,
        socket: &OwnedFd,
        source: Source,
        destination: SocketAddr,
    ) -> Result<Outcome, Errno> {
        if sockopt::socket_type(socket)? != SocketType::STREAM {
            return Ok(Outcome::NotOurs);
        }
        let is_v6 = match sockopt::socket_domain(socket)? {
            AddressFamily::INET => false,
            AddressFamily::INET6 => true,
            _ => return Ok(Outcome::NotOurs),
        };
        let own = getsockname(socket)?;
        let own = SocketAddr::try_from(own).map_err(|_| Errno::AFNOSUPPORT)?;
        let dials = self.shared.dials.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = dials.is_ours_to_bind(own, self.private);
        drop(dials);
        if !is_ours {
            return Ok(Outcome::AppBound);
        }
        let bound = match source {
            Source::Private => bind_private(socket, self.private, is_v6),
            Source::Far(_, None) => return Ok(Outcome::NoPort),
            Source::Far(address, Some(block)) => {
                self.ports.bind(socket, (address, block), destination, is_v6)
            }
        };
        match bound {
            Ok(()) => Ok(Outcome::Bound),
            // Bound before: by us, for an earlier call on the same socket, or to a port of the
            // program's own choice on every address.
            Err(Errno::INVAL) if own.ip().is_unspecified() && own.port() != 0 => {
                Ok(Outcome::AppBound)
            }
            Err(Errno::INVAL) => Ok(Outcome::NotOurs),
            Err(_) => Ok(Outcome::NoPort),
        }
    }
}

/// What an unreadable destination means.
fn not_read(error: &io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Outcome::NoDump,
        // A bad pointer, or a caller that has gone: the kernel answers for itself.
        Some(libc::EFAULT | libc::ESRCH) => Outcome::NotOurs,
        _ => Outcome::Unread,
    }
}

/// Where the call wants to connect to.
fn destination(call: &Call) -> io::Result<RawAddress> {
    let [_, second, third, _, fifth, sixth] = call.arguments;
    match call.number {
        libc::SYS_sendto => read_address(call.tid, fifth, sixth & 0xffff_ffff),
        libc::SYS_sendmsg | libc::SYS_sendmmsg => read_message_address(call.tid, second),
        _ => read_address(call.tid, second, third & 0xffff_ffff),
    }
}

/// Binds to the private address, with the port left to the connect, so that the whole port range is
/// there for each destination.
fn bind_private(socket: &OwnedFd, private: IpAddr, is_v6: bool) -> Result<(), Errno> {
    let address = bindable(SocketAddr::new(private, 0), is_v6).ok_or(Errno::ADDRNOTAVAIL)?;
    bind_address_no_port(socket)?;
    bind(socket, &address)
}

/// Pidfds of the threads that called last.
#[derive(Default)]
struct Callers {
    open: [Option<(u32, OwnedFd)>; CALLERS_MAX],
}

impl Callers {
    /// Takes a copy of a descriptor of the calling thread.
    fn descriptor(&mut self, tid: u32, number: i32, threads: bool) -> Result<OwnedFd, Errno> {
        let slot = tid as usize % CALLERS_MAX;
        let Some(place) = self.open.get_mut(slot) else { return Err(Errno::INVAL) };
        if let Some((_, pidfd)) = place.as_ref().filter(|(caller, _)| *caller == tid) {
            match pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()) {
                // That thread has ended, and another has its id.
                Err(Errno::SRCH) => {}
                other => return other,
            }
        }
        let (_, pidfd) = place.insert((tid, open_caller(tid, threads)?));
        pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())
    }
}

/// Opens a pidfd for a thread; before Linux 6.9 for its process, which has the same descriptors.
fn open_caller(tid: u32, threads: bool) -> Result<OwnedFd, Errno> {
    let raw = i32::try_from(tid).map_err(|_| Errno::SRCH)?;
    if threads {
        return pidfd_open(Pid::from_raw(raw).ok_or(Errno::SRCH)?, PIDFD_THREAD);
    }
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).map_err(|_| Errno::SRCH)?;
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
    pidfd_open(group.and_then(Pid::from_raw).ok_or(Errno::SRCH)?, PidfdFlags::empty())
}

#[allow(unsafe_code, reason = "this socket option has no safe wrapper")]
fn bind_address_no_port(socket: &OwnedFd) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

#[allow(unsafe_code, reason = "seccomp ioctls have no safe wrappers")]
fn ask_for_sync_wake_up(listener: &OwnedFd) {
    // SAFETY: takes a number, touches no memory; older kernels refuse it, which is fine.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
}

/// Waits for the next call.
#[allow(unsafe_code, reason = "seccomp ioctls have no safe wrappers")]
fn receive(listener: &OwnedFd) -> Result<Call, Errno> {
    // The kernel wants it zeroed.
    let mut room = [0u64; NOTIFICATION_WORDS];
    let notification = room.as_mut_ptr().cast::<libc::seccomp_notif>();
    // SAFETY: `room` is aligned for, and larger than, the notification of any released kernel, and
    // after success holds one whose fields are all plain numbers.
    let (result, read) = unsafe {
        let fd = listener.as_raw_fd();
        let result = libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, notification);
        (result, notification.read())
    };
    if result < 0 {
        return Err(last_errno());
    }
    let (id, tid) = (read.id, read.pid);
    Ok(Call { id, tid, number: read.data.nr.into(), arguments: read.data.args })
}

/// Whether the call still waits for its answer.
#[allow(unsafe_code, reason = "seccomp ioctls have no safe wrappers")]
fn still_waits(listener: &OwnedFd, id: u64) -> bool {
    // SAFETY: the kernel reads one u64 that lives through the call.
    unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) == 0
    }
}

/// Lets a call go on as if nothing had been, or ends it with what we did in its place.
#[allow(unsafe_code, reason = "seccomp ioctls have no safe wrappers")]
fn answer(listener: &OwnedFd, id: u64, done: Option<Result<(), Errno>>) {
    let (error, flags) = match done {
        None => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        Some(Ok(())) => (0, 0),
        Some(Err(errno)) => (-errno.raw_os_error(), 0),
    };
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: the kernel reads one answer that lives through the call. That the caller went away
    // meanwhile is normal, and there is nobody to tell.
    unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer);
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

const _: () = assert!(size_of::<libc::seccomp_notif>() <= NOTIFICATION_WORDS * 8);
