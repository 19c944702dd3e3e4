//! Commands and files that operators ask of this host's nodes: as the node's user, in its directory,
//! never by a shell, and no file outside of it.

mod files;
mod program;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use faultbed_common::{
    exec::{Attendance, Done, Order, Work},
    host_spec::{HostSpec, NodeSpec},
    name::{HostName, LabName, NodeName},
    render::node_dir,
};
use faultbed_proto::v1::{ExecPart, exec_client::ExecClient, exec_part::Kind};
use tokio::{sync::mpsc, task::AbortHandle, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::allow::Allow;

/// Orders attended to at a time; more are refused.
const ORDERS_MAX: usize = 16;

/// Pieces on their way up. A person that does not read holds the program up, not our memory.
const PIECES_MAX: usize = 8;

/// How long the last words of an order may take to be heard.
const LAST_WORDS_MAX: Duration = Duration::from_secs(10);

/// After a broken stream of orders the next one is tried this much later.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of the nodes that commands may be run for: the newest orders.
#[derive(Debug, Clone, Default)]
pub struct Nodes {
    known: Arc<Mutex<Option<Known>>>,
    allow: Arc<Allow>,
}

#[derive(Debug, Clone)]
struct Known {
    lab: LabName,
    host: HostName,
    /// The agent's.
    dir: PathBuf,
    nodes: Arc<BTreeMap<NodeName, NodeSpec>>,
}

/// One node, as a command meets it.
#[derive(Debug, Clone)]
struct Place {
    lab: LabName,
    host: HostName,
    name: NodeName,
    dir: PathBuf,
    spec: NodeSpec,
    allow: Arc<Allow>,
}

impl Nodes {
    /// Bounds what may be run.
    pub fn allow(&mut self, allow: Allow) {
        self.allow = Arc::new(allow);
    }

    /// Knows the nodes of these orders from now on. `dir` is the agent's.
    pub fn know(&self, spec: &HostSpec, dir: &std::path::Path) {
        let known = Known {
            lab: spec.lab.clone(),
            host: spec.host.clone(),
            dir: dir.to_owned(),
            nodes: Arc::new(spec.nodes.clone()),
        };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }

    fn place(&self, node: &NodeName) -> Result<Place, String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = known.ok_or("this host has no orders yet")?;
        let spec =
            known.nodes.get(node).ok_or_else(|| format!("{node} is no node of this host"))?;
        Ok(Place {
            name: node.clone(),
            dir: node_dir(&known.dir, node),
            spec: spec.clone(),
            lab: known.lab,
            host: known.host,
            allow: Arc::clone(&self.allow),
        })
    }
}

/// Attends to orders for as long as it is held; programs end with it.
#[derive(Debug)]
pub struct Attending(AbortHandle);

impl Attending {
    /// Begins to attend, over the connection of a session.
    #[must_use]
    pub fn begin(channel: Channel, host: HostName, nodes: Nodes) -> Self {
        Self(tokio::spawn(attend(channel, host, nodes)).abort_handle())
    }
}

impl Drop for Attending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn attend(channel: Channel, host: HostName, nodes: Nodes) {
    let busy = Arc::new(AtomicUsize::new(0));
    // Ends the programs of this session with it.
    let mut running = tokio::task::JoinSet::new();
    loop {
        match orders(&channel, &host).await {
            Ok((_open, mut stream)) => {
                while let Ok(Some(part)) = stream.message().await {
                    while running.try_join_next().is_some() {}
                    let Some(Kind::Head(json)) = part.kind else { continue };
                    match serde_json::from_str::<Order>(&json) {
                        Ok(order) => {
                            let (channel, host) = (channel.clone(), host.clone());
                            let (nodes, busy) = (nodes.clone(), Arc::clone(&busy));
                            running.spawn(async move {
                                serve(channel, host, nodes, order, &busy).await;
                            });
                        }
                        Err(error) => tracing::error!(%error, "read an order"),
                    }
                }
            }
            // A coordinator of an earlier release knows nothing of this.
            Err(status) if status.code() == Code::Unimplemented => return,
            Err(status) => tracing::debug!(error = %status, "wait for orders"),
        }
        sleep(RETRY).await;
    }
}

/// A stream of orders, and what keeps it open.
async fn orders(
    channel: &Channel,
    host: &HostName,
) -> Result<(mpsc::Sender<ExecPart>, Streaming<ExecPart>), Status> {
    let (send, queued) = mpsc::channel(1);
    let stream = open(channel, host, None, &send, queued).await?;
    Ok((send, stream))
}

async fn open(
    channel: &Channel,
    host: &HostName,
    order: Option<String>,
    send: &mpsc::Sender<ExecPart>,
    queued: mpsc::Receiver<ExecPart>,
) -> Result<Streaming<ExecPart>, Status> {
    let attendance = Attendance { host: host.clone(), order };
    let head =
        serde_json::to_string(&attendance).map_err(|error| Status::internal(error.to_string()))?;
    send.try_send(ExecPart { kind: Some(Kind::Head(head)) }).ok();
    let mut client = ExecClient::new(channel.clone());
    Ok(client.attend(ReceiverStream::new(queued)).await?.into_inner())
}

/// Counts an order while it is attended to.
struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(channel: Channel, host: HostName, nodes: Nodes, order: Order, busy: &AtomicUsize) {
    let before = busy.fetch_add(1, Ordering::Relaxed);
    let _busy = Busy(busy);
    let Order { id, node, work, by } = order;
    let (up, queued) = mpsc::channel(PIECES_MAX);
    let mut down = match open(&channel, &host, Some(id), &up, queued).await {
        Ok(down) => down,
        Err(status) => {
            tracing::debug!(error = %status, "attend to an order");
            return;
        }
    };
    tracing::info!(%node, %by, work = work.words(), "asked by an operator");
    let done = if before >= ORDERS_MAX {
        Done::failed(format!("{ORDERS_MAX} commands run on this host already; try again later"))
    } else {
        match nodes.place(&node) {
            Ok(place) => work_on(&place, work, &mut down, &up).await,
            Err(why) => Done::failed(why),
        }
    };
    let json = serde_json::to_string(&done).unwrap_or_default();
    up.send(ExecPart { kind: Some(Kind::Done(json)) }).await.ok();
    drop(up);
    // Letting go of the stream now could overtake the last words; the person lets go after them.
    let gone = async { while !matches!(next(&mut down).await, Next::Gone) {} };
    tokio::time::timeout(LAST_WORDS_MAX, gone).await.ok();
}

async fn work_on(
    place: &Place,
    work: Work,
    down: &mut Streaming<ExecPart>,
    up: &mpsc::Sender<ExecPart>,
) -> Done {
    match work {
        Work::Run { command } => program::run(place, &command, down, up).await,
        Work::Read { path } => files::send(place, &path, up).await,
        Work::Write { path, mode } => files::take(place, &path, mode, down).await,
    }
}

/// What a person sent next.
#[derive(Debug)]
enum Next {
    /// Bytes.
    Data(Vec<u8>),
    /// No more bytes; the person is still there.
    End,
    /// The person has gone.
    Gone,
}

async fn next(down: &mut Streaming<ExecPart>) -> Next {
    loop {
        return match down.message().await {
            Ok(Some(ExecPart { kind: Some(Kind::Data(bytes)) })) => Next::Data(bytes),
            Ok(Some(ExecPart { kind: Some(Kind::End(_)) })) => Next::End,
            // What a newer one says.
            Ok(Some(_)) => continue,
            Ok(None) | Err(_) => Next::Gone,
        };
    }
}
