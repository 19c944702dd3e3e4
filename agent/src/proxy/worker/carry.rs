//! A worker's connections, frozen and sent to another process, or received from one.

use std::{collections::BTreeMap, io, sync::atomic::Ordering};

use rustix::event::epoll::{self, EventData};

use crate::proxy::{
    handover::{Carried, Decision, Freeze},
    pair::{Fate, Which},
    side::INTEREST,
    slab::{Key, Slab},
    timers::Alarm,
    worker::{Sample, Tools, Worker},
};

impl Worker {
    /// Stands still, sends every connection, and waits for what is decided.
    pub(super) fn freeze(&mut self, freeze: &Freeze) {
        if freeze.decision().is_none() {
            let sent = self.send_all(freeze).map_err(|error| format!("send connections: {error}"));
            freeze.report(sent);
        }
        match freeze.wait() {
            Decision::Resume => {}
            Decision::Reset => {
                for key in self.pairs.keys() {
                    self.look_at(key, |pair, _| pair.reset());
                }
            }
            // Only descriptors are closed: the sockets behind them are another process's.
            Decision::LetGo => self.pairs = Slab::default(),
        }
    }

    fn send_all(&mut self, freeze: &Freeze) -> io::Result<Sample> {
        let keys = self.pairs.keys();
        for key in &keys {
            self.look_at(*key, |pair, tools| {
                pair.sample(tools);
                pair.settle();
                Fate::Live
            });
        }
        // What is not named here is made anew from what is: a field that is added must be decided on.
        let Self {
            index: _,
            mailbox: _,
            board: _,
            lookup: _,
            rules: _,
            epoll: _,
            pairs,
            tools,
            ready: _,
            waiting: _,
            waiting_max: _,
            is_heir: _,
        } = self;
        let Tools { scratch: _, pipes: _, ledger, unknown_reset, refused, timers, current: _ } =
            tools;
        let mut alarms: BTreeMap<Key, Vec<(u64, Alarm)>> = BTreeMap::new();
        for (at_ns, key, alarm) in timers.all() {
            alarms.entry(key).or_default().push((at_ns, alarm));
        }
        let carried = keys.iter().filter_map(|key| {
            let alarms = alarms.remove(key).unwrap_or_default();
            Some(Carried { pair: pairs.get(*key)?, alarms })
        });
        freeze.ship(carried)?;
        Ok(Sample {
            ledger: ledger.clone(),
            connections: keys.len() as u64,
            unknown_reset: *unknown_reset,
            refused: *refused,
        })
    }

    /// Takes a connection of another process over. Nothing moves before rules are in force: epoll
    /// tells of everything that is ready at that moment.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn inherit(&mut self, carried: Carried) -> io::Result<()> {
        let Carried { pair, alarms } = carried;
        self.is_heir = true;
        let pipes = pair.pipes();
        let key = self.pairs.insert(*pair);
        let Some(pair) = self.pairs.find(key) else { return Ok(()) };
        for (which, fd) in [(Which::Near, Some(pair.near_fd())), (Which::Far, pair.far_fd())] {
            let Some(fd) = fd else { continue };
            epoll::add(&self.epoll, fd, EventData::new_u64(key.token(which)), INTEREST)?;
        }
        self.tools.pipes.adopt(pipes);
        for (at_ns, alarm) in alarms {
            self.tools.timers.set(at_ns, key, alarm);
        }
        self.mailbox.load.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
