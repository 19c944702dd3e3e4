//! The agents connected to this coordinator: what is sent to each, and log lines on their way to people.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use faultbed_common::{
    logs::{LogBatch, LogLine, LogRequest, LogWanted},
    name::HostName,
};
use tokio::sync::mpsc;

/// Log requests waiting to be sent to one agent.
pub const LOG_REQUESTS_MAX: usize = 64;

/// Log batches on their way to one person; a slow reader stops the flow of its own lines only.
pub const LOG_BATCHES_MAX: usize = 64;

/// All connected agents.
#[derive(Debug, Default)]
pub struct Sessions {
    next: AtomicU64,
    agents: Mutex<BTreeMap<HostName, (u64, mpsc::Sender<LogRequest>)>>,
    readers: Mutex<BTreeMap<u64, Reader>>,
}

/// Who reads lines, and whose.
#[derive(Debug, Clone)]
struct Reader {
    host: HostName,
    lines: mpsc::Sender<LogBatch>,
}

impl Sessions {
    /// Enters an agent; a newer session of the same host takes the place of an older one.
    pub fn enter(&self, host: &HostName) -> (u64, mpsc::Receiver<LogRequest>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = mpsc::channel(LOG_REQUESTS_MAX);
        self.lock_agents().insert(host.clone(), (id, send));
        (id, receive)
    }

    /// Whether session `id` is still the one of its host.
    #[must_use]
    pub fn is_current(&self, host: &HostName, id: u64) -> bool {
        self.lock_agents().get(host).is_some_and(|(held, _)| *held == id)
    }

    /// Removes a session, unless a newer one took its place; true where it was the host's.
    pub fn leave(&self, host: &HostName, id: u64) -> bool {
        let mut agents = self.lock_agents();
        let current = agents.get(host).is_some_and(|(held, _)| *held == id);
        if current {
            agents.remove(host);
        }
        current
    }

    /// Asks one agent for lines. `None` where it is not connected here.
    pub fn ask(
        &self,
        host: &HostName,
        wanted: LogWanted,
    ) -> Option<(u64, mpsc::Receiver<LogBatch>)> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = mpsc::channel(LOG_BATCHES_MAX);
        self.lock_readers().insert(id, Reader { host: host.clone(), lines: send });
        let sent = self.send(host, LogRequest { id, wanted: Some(wanted) });
        if !sent {
            self.lock_readers().remove(&id);
        }
        sent.then_some((id, receive))
    }

    /// Ends a request.
    pub fn end(&self, host: &HostName, id: u64) {
        let mut readers = self.lock_readers();
        if readers.get(&id).is_some_and(|reader| reader.host == *host) {
            readers.remove(&id);
        }
        drop(readers);
        self.send(host, LogRequest { id, wanted: None });
    }

    /// Hands lines of an agent to whoever asked this agent; waits while that person reads slowly.
    /// False where nobody did: no agent can put words into the mouth of another.
    pub async fn deliver(&self, host: &HostName, batch: LogBatch) -> bool {
        let reader = self.lock_readers().get(&batch.id).cloned();
        match reader {
            Some(reader) if reader.host == *host => reader.lines.send(batch).await.is_ok(),
            Some(_) | None => false,
        }
    }

    fn send(&self, host: &HostName, request: LogRequest) -> bool {
        let agent = self.lock_agents().get(host).map(|(_, send)| send.clone());
        agent.is_some_and(|agent| agent.try_send(request).is_ok())
    }

    fn lock_agents(
        &self,
    ) -> std::sync::MutexGuard<'_, BTreeMap<HostName, (u64, mpsc::Sender<LogRequest>)>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_readers(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Reader>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Instead of lines of a node whose agent is not connected here.
#[must_use]
pub fn absent(node: &faultbed_common::name::NodeName, text: &str) -> LogLine {
    let (node, source) = (node.clone(), "faultbed".to_owned());
    LogLine { node, source, text: text.to_owned(), absent: true }
}
