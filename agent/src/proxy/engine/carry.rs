//! What an engine leaves to the next process, and how that begins with it.

use std::{collections::BTreeMap, io, net::SocketAddr, path::Path, sync::Arc};

use faultbed_common::{name::FaultName, report::FaultReport};
use serde::{Deserialize, Serialize};

use crate::proxy::{
    carry::entries,
    engine::{Crew, Engine, OpenDoor},
    table::{Life, Memory, Table},
    worker::Sample,
};

/// What an engine knows that is not in its file. Listeners go by themselves.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Inheritance {
    memory: Memory,
    /// The rules in force: what steers and stops while the next process reads the file.
    table: Table,
    unsteered: BTreeMap<SocketAddr, String>,
    /// What was counted, by the workers too.
    before: Sample,
    #[serde(with = "entries")]
    past: BTreeMap<Life, (FaultName, FaultReport)>,
    refused_connections: u64,
    unnamed_nodes: bool,
}

impl Engine {
    /// The directory that it serves.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.path.parent()
    }

    pub(crate) fn crew(&self) -> &Crew {
        &self.crew
    }

    /// The listeners that are open.
    pub(crate) fn open_doors(&self) -> impl Iterator<Item = &OpenDoor> {
        self.doors.values()
    }

    /// What the next process must know; `counted` is the workers' share.
    pub(crate) fn bequeath(&mut self, counted: &Sample) -> Inheritance {
        self.count_refused();
        // What is not named here the next process finds out by itself: a field that is added must
        // be decided on.
        let Self {
            path: _,
            boot_id: _,
            can: _,
            crew,
            file: _,
            unknown: _,
            memory,
            table,
            doors: _,
            failed: _,
            retry_ns: _,
            unsteered,
            refused,
            before,
            past,
        } = self;
        let mut before = before.clone();
        before.ledger.absorb(refused);
        before.absorb(counted);
        Inheritance {
            memory: memory.clone(),
            table: table.clone(),
            unsteered: unsteered.clone(),
            before,
            past: past.clone(),
            refused_connections: crew.acceptor.refused(),
            unnamed_nodes: crew.lookup.has_unnamed_nodes(),
        }
    }

    /// An engine that goes on where that of another process stands. Its listeners accept only after
    /// [`Self::open_inherited`].
    ///
    /// # Errors
    /// Where the boot cannot be told.
    pub(crate) fn inherit(
        dir: &Path,
        crew: Crew,
        inheritance: Inheritance,
        doors: Vec<OpenDoor>,
    ) -> io::Result<Self> {
        let Inheritance {
            memory,
            table,
            unsteered,
            before,
            past,
            refused_connections,
            unnamed_nodes,
        } = inheritance;
        crew.acceptor.count_refused_from(refused_connections);
        crew.lookup.set_unnamed_nodes(unnamed_nodes);
        let doors = doors.into_iter().map(|open| (open.door.listener.listen, open));
        let doors = doors.collect();
        let engine = Self::new(dir, crew)?;
        Ok(Self { memory, table, unsteered, before, past, doors, ..engine })
    }

    /// Accepts on the listeners that came from another process and are still wanted.
    pub(crate) fn open_inherited(&mut self) {
        for open in self.doors.values_mut().filter(|open| open.id.is_none()) {
            let real = Arc::clone(open.gate.real());
            match self.crew.acceptor.add(Arc::clone(&open.door), real) {
                Ok(id) => open.id = Some(id),
                Err(error) => {
                    tracing::error!(listener = %open.door.listener.listen, %error, "accept");
                }
            }
        }
    }
}
