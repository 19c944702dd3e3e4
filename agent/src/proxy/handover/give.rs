//! The old process's side of a hand-over: freezes, sends, and ends, or goes on as before.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use crate::proxy::{
    engine::{Crew, Engine},
    handover::{
        Base, Carried, Shipper,
        line::{Content, Line, Word},
    },
    pair::Pair,
    rule_set::lock,
    worker::{Message, Sample},
};

/// How long connections may stand still until the successor is ready.
const FREEZE_MAX: Duration = Duration::from_secs(3);
/// How long a successor that was given everything may take to say that it serves.
const TAKEN_MAX: Duration = Duration::from_secs(5);

/// What became of a hand-over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// Everything is as it was, for this reason.
    Kept(String),
    /// The successor serves: this process has nothing any more.
    Gone,
}

/// What the control thread holds of the process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Estate<'a> {
    pub(crate) lock: &'a File,
    pub(crate) control: &'a UnixListener,
}

/// What frozen workers do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Go on.
    Resume,
    /// Reset every connection, then go on: bytes may be missing.
    Reset,
    /// Let go of every connection: it is another process's.
    LetGo,
}

/// A moment in which no worker moves a byte.
#[derive(Debug)]
pub(crate) struct Freeze {
    /// Parcels of several workers must not mix.
    line: Mutex<Line>,
    decision: Mutex<Option<Decision>>,
    decided: Condvar,
    workers: SyncSender<Result<Sample, String>>,
}

impl Freeze {
    fn new(line: Line, workers: usize) -> (Self, Receiver<Result<Sample, String>>) {
        let (said, hear) = sync_channel(workers);
        let freeze = Self {
            line: Mutex::new(line),
            decision: Mutex::default(),
            decided: Condvar::new(),
            workers: said,
        };
        (freeze, hear)
    }

    /// Sends a worker's connections, which stay its own.
    ///
    /// # Errors
    /// Where they cannot be written or sent.
    pub(crate) fn ship<'a>(
        &self,
        pairs: impl Iterator<Item = Carried<&'a Pair>>,
    ) -> io::Result<()> {
        let line = lock(&self.line);
        let mut shipper = Shipper::new(&line, Content::Pairs);
        for carried in pairs {
            shipper.add(&carried)?;
        }
        shipper.send()
    }

    /// A worker has sent its connections, and tells what it has counted.
    pub(crate) fn report(&self, counted: Result<Sample, String>) {
        // Nobody listens any more where it was decided meanwhile.
        let _late = self.workers.try_send(counted);
    }

    /// What was decided already.
    pub(crate) fn decision(&self) -> Option<Decision> {
        *lock(&self.decision)
    }

    /// Waits until it is decided what to do.
    pub(crate) fn wait(&self) -> Decision {
        let mut place = lock(&self.decision);
        loop {
            if let Some(decision) = *place {
                return decision;
            }
            place = self.decided.wait(place).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn decide(&self, decision: Decision) {
        *lock(&self.decision) = Some(decision);
        self.decided.notify_all();
    }
}

/// Gives everything to the process at the other end of `successor`. Connections stand still for a
/// moment; whatever goes wrong, they go on afterwards, here or there.
pub(crate) fn give(engine: &mut Engine, estate: Estate<'_>, successor: OwnedFd) -> Given {
    let began = Instant::now();
    let crew = engine.crew().clone();
    let line = Line::new(successor, FREEZE_MAX);
    let (freeze, counted) = Freeze::new(line, crew.mailboxes.len());
    let freeze = Arc::new(freeze);
    crew.acceptor.pause();
    let shipped = ship(engine, estate, &freeze, &counted);
    let frozen = began.elapsed();
    let outcome = match shipped {
        Ok(connections) => agree(&freeze).map(|()| connections),
        Err(why) => Err(Failure::Before(why)),
    };
    match outcome {
        Ok(connections) => {
            tracing::info!(connections, ?frozen, "handed over to another process");
            crew.board.stop();
            freeze.decide(Decision::LetGo);
            Given::Gone
        }
        Err(Failure::Before(why)) => {
            tracing::warn!(why, ?frozen, "hand over: go on as before");
            resume(&crew, &freeze, Decision::Resume);
            Given::Kept(why)
        }
        Err(Failure::After(why)) => {
            tracing::error!(why, "hand over: go on, with every connection reset");
            resume(&crew, &freeze, Decision::Reset);
            Given::Kept(why)
        }
    }
}

/// When the successor failed.
enum Failure {
    /// Before it touched anything.
    Before(String),
    /// When it may have moved bytes.
    After(String),
}

fn resume(crew: &Crew, freeze: &Freeze, decision: Decision) {
    freeze.decide(decision);
    crew.acceptor.resume();
}

/// Freezes and sends everything; says how many connections that were.
fn ship(
    engine: &mut Engine,
    estate: Estate<'_>,
    freeze: &Arc<Freeze>,
    counted: &Receiver<Result<Sample, String>>,
) -> Result<u64, String> {
    let mailboxes = engine.crew().mailboxes.clone();
    for mailbox in &mailboxes {
        mailbox.post(Message::Freeze(Arc::clone(freeze)));
    }
    let end = Instant::now() + FREEZE_MAX;
    let mut sum = Sample::default();
    for _ in &mailboxes {
        let left = end.saturating_duration_since(Instant::now());
        let sample = counted.recv_timeout(left);
        let sample = sample.map_err(|_| "a worker does not stand still".to_owned())?;
        sum.absorb(&sample?);
    }
    let connections = std::mem::take(&mut sum.connections);
    // After the workers: they have counted to the end.
    let base = Base {
        lock: copy(estate.lock)?,
        control: copy(estate.control)?,
        inheritance: engine.bequeath(&sum),
    };
    let line = lock(&freeze.line);
    let mut shipper = Shipper::new(&line, Content::Base);
    shipper.add(&base).and_then(|()| shipper.send()).map_err(say("send the rules"))?;
    let mut shipper = Shipper::new(&line, Content::Doors);
    for door in engine.open_doors() {
        shipper.add(door).map_err(say("send a listener"))?;
    }
    shipper.send().map_err(say("send a listener"))?;
    line.say(&Word::End { connections }).map_err(say("say the end"))?;
    Ok(connections)
}

/// The successor could begin, may, and serves.
fn agree(freeze: &Freeze) -> Result<(), Failure> {
    let mut line = lock(&freeze.line);
    let before = |what| move |error| Failure::Before(format!("{what}: {error}"));
    match line.hear().map_err(before("hear that the successor is ready"))? {
        (Word::Ready, None) => {}
        (word, _) => return Err(Failure::Before(format!("the successor says {word:?}"))),
    }
    line.say(&Word::Yours).map_err(before("give everything away"))?;
    line.extend(TAKEN_MAX);
    match line.hear() {
        Ok((Word::Taken, None)) => Ok(()),
        // It lives and has everything: two processes must not carry one stream.
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(()),
        // It was closed with `Yours` unheard.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            Err(Failure::Before("the successor ended before it had everything".to_owned()))
        }
        Ok((word, _)) => Err(Failure::After(format!("the successor says {word:?}"))),
        Err(error) => Err(Failure::After(format!("the successor ended: {error}"))),
    }
}

fn copy(fd: &impl AsFd) -> Result<OwnedFd, String> {
    fd.as_fd().try_clone_to_owned().map_err(say("duplicate a descriptor"))
}

fn say(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{what}: {error}")
}
