//! Asks other hosts who dialled from there: one connection to each, kept open between questions.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::Duration,
};

use faultbed_common::link::Party;
use tokio::{
    io::{AsyncBufRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    Terms,
    tls::{Tls, host_of, server_name},
    wire::{Ask, Tell, line, next_line},
};
use crate::proxy::identify::{Lookup, Question, reply};

/// Questions to one host that wait. Past it they stay without an answer.
const QUESTIONS_MAX: usize = 1024;
/// Questions that were sent and not answered yet; what the other side reads at once.
const SENT_MAX: usize = 256;
/// A connection of unknown origin is not held longer, so its question need not live longer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Connecting, with the handshake.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Between two tries while questions wait.
const CONNECT_AGAIN: Duration = Duration::from_millis(50);
/// A connection is closed when nobody has asked for so long; less than the other side waits.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// A question, and when its answer comes too late.
struct Waiting {
    question: Question,
    until: Instant,
}

/// Hands questions to the hosts they are for, until nobody asks any more.
pub(super) async fn run(
    mut asked: mpsc::Receiver<Question>,
    terms: watch::Receiver<Arc<Terms>>,
    tls: Arc<Tls>,
    lookup: Weak<Lookup>,
) {
    let mut hosts: BTreeMap<IpAddr, mpsc::Sender<Waiting>> = BTreeMap::new();
    while let Some(question) = asked.recv().await {
        let address = question.theirs.ip().to_canonical();
        let waiting = Waiting { question, until: Instant::now() + ANSWER_MAX };
        let way = hosts.entry(address).or_insert_with(|| begin(address, &terms, &tls, &lookup));
        match way.try_send(waiting) {
            Ok(()) => {}
            // It has ended, as nobody had asked for long.
            Err(mpsc::error::TrySendError::Closed(waiting)) => {
                let anew = begin(address, &terms, &tls, &lookup);
                let _just_begun = anew.try_send(waiting);
                hosts.insert(address, anew);
            }
            Err(mpsc::error::TrySendError::Full(waiting)) => reply(waiting.question, None),
        }
    }
}

fn begin(
    address: IpAddr,
    terms: &watch::Receiver<Arc<Terms>>,
    tls: &Arc<Tls>,
    lookup: &Weak<Lookup>,
) -> mpsc::Sender<Waiting> {
    let (send, questions) = mpsc::channel(QUESTIONS_MAX);
    let host = Host { address, terms: terms.clone(), tls: Arc::clone(tls), lookup: lookup.clone() };
    tokio::spawn(host.run(questions));
    send
}

/// One host that is asked.
struct Host {
    address: IpAddr,
    terms: watch::Receiver<Arc<Terms>>,
    tls: Arc<Tls>,
    lookup: Weak<Lookup>,
}

impl Host {
    async fn run(self, mut questions: mpsc::Receiver<Waiting>) {
        let mut left: VecDeque<Waiting> = VecDeque::new();
        loop {
            if left.is_empty() {
                match timeout(IDLE_MAX, questions.recv()).await {
                    Ok(Some(first)) => left.push_back(first),
                    Ok(None) | Err(_) => return,
                }
            }
            let (read, write) = match self.connect().await {
                Ok(connected) => connected,
                Err(error) => {
                    self.pause(&error).await;
                    give_up_late(&mut left);
                    continue;
                }
            };
            match self.talk(read, write, &mut questions, &mut left).await {
                Ok(()) => return,
                Err(error) => self.pause(&error).await,
            }
            give_up_late(&mut left);
        }
    }

    /// After an error: a host that is about to be taken over closes whatever it accepts.
    async fn pause(&self, error: &io::Error) {
        tracing::debug!(address = %self.address, %error, "ask a host");
        sleep(CONNECT_AGAIN).await;
    }

    /// A connection to the host whose name the certificate has.
    async fn connect(&self) -> io::Result<(impl AsyncBufRead + Unpin, impl AsyncWrite + Unpin)> {
        let terms = Arc::clone(&self.terms.borrow());
        let gone = || io::Error::other("the host does not answer questions");
        let desk = terms.host_at(self.address).ok_or_else(gone)?;
        let port = desk.port.ok_or_else(gone)?;
        let sides = self.tls.sides(&terms.dir)?;
        let connect = async {
            let stream = TcpStream::connect(SocketAddr::new(self.address, port)).await?;
            stream.set_nodelay(true)?;
            let connector = TlsConnector::from(Arc::clone(&sides.client));
            connector.connect(server_name(self.address), stream).await
        };
        let stream = timeout(CONNECT_MAX, connect).await??;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let host = shown.zip(terms.lab.as_ref()).and_then(|(shown, lab)| host_of(shown, lab));
        if host.as_ref() != Some(&desk.host) {
            return Err(io::Error::other(format!("who answers is not host {}", desk.host)));
        }
        let (read, write) = tokio::io::split(stream);
        Ok((BufReader::new(read), write))
    }

    /// Asks and hears until nobody has asked for long. Where the connection breaks, what was not
    /// answered is in `left` again.
    async fn talk(
        &self,
        mut read: impl AsyncBufRead + Unpin,
        mut write: impl AsyncWrite + Unpin,
        questions: &mut mpsc::Receiver<Waiting>,
        left: &mut VecDeque<Waiting>,
    ) -> io::Result<()> {
        for waiting in left.iter() {
            write.write_all(&line(&ask_of(&waiting.question))).await?;
        }
        write.flush().await?;
        loop {
            let until = left.front().map_or_else(|| Instant::now() + IDLE_MAX, |first| first.until);
            // A line is only begun to be read when one can come, and is then read whole: what a
            // dropped read had taken would be lost.
            let heard = async {
                let heard =
                    timeout_at(until, tokio::io::AsyncBufReadExt::fill_buf(&mut read)).await;
                heard.map(|filled| filled.map(<[u8]>::is_empty))
            };
            tokio::select! {
                filled = heard => match filled {
                    Ok(Ok(false)) if !left.is_empty() => {
                        let text = timeout_at(until, next_line(&mut read)).await??;
                        let text = text.ok_or(io::ErrorKind::UnexpectedEof)?;
                        let told: Tell = serde_json::from_str(&text)?;
                        if let Some(waiting) = left.pop_front() {
                            self.answer(waiting.question, told.party());
                        }
                    }
                    Ok(Ok(_)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(Err(error)) => return Err(error),
                    Err(_) if left.is_empty() => return Ok(()),
                    Err(late) => return Err(late.into()),
                },
                next = questions.recv(), if left.len() < SENT_MAX => {
                    let Some(waiting) = next else { return Ok(()) };
                    let text = line(&ask_of(&waiting.question));
                    left.push_back(waiting);
                    timeout(ANSWER_MAX, async {
                        write.write_all(&text).await?;
                        write.flush().await
                    })
                    .await??;
                }
            }
        }
    }

    fn answer(&self, question: Question, party: Option<Party>) {
        if let (Some(Party::Node(_)), Some(lookup)) = (&party, self.lookup.upgrade()) {
            lookup.note_unnamed_node();
        }
        reply(question, party);
    }
}

fn ask_of(question: &Question) -> Ask {
    Ask { theirs: question.theirs, ours: question.ours, urgent: question.urgent }
}

/// Tells those who have waited too long that there is no answer.
fn give_up_late(left: &mut VecDeque<Waiting>) {
    let now = Instant::now();
    while left.front().is_some_and(|first| first.until <= now) {
        let Some(waiting) = left.pop_front() else { return };
        reply(waiting.question, None);
    }
}
