//! Finds out which node dialled from an address that names nobody: asks the kernel for the socket,
//! then looks for the process that holds it.
//!
//! One thread, which no connection waits for unless a rule must know. Processes are tried in
//! batches: those of the lab's nodes only, which descend from a shim whose environment names the
//! node. A socket that none of them holds is a client's.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use faultbed_common::{
    link::Party,
    name::{LabName, NodeName},
};

use crate::{
    proxy::{
        origin::Origin,
        processes::{Owners, node_processes, sockets_of},
        rule_set::{Board, lock},
        slab::Key,
        worker::{Mailbox, Message},
    },
    socket_tables::SocketTables,
};

/// Questions that wait. Past it the oldest gets no answer, and is asked again when a rule must know.
const QUESTIONS_MAX: usize = 4096;
/// Looking through the processes takes at most this part of a core while nobody is waiting.
const REST_FACTOR: u32 = 10;
/// How long the thread rests at most.
const REST_MAX: Duration = Duration::from_millis(500);

/// Who wants to know.
#[derive(Debug)]
pub(crate) enum Asker {
    /// A worker, of one of its connections.
    Worker(Key, Arc<Mailbox>),
    /// Another host. The answer is given as far as it is known; a question that is dropped instead is
    /// asked again.
    Host(tokio::sync::oneshot::Sender<Option<Party>>),
}

/// Whose connection is this?
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) asker: Asker,
    /// The dialler's end of the connection, and ours.
    pub(crate) theirs: SocketAddr,
    pub(crate) ours: SocketAddr,
    /// Whether the connection is held until this is answered.
    pub(crate) urgent: bool,
}

/// Questions that wait for the thread.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Question>,
    /// The thread has ended: nobody would answer.
    is_over: bool,
}

/// The questions, and what the answers have taught.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    questions: Mutex<Queue>,
    asked: Condvar,
    lab: Mutex<Option<LabName>>,
    /// The hosts that answer for what dials from their addresses.
    origin: Origin,
    /// Nodes are seen to dial from addresses that are not theirs.
    unnamed_nodes: AtomicBool,
}

impl Lookup {
    /// Asks; the answer comes to the mailbox, or never.
    pub(crate) fn ask(&self, question: Question) {
        if let Some(question) = self.origin.ask(question) {
            self.ask_here(question);
        }
    }

    /// As [`Self::ask`], of a connection that was dialled from this machine. Once the thread has ended the
    /// question is dropped, and who asked from another host asks whoever has taken over.
    pub(crate) fn ask_here(&self, question: Question) {
        let mut questions = lock(&self.questions);
        if questions.is_over {
            return;
        }
        let full = questions.waiting.len() >= QUESTIONS_MAX;
        let oldest = if full { questions.waiting.pop_front() } else { None };
        questions.waiting.push_back(question);
        drop(questions);
        self.asked.notify_one();
        if let Some(oldest) = oldest {
            reply(oldest, None);
        }
    }

    /// Whether who dials unnamed may be a node of the lab.
    pub(crate) fn has_unnamed_nodes(&self) -> bool {
        self.unnamed_nodes.load(Ordering::Relaxed)
    }

    /// As another process has seen.
    pub(crate) fn set_unnamed_nodes(&self, seen: bool) {
        self.unnamed_nodes.store(seen, Ordering::Relaxed);
    }

    /// Nodes are seen to dial from addresses that are not theirs.
    pub(crate) fn note_unnamed_node(&self) {
        self.unnamed_nodes.store(true, Ordering::Relaxed);
    }

    /// What asks other hosts and answers them.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The lab whose nodes count; processes of others are clients.
    pub(crate) fn set_lab(&self, lab: Option<LabName>) {
        *lock(&self.lab) = lab;
    }

    pub(crate) fn wake(&self) {
        self.asked.notify_all();
    }

    /// Answers questions until the board says stop, from the kernel's tables where they are open.
    pub(crate) fn run(&self, board: &Board, mut tables: Option<SocketTables>) {
        let mut rested = Instant::now();
        while let Some(batch) = self.next_batch(board, rested) {
            let began = Instant::now();
            if tables.is_none() {
                tables = SocketTables::open().ok();
            }
            self.answer(batch, tables.as_mut());
            rested = Instant::now() + (began.elapsed() * REST_FACTOR).min(REST_MAX);
        }
        let left = {
            let mut questions = lock(&self.questions);
            questions.is_over = true;
            std::mem::take(&mut questions.waiting)
        };
        drop(left);
        // No other host shall ask here any more: each finds the process that has taken over.
        self.origin.end();
    }

    /// Waits for questions, and for `rested` while none of them is urgent. `None` is the end.
    fn next_batch(&self, board: &Board, rested: Instant) -> Option<Vec<Question>> {
        let mut questions = lock(&self.questions);
        loop {
            if board.is_stopped() {
                return None;
            }
            let waiting = &mut questions.waiting;
            let urgent = waiting.iter().any(|question| question.urgent);
            let left = rested.saturating_duration_since(Instant::now());
            if !waiting.is_empty() && (urgent || left.is_zero()) {
                return Some(waiting.drain(..).collect());
            }
            let patience = if waiting.is_empty() { Duration::MAX } else { left };
            questions = match patience {
                Duration::MAX => self.asked.wait(questions).unwrap_or_else(PoisonError::into_inner),
                some => {
                    let woken = self.asked.wait_timeout(questions, some);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn answer(&self, batch: Vec<Question>, tables: Option<&mut SocketTables>) {
        let mut inodes: BTreeMap<u32, Vec<Question>> = BTreeMap::new();
        let mut unanswered = Vec::new();
        if let Some(tables) = tables {
            for question in batch {
                let found = tables.find(question.theirs, question.ours);
                match found.map(|found| found.and_then(|found| found.inode)) {
                    Ok(Some(inode)) => inodes.entry(inode).or_default().push(question),
                    // No socket of this machine, and no host of the lab, or that was asked.
                    Ok(None) if !is_own(question.theirs.ip(), question.ours.ip()) => {
                        reply(question, Some(Party::Clients));
                    }
                    // Gone already.
                    Ok(None) | Err(_) => unanswered.push(question),
                }
            }
        } else {
            unanswered = batch;
        }
        for question in unanswered {
            reply(question, None);
        }
        if inodes.is_empty() {
            return;
        }
        let lab = lock(&self.lab).clone();
        let mut missing: BTreeSet<u32> = inodes.keys().copied().collect();
        // A process may have been between fork and exec: what is not found is looked for once more.
        for _ in 0..2 {
            let found = find_owners(&missing, lab.as_ref());
            for (inode, node) in found {
                missing.remove(&inode);
                self.unnamed_nodes.store(true, Ordering::Relaxed);
                for question in inodes.remove(&inode).unwrap_or_default() {
                    reply(question, Some(Party::Node(node.clone())));
                }
            }
            if missing.is_empty() {
                return;
            }
        }
        for question in inodes.into_values().flatten() {
            reply(question, Some(Party::Clients));
        }
    }
}

/// Answers a question.
pub(crate) fn reply(question: Question, party: Option<Party>) {
    match question.asker {
        Asker::Worker(key, mailbox) => mailbox.post(Message::Identified { key, party }),
        Asker::Host(answer) => {
            let _gone_meanwhile = answer.send(party);
        }
    }
}

/// Whether an address is one of this machine's. `ours` is one, surely.
fn is_own(address: IpAddr, ours: IpAddr) -> bool {
    let address = address.to_canonical();
    address == ours.to_canonical()
        || address.is_loopback()
        || std::net::UdpSocket::bind((address, 0)).is_ok()
}

/// The nodes that hold the sockets of these inodes.
fn find_owners(inodes: &BTreeSet<u32>, lab: Option<&LabName>) -> BTreeMap<u32, NodeName> {
    let Owners { nodes } = node_processes(lab);
    let mut found = BTreeMap::new();
    for (pid, node) in nodes {
        for inode in sockets_of(pid) {
            if inodes.contains(&inode) {
                found.insert(inode, node.clone());
            }
        }
        if found.len() == inodes.len() {
            break;
        }
    }
    found
}
