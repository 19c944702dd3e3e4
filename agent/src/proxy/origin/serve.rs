//! Answers other hosts who dialled from here.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use faultbed_common::{link::Party, name::HostName};
use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Terms,
    tls::{Tls, host_of},
    wire::{Ask, Tell, line, next_line},
};
use crate::proxy::identify::{Asker, Lookup, Question};

/// Connections of other hosts at a time; more than the hosts of a lab, who have one each.
const CONNECTIONS_MAX: usize = 1024;
/// Questions of one connection that are being answered. Then no more are read.
const ANSWERS_MAX: usize = 256;
/// A handshake takes no longer.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);
/// A connection on which nobody asks is closed.
const IDLE_MAX: Duration = Duration::from_secs(900);
/// A question that could not be answered by then is told so.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Between two tries to listen: a process before this one may still be there.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// Listens where the orders say, as long as they say it.
pub(super) async fn run(
    mut terms: watch::Receiver<Arc<Terms>>,
    tls: Arc<Tls>,
    lookup: Weak<Lookup>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut said = String::new();
    loop {
        let desk = terms.borrow_and_update().desk;
        let listened = async {
            match desk {
                None => std::future::pending().await,
                Some(desk) => accept(desk, &terms, &tls, &lookup, &slots).await,
            }
        };
        let moved = terms.clone();
        tokio::select! {
            error = listened => {
                // It may last: a host that has not joined has no certificates.
                if said != error.to_string() {
                    tracing::warn!(%error, ?desk, "answer other hosts");
                    said = error.to_string();
                }
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
            is_there = elsewhere(moved, desk) => if !is_there { return },
        }
    }
}

/// Waits until the orders name another address; false when there will be no more orders.
async fn elsewhere(mut terms: watch::Receiver<Arc<Terms>>, desk: Option<SocketAddr>) -> bool {
    terms.wait_for(|terms| terms.desk != desk).await.is_ok()
}

/// Accepts until that fails.
async fn accept(
    desk: SocketAddr,
    terms: &watch::Receiver<Arc<Terms>>,
    tls: &Arc<Tls>,
    lookup: &Weak<Lookup>,
    slots: &Arc<Semaphore>,
) -> io::Error {
    // Nothing listens that could not show who it is.
    let dir = terms.borrow().dir.clone();
    let listener = match tls.sides(&dir).and_then(|_| listen(desk)) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    loop {
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else {
            return io::Error::other("the process ends");
        };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => return error,
        };
        let (terms, tls, lookup) = (terms.clone(), Arc::clone(tls), lookup.clone());
        tokio::spawn(async move {
            if let Err(error) = serve(stream, terms, &tls, lookup).await {
                tracing::debug!(%from, %error, "answer a host");
            }
            drop(slot);
        });
    }
}

/// Shares the address with the process that this one takes over from.
fn listen(desk: SocketAddr) -> io::Result<TcpListener> {
    let socket = if desk.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(desk)?;
    socket.listen(BACKLOG)
}

async fn serve(
    stream: TcpStream,
    terms: watch::Receiver<Arc<Terms>>,
    tls: &Tls,
    lookup: Weak<Lookup>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let now = Arc::clone(&terms.borrow());
    let sides = tls.sides(&now.dir)?;
    let handshake = TlsAcceptor::from(Arc::clone(&sides.server)).accept(stream);
    let stream = timeout(HANDSHAKE_MAX, handshake).await??;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let host = shown.zip(now.lab.as_ref()).and_then(|(shown, lab)| host_of(shown, lab));
    let host = host.ok_or_else(|| io::Error::other("the certificate names no host of this lab"))?;
    let (read, mut write) = tokio::io::split(stream);
    let mut read = BufReader::new(read);
    let (send, mut answers) = mpsc::channel::<oneshot::Receiver<Option<Party>>>(ANSWERS_MAX);
    let asked = async {
        loop {
            let next = timeout(IDLE_MAX, next_line(&mut read)).await?;
            let Some(text) = next? else { return Ok(()) };
            let ask: Ask = serde_json::from_str(&text)?;
            let (reply, answer) = oneshot::channel();
            if may_ask(&terms.borrow(), &host, &ask) {
                let Some(lookup) = lookup.upgrade() else { return Ok(()) };
                let Ask { theirs, ours, urgent } = ask;
                lookup.ask_here(Question { asker: Asker::Host(reply), theirs, ours, urgent });
            } else {
                let _ends_meanwhile = reply.send(None);
            }
            if send.send(answer).await.is_err() {
                return Ok(());
            }
        }
    };
    let told = async {
        while let Some(answer) = answers.recv().await {
            let party = match timeout(ANSWER_MAX, answer).await {
                Ok(Ok(party)) => party,
                // This process is about to go. Where the connection closes without an answer it is
                // asked again, of the one that has taken over.
                Ok(Err(_dropped)) => return Ok(()),
                Err(_late) => None,
            };
            write.write_all(&line(&Tell::of(party))).await?;
            write.flush().await?;
        }
        Ok::<(), io::Error>(())
    };
    tokio::select! {
        ended = asked => ended,
        ended = told => ended,
    }
}

/// A host may ask about connections to itself.
fn may_ask(terms: &Terms, host: &HostName, ask: &Ask) -> bool {
    terms.host_at(ask.ours.ip()).is_some_and(|desk| desk.host == *host)
}
