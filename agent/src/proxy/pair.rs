//! One connection: its two sockets, its two directions, and what rules do to them.

use std::{collections::BTreeSet, net::SocketAddr, os::fd::OwnedFd, sync::Arc};

use faultbed_common::{
    fault::HealPolicy,
    link::{Link, Party},
};
use rustix::event::epoll::EventFlags;
use serde::{Deserialize, Serialize};

use crate::proxy::{
    acceptor::{Arrival, Door},
    carry::shared,
    cut::{Gate, Verdict, verdict},
    flow::Progress,
    lane::{Lane, Share, stronger},
    rule_set::RuleSet,
    side::Side,
    sys,
    table::Part,
    timers::Alarm,
    worker::Tools,
};

use loss::Losses;
pub(crate) use loss::losing;

mod carry;
mod ending;
mod loss;
mod tally;

/// A connection of unknown origin is held this long where it matters who dialled, then reset.
const ORIGIN_NS_MAX: u64 = 2_000_000_000;
/// The node behind a listener has this long to answer.
const DIAL_NS_MAX: u64 = 3_000_000_000;
/// After a heal the peers are asked for a sign of life at once; later at the ordinary pace.
const SETTLE_NS: u64 = 3_000_000_000;

/// Which of a connection's two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// It faces the dialler.
    Near,
    /// It faces the node.
    Far,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It waits for something.
    Live,
    /// It wants another turn.
    Again,
    /// It wants a socket to its node.
    Dial,
    /// It is over; its sockets are closed.
    Over,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    /// Accepted; the node is not dialled while a cut or an unknown origin forbids it.
    Waiting,
    Dialling,
    Carrying,
    /// Both streams were ended in order; what still arrives is discarded.
    Closing,
}

/// One connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pair {
    #[serde(with = "shared")]
    door: Arc<Door>,
    peer: SocketAddr,
    dialler: Option<Party>,
    stage: Stage,
    near: Side,
    far: Option<Side>,
    forward: Lane,
    backward: Lane,
    verdict: Verdict,
    /// The allowance of a one-way cut is used up.
    spent: bool,
    /// What faults that have ended want done once nothing is cut any more.
    doom: HealPolicy,
    /// A socket died while news of it must not cross.
    broken: bool,
    near_drops: u32,
    far_drops: u32,
    /// What the kernel loses by itself; most connections have no such fault.
    losses: Option<Box<Losses>>,
    /// Makes its dice differ from those of other connections.
    number: u64,
    /// When it was accepted, in nanoseconds of CLOCK_BOOTTIME.
    arrived_ns: u64,
    /// The ending it has an alarm for, on the same clock.
    end_ns: u64,
    /// It was let stand still when it was accepted.
    was_delayed: bool,
    origin_alarm: bool,
}

impl Pair {
    /// An accepted connection.
    pub(crate) fn new(door: Arc<Door>, arrival: Arrival) -> Self {
        let Arrival { fd, peer, number, at_ns: arrived_ns } = arrival;
        let near = Side::new(fd, door.listener.listen.ip(), peer);
        Self {
            door,
            peer,
            dialler: None,
            stage: Stage::Waiting,
            near,
            far: None,
            forward: Lane::new(),
            backward: Lane::new(),
            verdict: Verdict::HOLD,
            spent: false,
            doom: HealPolicy::Resume,
            broken: false,
            near_drops: 0,
            far_drops: 0,
            losses: None,
            number,
            arrived_ns,
            end_ns: 0,
            was_delayed: false,
            origin_alarm: false,
        }
    }

    pub(crate) fn near_fd(&self) -> &OwnedFd {
        &self.near.fd
    }

    pub(crate) fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// Where the dialler dials from.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The two ends as the dialler sees them: its own, then ours.
    pub(crate) fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.peer, self.door.listener.listen)
    }

    pub(crate) fn is_known(&self) -> bool {
        self.dialler.is_some()
    }

    /// Whether orders that changed, of these links, may say something else about it.
    pub(crate) fn is_concerned(&self, changed: &BTreeSet<Link>) -> bool {
        let has = |lane: &Lane| lane.link().is_none_or(|link| changed.contains(&**link));
        has(&self.forward) || has(&self.backward)
    }

    /// The link that a connection waits for which must not reach its node; for the bound on these.
    pub(crate) fn waiting_link(&self) -> Option<Arc<Link>> {
        let waits = self.stage == Stage::Waiting && !self.verdict.dial;
        self.forward.link().filter(|_| waits).cloned()
    }

    /// It is known now who dialled.
    pub(crate) fn identify(&mut self, party: Party) {
        let node = Party::Node(self.door.listener.node.clone());
        let link = Link { from: party.clone(), to: node };
        self.backward.set_link(link.reversed());
        self.forward.set_link(link);
        self.dialler = Some(party);
    }

    /// Puts rules in force. What they stop is stopped when this returns.
    pub(crate) fn apply(&mut self, rules: &RuleSet, tools: &mut Tools) -> Fate {
        self.sample(tools);
        let wanted = if self.dialler.is_some() {
            self.take_orders(rules, tools);
            self.judge()
        } else if rules.tells_sources_apart(&self.door.listener.node) {
            if !self.origin_alarm {
                self.origin_alarm = true;
                tools.wake_at(sys::monotonic_ns() + ORIGIN_NS_MAX, Alarm::Origin);
            }
            Verdict::HOLD
        } else {
            self.origin_alarm = false;
            Verdict::PASS
        };
        self.enforce(wanted, tools);
        self.enforce_losses(tools);
        match self.refuse(tools).or_else(|| self.meet_end(tools)) {
            Some(fate) => fate,
            None => self.after_heal(tools),
        }
    }

    fn take_orders(&mut self, rules: &RuleSet, tools: &mut Tools) {
        let number = self.number;
        let lanes =
            [(Which::Near, &mut self.forward, number), (Which::Far, &mut self.backward, !number)];
        for (which, lane, salt) in lanes {
            let order = lane.link().and_then(|link| rules.links.get(&**link));
            let part = order.map(|order| order.for_connection(number));
            let share = order.zip(part.as_ref()).filter(|(_, part)| !part.acting.is_empty());
            let share = share.map(|(order, part)| {
                let Part { rule, acting } = part;
                Share { order, rule, acting }
            });
            Losses::take(&mut self.losses, which, share);
            let ended = lane.take_order(share, salt, &mut tools.ledger);
            self.doom = stronger(self.doom, ended);
        }
    }

    /// The verdict by the orders in force.
    fn judge(&mut self) -> Verdict {
        let (forward, backward) = (self.forward.cut(), self.backward.cut());
        let fresh = verdict(forward, backward, false);
        if fresh.forward != Gate::Ajar && fresh.backward != Gate::Ajar {
            self.spent = false;
        }
        let wanted = verdict(forward, backward, self.spent);
        if self.stage == Stage::Waiting && self.dials().is_some() {
            return Verdict { forward: Gate::Shut, backward: Gate::Shut, dial: false, ..wanted };
        }
        wanted
    }

    /// Does what a verdict says. The order matters: nothing is written before the kernel drops the
    /// answers to it, and a direction that opens finds both sockets hearing.
    fn enforce(&mut self, mut wanted: Verdict, tools: &mut Tools) {
        if self.has_full_window(wanted) {
            self.spent = true;
            wanted = self.judge();
        }
        self.verdict = wanted;
        self.forward.flow.set_gate(wanted.forward);
        self.backward.flow.set_gate(wanted.backward);
        let mute = wanted.near_deaf && wanted.far_deaf;
        let mut heard = false;
        let mut set = |side: &mut Side, deaf: bool, drops: &mut u32| {
            if deaf && !side.is_deaf() {
                *drops = sys::drops(&side.fd);
            }
            side.set_mute(mute);
            match side.set_deaf(deaf) {
                Ok(changed) => heard |= changed && !deaf,
                Err(error) => tracing::error!(%error, deaf, "make socket deaf"),
            }
        };
        set(&mut self.near, wanted.near_deaf, &mut self.near_drops);
        // A socket that is still connecting must hear the answer: its own connect is local.
        if let (Some(far), Stage::Carrying | Stage::Closing) = (&mut self.far, self.stage) {
            set(far, wanted.far_deaf, &mut self.far_drops);
        }
        self.forward.note_stop(self.far.as_ref());
        self.backward.note_stop(Some(&self.near));
        if heard {
            tools.wake_at(sys::monotonic_ns() + SETTLE_NS, Alarm::Settle);
        }
    }

    /// Whether a one-way cut of packets meets a connection whose destination has not yet got all that
    /// was written. As long as that socket hears acknowledgements its kernel goes on sending; so it
    /// must not, and the other way has had its allowance.
    fn has_full_window(&self, wanted: Verdict) -> bool {
        let owes = |side: Option<&Side>| side.is_some_and(Side::owes_bytes);
        (wanted.near_deaf && wanted.backward == Gate::Ajar && owes(self.far.as_ref()))
            || (wanted.far_deaf && wanted.forward == Gate::Ajar && owes(Some(&self.near)))
    }

    /// What waited for the end of a cut.
    fn after_heal(&mut self, tools: &mut Tools) -> Fate {
        if self.verdict.passes() {
            if self.broken {
                return self.reset();
            }
            match (std::mem::take(&mut self.doom), self.stage) {
                (HealPolicy::Resume, _) | (HealPolicy::Close, Stage::Closing) => {}
                (HealPolicy::Reset, _) | (HealPolicy::Close, Stage::Waiting) => {
                    return self.reset();
                }
                (HealPolicy::Close, Stage::Dialling | Stage::Carrying) => {
                    self.forward.flow.close();
                    self.backward.flow.close();
                }
            }
        }
        match self.stage {
            Stage::Waiting if self.verdict.dial => self.dial_in_time(tools),
            Stage::Waiting | Stage::Dialling => Fate::Live,
            // Not now: first the rules are in force on every connection, then bytes move.
            Stage::Carrying | Stage::Closing => Fate::Again,
        }
    }

    /// The socket to the node, on its way or connected.
    pub(crate) fn dialled(&mut self, fd: OwnedFd, connected: bool, tools: &mut Tools) -> Fate {
        let upstream = self.door.listener.upstream;
        self.far = Some(Side::new(fd, upstream.ip(), upstream));
        self.stage = Stage::Dialling;
        if connected {
            return self.connected(tools);
        }
        tools.wake_at(sys::monotonic_ns() + DIAL_NS_MAX, Alarm::Dial);
        Fate::Live
    }

    fn connected(&mut self, tools: &mut Tools) -> Fate {
        self.stage = Stage::Carrying;
        self.enforce(self.verdict, tools);
        self.enforce_losses(tools);
        self.pump(tools)
    }

    /// Epoll has news of a socket.
    pub(crate) fn event(&mut self, which: Which, flags: EventFlags, tools: &mut Tools) -> Fate {
        match which {
            Which::Near => self.near.note(flags),
            Which::Far => {
                let Some(far) = &mut self.far else { return Fate::Live };
                far.note(flags);
                if self.stage == Stage::Dialling {
                    return match rustix::net::sockopt::socket_error(&far.fd) {
                        Ok(Ok(())) if far.writable => self.connected(tools),
                        Ok(Ok(())) => Fate::Live,
                        Ok(Err(_)) | Err(_) => self.reset(),
                    };
                }
            }
        }
        if matches!(self.stage, Stage::Carrying | Stage::Closing) {
            return self.pump(tools);
        }
        // Nobody is left to hold a place for.
        if self.near.failed { self.reset() } else { Fate::Live }
    }

    /// An alarm is due.
    pub(crate) fn alarm(&mut self, alarm: Alarm, tools: &mut Tools) -> Fate {
        match alarm {
            Alarm::Dial if self.stage == Stage::Dialling => self.reset(),
            Alarm::Origin if self.origin_alarm && self.dialler.is_none() => {
                tools.unknown_reset += 1;
                self.reset()
            }
            Alarm::Allowance if self.forward.flow.has_spent() || self.backward.flow.has_spent() => {
                self.spend(tools);
                Fate::Live
            }
            Alarm::Release if self.stage == Stage::Carrying => self.pump(tools),
            Alarm::Settle => {
                let sides = [Some(&self.near), self.far.as_ref()];
                sides.into_iter().flatten().for_each(Side::settle);
                Fate::Live
            }
            Alarm::End => self.meet_end(tools).unwrap_or(Fate::Live),
            Alarm::Closing if self.stage == Stage::Closing => Fate::Over,
            Alarm::Accept if self.stage == Stage::Waiting && self.verdict.dial => {
                self.dial_in_time(tools)
            }
            Alarm::Burst => {
                self.enforce_losses(tools);
                // What is done with may have waited for its sockets to hear.
                if self.stage == Stage::Carrying { self.pump(tools) } else { Fate::Live }
            }
            Alarm::Dial
            | Alarm::Origin
            | Alarm::Allowance
            | Alarm::Release
            | Alarm::Closing
            | Alarm::Accept => Fate::Live,
        }
    }

    fn spend(&mut self, tools: &mut Tools) {
        self.spent = true;
        let wanted = self.judge();
        self.enforce(wanted, tools);
    }

    /// Moves bytes in both directions.
    pub(crate) fn pump(&mut self, tools: &mut Tools) -> Fate {
        if self.stage == Stage::Closing {
            return self.discard(tools);
        }
        let Some(far) = &mut self.far else { return Fate::Live };
        let forward = self.forward.flow.pump(&mut self.near, far, tools);
        let backward = self.backward.flow.pump(far, &mut self.near, tools);
        if [forward, backward].contains(&Progress::SourceReset) {
            return self.reset();
        }
        // That the destination is gone is news from it: it crosses the other direction's link.
        // A flow that keeps it back will find out by itself, in its time.
        let near_lost = (backward == Progress::DestinationLost || self.is_lost(Which::Near))
            && !self.forward.flow.keeps_end();
        let far_lost = (forward == Progress::DestinationLost || self.is_lost(Which::Far))
            && !self.backward.flow.keeps_end();
        if near_lost || far_lost {
            let shut = |lane: &Lane| lane.flow.gate() == Gate::Shut;
            let held = (near_lost && shut(&self.forward)) || (far_lost && shut(&self.backward));
            if !held {
                return self.reset();
            }
            self.broken = true;
        }
        if self.forward.flow.is_done() && self.backward.flow.is_done() {
            // A socket that is closed while it is deaf or mute stays so for ever: its peer would never
            // get what it was written before the cut. After the heal there is another turn.
            let stopped = |side: &Side| side.is_deaf() || side.is_mute();
            let is_stopped = stopped(&self.near) || self.far.as_ref().is_some_and(stopped);
            return if is_stopped { Fate::Live } else { Fate::Over };
        }
        if [forward, backward].contains(&Progress::Spent) {
            self.spend(tools);
        }
        if [forward, backward].contains(&Progress::LimitReached) {
            return self.close_in_order(tools);
        }
        let again = [forward, backward].contains(&Progress::Again);
        if again { Fate::Again } else { Fate::Live }
    }

    /// Whether a socket failed after its stream had ended, when nobody reads it any more.
    fn is_lost(&self, which: Which) -> bool {
        match (which, &self.far) {
            (Which::Near, _) => self.near.failed && self.forward.flow.is_done(),
            (Which::Far, Some(far)) => far.failed && self.backward.flow.is_done(),
            (Which::Far, None) => false,
        }
    }

    /// A real RST to both ends.
    pub(crate) fn reset(&mut self) -> Fate {
        self.near.reset_on_close();
        if let Some(far) = &self.far {
            far.reset_on_close();
        }
        Fate::Over
    }

    /// Gives back what it has borrowed, before it is dropped.
    pub(crate) fn release(&mut self, tools: &mut Tools) {
        self.sample(tools);
        self.end_losses();
        self.forward.flow.release(tools);
        self.backward.flow.release(tools);
    }
}
