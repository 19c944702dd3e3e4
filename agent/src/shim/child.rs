//! The fork, and what the forked child does until it is the node.
//!
//! The shim has one thread when it forks, so the child may allocate and use the C library freely.

use std::{
    ffi::{CStr, CString, OsString},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    time::Duration,
};

use faultbed_common::host_spec::Limits;
use rustix::{
    io::Errno,
    process::{Pid, Resource, Rlimit, Signal, getrlimit, setrlimit},
};

use super::{
    filter,
    handshake::{self, ChildStep, Outcome, Word},
    start::{Refusal, own},
};
use crate::node::records::LaunchSpec;

/// Variables that would lead a database's own connections astray, in any case of letters.
const PROXY_VARIABLES: [&str; 7] = [
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "grpc_proxy",
    "no_grpc_proxy",
    "grpc_poll_strategy",
];
/// What systemd gives the agent and no node may answer to.
const SERVICE_VARIABLES: [&str; 6] = [
    "notify_socket",
    "listen_fds",
    "listen_pid",
    "listen_fdnames",
    "watchdog_usec",
    "watchdog_pid",
];
/// The highest signal number of Linux.
const SIGNAL_MAX: i32 = 64;
/// How hard the kernel's out-of-memory killer should look elsewhere; its death is the node's.
const OOM_SCORE: &str = "-900";

/// Which side of a fork this is.
pub(super) enum Forked {
    /// The one that called; with the other's pid.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Forks. Only for a process of one thread.
#[allow(unsafe_code, reason = "fork has no safe wrapper")]
pub(super) fn fork() -> io::Result<Forked> {
    // SAFETY: the process has one thread (shims and starters begin before any runtime), so the
    // child's memory is in a consistent state and no lock is held by a thread that is not there.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Pid::from_raw(pid).map(Forked::Parent).ok_or_else(|| io::ErrorKind::Other.into()),
    }
}

/// Closes all descriptors but the standard ones: an inherited one could keep a pipe, a socket or a
/// lock of the agent's open for as long as the node lives.
#[allow(unsafe_code, reason = "close_range has no safe wrapper")]
pub(super) fn close_inherited() {
    // SAFETY: called first of all in `main`; nothing in this process owns a descriptor above 2.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
}

/// Puts descriptors in the place of standard input, and of output and error.
#[allow(unsafe_code, reason = "the standard streams have no owner to replace")]
pub(super) fn set_standard_streams(
    input: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
) -> io::Result<()> {
    for (from, to) in [(input, 0), (output, 1), (output, 2)] {
        // SAFETY: dup2 onto a standard stream closes nothing that Rust owns.
        if unsafe { libc::dup2(from.as_raw_fd(), to) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Asks the out-of-memory killer to spare the shim; needs root, and the node is not included.
pub(super) fn shield_from_oom_killer() {
    let _needs_root = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
}

/// Blocks the signals that the shim is told things by, and opens a descriptor to read them from.
#[allow(unsafe_code, reason = "signal sets and signalfd have no safe wrappers")]
pub(super) fn block_signals() -> io::Result<OwnedFd> {
    let mut set = empty_signal_set();
    // SAFETY: `set` is an initialised signal set that lives through all calls.
    unsafe {
        for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGCHLD, libc::SIGINT] {
            libc::sigaddset(&raw mut set, signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        own(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

#[allow(unsafe_code, reason = "signal sets have no safe wrapper")]
fn empty_signal_set() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the whole set before it is read.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        set
    }
}

/// The next signal from a descriptor of [`block_signals`]; `None` when there is none for now.
pub(super) fn next_signal(signals: &OwnedFd) -> Option<i32> {
    let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(signals, &mut bytes) {
        // The number is the first field of the structure.
        Ok(count) if count == bytes.len() => {
            Some(i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        }
        _ => None,
    }
}

/// A node that was executed.
pub(super) struct StartedNode {
    /// Its main process.
    pub(super) pid: Pid,
    /// Where its connects are to be answered; or why nowhere.
    pub(super) listener: Result<OwnedFd, Errno>,
}

/// A node that is about to be forked.
pub(super) struct NodeChild<'a> {
    spec: &'a LaunchSpec,
    output: OwnedFd,
    null: OwnedFd,
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl<'a> NodeChild<'a> {
    /// Opens what the child needs.
    pub(super) fn prepare(spec: &'a LaunchSpec, output: OwnedFd) -> Result<Self, Refusal> {
        let (ours, theirs) = handshake::channel()
            .map_err(|error| Refusal::of("make a channel to the child", &error))?;
        let null = std::fs::File::open("/dev/null")
            .map_err(|error| Refusal::of("open /dev/null", &error))?;
        Ok(Self { spec, output, null: null.into(), ours, theirs })
    }

    /// Forks, and waits until the child was executed or gave up.
    pub(super) fn start(self, wait: Duration) -> Result<StartedNode, Refusal> {
        let shim = rustix::process::getpid();
        let forked = fork().map_err(|error| Refusal::of("fork the node", &error))?;
        let Forked::Parent(pid) = forked else {
            let (step, errno) = become_node(self.spec, &self, shim);
            let _parent_gone = handshake::tell(self.theirs.as_fd(), &Word::Refused(step, errno));
            exit_now();
        };
        let Self { spec, ours, theirs, output, null } = self;
        // Only the child may hold these: end of file must mean that it was executed, or has ended.
        drop((theirs, output, null));
        match handshake::await_execution(&ours, wait) {
            Ok(Outcome::Executed(listener)) => Ok(StartedNode { pid, listener }),
            Ok(Outcome::Refused(step, errno)) => Err(explain(spec, step, errno)),
            Ok(Outcome::TooSlow) => {
                let late = io::Error::from(io::ErrorKind::TimedOut);
                Err(Refusal::of(&step_text(spec, ChildStep::Run), &late))
            }
            Err(error) => Err(Refusal::of("hear from the child", &error)),
        }
    }
}

/// Ends the child without running anything that is the parent's to run.
#[allow(unsafe_code, reason = "_exit has no safe wrapper")]
fn exit_now() -> ! {
    // SAFETY: ends the process at once; nothing of it is used afterwards.
    unsafe { libc::_exit(127) }
}

/// What a step does, for people.
fn step_text(spec: &LaunchSpec, step: ChildStep) -> String {
    let user = spec.user.as_deref().unwrap_or_default();
    match step {
        ChildStep::Arguments => "pass arguments and environment".to_owned(),
        ChildStep::FindUser => format!("find user {user:?}"),
        ChildStep::Session => "begin a session".to_owned(),
        ChildStep::Limits => "set limits".to_owned(),
        ChildStep::Streams => "set the standard streams".to_owned(),
        ChildStep::BecomeUser => format!("become user {user:?}"),
        ChildStep::ChangeDir => format!("change to {}", spec.cwd.display()),
        ChildStep::ParentDeath => "tie the node to its shim".to_owned(),
        ChildStep::Run => format!("run {}", spec.program.display()),
    }
}

/// Says why the child gave up, better than the bare error number where that misleads.
fn explain(spec: &LaunchSpec, step: ChildStep, errno: Errno) -> Refusal {
    let why = match (step, errno) {
        (ChildStep::FindUser, _) => "there is no such user".to_owned(),
        (ChildStep::BecomeUser, Errno::PERM) => "only root can become another user".to_owned(),
        (ChildStep::Arguments, _) => "one of them holds a zero byte".to_owned(),
        (ChildStep::Run, Errno::NOEXEC) => {
            "it is no program of this machine, nor a script that begins with #!".to_owned()
        }
        (ChildStep::Run, Errno::NOENT) if spec.program.exists() => {
            "the loader or interpreter that it names does not exist".to_owned()
        }
        (ChildStep::Run, Errno::ACCESS) if spec.program.is_dir() => "it is a directory".to_owned(),
        _ => io::Error::from(errno).to_string(),
    };
    Refusal { step: step_text(spec, step), why, errno: Some(errno.raw_os_error()) }
}

type Failed = (ChildStep, Errno);

/// Everything between fork and exec. Comes back only with the step that failed.
fn become_node(spec: &LaunchSpec, child: &NodeChild<'_>, shim: Pid) -> Failed {
    let attempt = || -> Result<Failed, Failed> {
        let user = spec.user.as_deref().map(find_user).transpose()?;
        let program = c_string(spec.program.as_os_str().as_bytes())?;
        let arguments = arguments(&program, spec)?;
        let environment = environment(spec, user.as_ref(), std::env::vars_os())?;
        rustix::process::setsid().map_err(|errno| (ChildStep::Session, errno))?;
        set_limits(&spec.limits).map_err(|errno| (ChildStep::Limits, errno))?;
        shed_what_is_the_agents();
        if let Some(user) = &user {
            // Else a program of that user could not open /dev/stdout, which is this pipe.
            let _needs_root = rustix::fs::fchown(&child.output, Some(user.uid), Some(user.gid));
        }
        set_standard_streams(child.null.as_fd(), child.output.as_fd())
            .map_err(|error| (ChildStep::Streams, errno_of(&error)))?;
        // Before the user switch: with CAP_SYS_ADMIN it needs no no_new_privs, and set-uid
        // programs go on to work in the node.
        let word = match filter::install() {
            Ok(listener) => Word::Listener(listener),
            Err(errno) => Word::NoListener(errno),
        };
        handshake::tell(child.theirs.as_fd(), &word)
            .map_err(|error| (ChildStep::ParentDeath, errno_of(&error)))?;
        // The only copy of the listener must be the shim's.
        drop(word);
        if let Some(user) = &user {
            become_user(user).map_err(|errno| (ChildStep::BecomeUser, errno))?;
        }
        rustix::process::chdir(&spec.cwd).map_err(|errno| (ChildStep::ChangeDir, errno))?;
        reset_signals();
        // After the user switch, which clears it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|errno| (ChildStep::ParentDeath, errno))?;
        // The shim may have died before; then nobody would ever send the signal.
        if rustix::process::getppid() != Some(shim) {
            return Err((ChildStep::ParentDeath, Errno::SRCH));
        }
        Ok((ChildStep::Run, execute(&program, &arguments, &environment)))
    };
    attempt().unwrap_or_else(|failed| failed)
}

/// Takes from a node what the agent's unit gave to the agent: capabilities that survive an exec, and to
/// be spared where memory is short. A score that was raised on purpose stays.
fn shed_what_is_the_agents() {
    let _there_are_none = rustix::thread::clear_ambient_capability_set();
    let path = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if score.is_some_and(|score| score < 0) {
        let _may_always_be_raised = std::fs::write(path, "0");
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn c_string(bytes: &[u8]) -> Result<CString, Failed> {
    CString::new(bytes).map_err(|_| (ChildStep::Arguments, Errno::INVAL))
}

fn arguments(program: &CStr, spec: &LaunchSpec) -> Result<Vec<CString>, Failed> {
    let given = spec.args.iter().map(|argument| c_string(argument.as_bytes()));
    std::iter::once(Ok(program.to_owned())).chain(given).collect()
}

/// The node's environment: ours, less what must not reach it, and over that what was given.
fn environment(
    spec: &LaunchSpec,
    user: Option<&User>,
    own: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<CString>, Failed> {
    let mut entries = std::collections::BTreeMap::<Vec<u8>, Vec<u8>>::new();
    for (name, value) in own {
        let lower = name.to_string_lossy().to_ascii_lowercase();
        let unwanted = PROXY_VARIABLES.iter().chain(&SERVICE_VARIABLES);
        if !unwanted.into_iter().any(|unwanted| **unwanted == lower) {
            entries.insert(name.into_vec(), value.into_vec());
        }
    }
    if let Some(User { name: Some(name), home, .. }) = user {
        entries.insert(b"HOME".to_vec(), home.clone());
        entries.insert(b"USER".to_vec(), name.to_bytes().to_vec());
        entries.insert(b"LOGNAME".to_vec(), name.to_bytes().to_vec());
    }
    for (name, value) in &spec.env {
        entries.insert(name.clone().into_bytes(), value.clone().into_bytes());
    }
    entries.into_iter().map(|(name, value)| c_string(&[name, value].join(&b'='))).collect()
}

/// A user as the system knows it.
struct User {
    uid: rustix::process::Uid,
    gid: rustix::process::Gid,
    /// `None` for a number without an entry.
    name: Option<CString>,
    home: Vec<u8>,
}

/// Looks a user up, by name or by number.
#[allow(unsafe_code, reason = "the user database has no safe wrapper")]
fn find_user(text: &str) -> Result<User, Failed> {
    let name = CString::new(text).map_err(|_| (ChildStep::FindUser, Errno::INVAL))?;
    let number = text.parse::<u32>().ok();
    // SAFETY: one thread, and all that the entry points to is copied before the next call.
    unsafe {
        let mut entry = libc::getpwnam(name.as_ptr());
        if let (true, Some(number)) = (entry.is_null(), number) {
            entry = libc::getpwuid(number);
        }
        if let Some(entry) = entry.as_ref() {
            return Ok(User {
                uid: rustix::process::Uid::from_raw(entry.pw_uid),
                gid: rustix::process::Gid::from_raw(entry.pw_gid),
                name: Some(CStr::from_ptr(entry.pw_name).to_owned()),
                home: CStr::from_ptr(entry.pw_dir).to_bytes().to_vec(),
            });
        }
    }
    let number = number.ok_or((ChildStep::FindUser, Errno::NOENT))?;
    Ok(User {
        uid: rustix::process::Uid::from_raw(number),
        gid: rustix::process::Gid::from_raw(number),
        name: None,
        home: Vec::new(),
    })
}

/// Becomes a user for good, with its groups. Nothing to do where it is us already.
#[allow(unsafe_code, reason = "the C library's user switch has no safe wrapper")]
fn become_user(user: &User) -> Result<(), Errno> {
    if !rustix::process::geteuid().is_root() && user.uid == rustix::process::geteuid() {
        return Ok(());
    }
    let gid = user.gid.as_raw();
    // SAFETY: one thread; the name is a valid C string and the group list one valid element.
    let refused = unsafe {
        let groups = match &user.name {
            Some(name) => libc::initgroups(name.as_ptr(), gid),
            None => libc::setgroups(1, &raw const gid),
        };
        groups < 0 || libc::setgid(gid) < 0 || libc::setuid(user.uid.as_raw()) < 0
    };
    if refused { Err(errno_of(&io::Error::last_os_error())) } else { Ok(()) }
}

/// Sets limits. Without privilege a value above the hard limit becomes the hard limit: a laptop
/// whose limit is lower than a blueprint's can still run the database.
fn set_limits(limits: &Limits) -> Result<(), Errno> {
    let wanted = [(Resource::Nofile, limits.nofile), (Resource::Core, limits.core)];
    for (resource, value) in wanted.into_iter().filter_map(|(r, value)| Some((r, value?))) {
        let exact = (value != u64::MAX).then_some(value);
        if setrlimit(resource, Rlimit { current: exact, maximum: exact }).is_ok() {
            continue;
        }
        let hard = getrlimit(resource).maximum;
        let lower = match (exact, hard) {
            (Some(exact), Some(hard)) => Some(exact.min(hard)),
            (exact, hard) => exact.or(hard),
        };
        setrlimit(resource, Rlimit { current: lower, maximum: hard })?;
    }
    Ok(())
}

/// Gives the node default signals: the Rust runtime ignores SIGPIPE, the shim blocks what it reads,
/// and an agent may have been started with others ignored. The C library's own calls refuse the two
/// signals that it uses itself, so this asks the kernel.
#[allow(unsafe_code, reason = "signal dispositions have no safe wrapper")]
fn reset_signals() {
    let none = empty_signal_set();
    // The kernel's `struct sigaction`: all zero is the default action, no flags, an empty mask.
    let default = [0u64; 4];
    let nothing = std::ptr::null_mut::<u64>();
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: `default` is as large as the structure, and no old one is asked for. Where it is
        // not allowed (SIGKILL, SIGSTOP) the call fails and changes nothing.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), nothing, 8usize);
        }
    }
    // SAFETY: an initialised set, and no interest in the old one.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
}

/// Becomes the program. Comes back only with the reason why not.
#[allow(unsafe_code, reason = "execve has no safe wrapper that takes a prepared child")]
fn execute(program: &CStr, arguments: &[CString], environment: &[CString]) -> Errno {
    fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    }
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end in a null pointer and their strings outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    errno_of(&io::Error::last_os_error())
}
