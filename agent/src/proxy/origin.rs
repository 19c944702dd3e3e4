//! Asks other hosts who dialled from there, and answers them who dialled from here.
//!
//! Only for connections whose address and port name nobody: of nodes that bound their sockets
//! themselves, or had no port left, and of clients. The proxy of the host they came from knows whose
//! socket it is; it is asked over a listener of its own with certificates on both sides, and by this
//! process, since the agent may be dead. A thread with a runtime does both, and is there once the host
//! has an address for it. No byte waits for it that has not waited before.

mod ask;
mod serve;
mod tls;
mod wire;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    thread,
};

use faultbed_common::{name::LabName, proxy_spec::HostDesk};
use tokio::sync::{mpsc, watch};

use crate::proxy::{
    diallers::Diallers,
    identify::{Lookup, Question},
    rule_set::lock,
    sys,
};

/// Questions to all hosts that wait to be sent. Past it they stay without an answer.
const QUESTIONS_MAX: usize = 4096;

/// What the thread goes by.
#[derive(Debug, Clone, Default)]
struct Terms {
    lab: Option<LabName>,
    /// Where this host answers.
    desk: Option<SocketAddr>,
    hosts: BTreeMap<IpAddr, HostDesk>,
    /// Key and certificates.
    dir: PathBuf,
}

impl Terms {
    /// The name of the host that has an address.
    fn host_at(&self, address: IpAddr) -> Option<&HostDesk> {
        self.hosts.get(&address.to_canonical())
    }
}

/// The way to the thread.
#[derive(Debug, Default)]
pub(crate) struct Origin {
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    terms: watch::Sender<Arc<Terms>>,
    questions: mpsc::Sender<Question>,
}

impl Origin {
    /// Goes by the newest orders; begins where they say for the first time where this host answers.
    /// `dir` is where the proxy keeps its files, beside the certificates of the host.
    pub(crate) fn follow(
        &self,
        lookup: &Arc<Lookup>,
        lab: Option<LabName>,
        (desk, diallers): (Option<SocketAddr>, &Diallers),
        dir: &Path,
    ) {
        let dir = dir.parent().unwrap_or(dir).join("identity");
        let terms = Arc::new(Terms { lab, desk, hosts: diallers.hosts.clone(), dir });
        let mut running = lock(&self.running);
        match &*running {
            Some(running) => {
                running.terms.send_replace(terms);
            }
            None if terms.desk.is_none() => {}
            None => match begin(terms, Arc::downgrade(lookup)) {
                Ok(begun) => *running = Some(begun),
                Err(error) => tracing::error!(%error, "begin to answer other hosts"),
            },
        }
    }

    /// Stops asking and answering: closes the listener and every connection.
    pub(crate) fn end(&self) {
        // The thread ends when it hears that nobody can ask it any more.
        *lock(&self.running) = None;
    }

    /// Takes a question over that another host can answer; gives back one that is for this one.
    pub(crate) fn ask(&self, question: Question) -> Option<Question> {
        let running = lock(&self.running);
        let Some(running) = &*running else { return Some(question) };
        if running.terms.borrow().host_at(question.theirs.ip()).is_none() {
            return Some(question);
        }
        // Without an answer the connection's own alarm ends it.
        let _too_many = running.questions.try_send(question);
        None
    }
}

/// Starts the thread. It ends with the proxy: when nobody can ask any more.
fn begin(terms: Arc<Terms>, lookup: Weak<Lookup>) -> io::Result<Running> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (terms, followed) = watch::channel(terms);
    let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
    thread::Builder::new().name("origin".to_owned()).spawn(move || {
        // Who starts it may be nicer to itself; more nice is always allowed.
        let _kept = sys::set_niceness(0);
        runtime.block_on(async {
            let tls = Arc::new(tls::Tls::default());
            let answers = serve::run(followed.clone(), Arc::clone(&tls), lookup.clone());
            // The sender of questions is dropped at the end of the proxy.
            tokio::select! {
                () = answers => {}
                () = ask::run(asked, followed, tls, lookup) => {}
            }
        });
    })?;
    Ok(Running { terms, questions })
}

/// How a host goes to another with the certificates of a directory.
///
/// # Errors
/// Where they are of no use.
#[cfg(test)]
pub(crate) fn load_for_test(dir: &Path) -> io::Result<Arc<rustls::ClientConfig>> {
    tls::Tls::default().sides(dir).map(|sides| Arc::clone(&sides.client))
}
