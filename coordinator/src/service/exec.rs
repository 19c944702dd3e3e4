//! Commands and files on hosts: brings a person and an agent together, then only passes bytes on.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use faultbed_common::{
    event::EventKind,
    exec::{Attendance, Order, Request as Asked},
    name::HostName,
};
use faultbed_proto::v1::{ExecPart, exec_part::Kind, exec_server::Exec};
use futures::{Stream, StreamExt as _};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::{Request, Response, Status, Streaming};

use super::{caller, decode};
use crate::{
    decide::exec::choose, editor::reports_of_living, journal::Journal, mirror::MirrorHandle,
};

/// How long the first message of a stream may take.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// How long an agent may take to attend to an order.
const ATTENDED_WITHIN: Duration = Duration::from_secs(10);

/// Orders on their way to one agent.
const ORDERS_MAX: usize = 16;

/// Orders that no agent attends to yet, of the whole lab.
const UNATTENDED_MAX: usize = 256;

type Parts = Pin<Box<dyn Stream<Item = Result<ExecPart, Status>> + Send>>;

/// The service.
#[derive(Debug, Clone)]
pub struct ExecService {
    /// The lab.
    pub mirror: Arc<MirrorHandle>,
    /// Where it is told who did what.
    pub journal: Arc<Journal>,
    /// Who waits for whom.
    pub desk: Arc<Desk>,
}

/// Agents that wait for orders, and people that wait for agents.
#[derive(Debug, Default)]
pub struct Desk {
    next: AtomicU64,
    agents: Mutex<BTreeMap<HostName, (u64, mpsc::Sender<Order>)>>,
    unattended: Mutex<BTreeMap<String, Unattended>>,
}

/// A person whose order no agent attends to yet.
#[derive(Debug)]
struct Unattended {
    /// Only this host's agent may.
    host: HostName,
    /// What the person sends.
    down: Streaming<ExecPart>,
    /// Where the agent's stream goes.
    up: oneshot::Sender<Streaming<ExecPart>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// An agent waits for orders from now on; a newer one takes the place of an older one.
    fn wait(&self, host: &HostName) -> (u64, mpsc::Receiver<Order>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = mpsc::channel(ORDERS_MAX);
        lock(&self.agents).insert(host.clone(), (id, send));
        (id, receive)
    }

    fn leave(&self, host: &HostName, id: u64) {
        let mut agents = lock(&self.agents);
        if agents.get(host).is_some_and(|(held, _)| *held == id) {
            agents.remove(host);
        }
    }

    /// Sends an order, and keeps the person's stream for the agent that attends to it.
    fn order(
        &self,
        host: &HostName,
        order: Order,
        down: Streaming<ExecPart>,
    ) -> Result<oneshot::Receiver<Streaming<ExecPart>>, Status> {
        let agent = lock(&self.agents).get(host).map(|(_, send)| send.clone());
        let Some(agent) = agent else {
            return Err(Status::failed_precondition(format!(
                "the agent of {host} is not connected to this coordinator; where others have it, a context \
                 with a token of `faultbed user token` asks them too"
            )));
        };
        let (up, attended) = oneshot::channel();
        {
            let mut unattended = lock(&self.unattended);
            if unattended.len() >= UNATTENDED_MAX {
                return Err(Status::resource_exhausted("too many commands wait for their hosts"));
            }
            unattended.insert(order.id.clone(), Unattended { host: host.clone(), down, up });
        }
        let id = order.id.clone();
        if agent.try_send(order).is_err() {
            self.forget(&id);
            return Err(Status::unavailable(format!("host {host} does not take orders now")));
        }
        Ok(attended)
    }

    fn forget(&self, id: &str) {
        lock(&self.unattended).remove(id);
    }

    /// What an agent attends to: only what was ordered of its own host.
    fn attend(&self, host: &HostName, id: &str) -> Option<Unattended> {
        let mut unattended = lock(&self.unattended);
        if unattended.get(id).is_some_and(|waiting| waiting.host == *host) {
            return unattended.remove(id);
        }
        None
    }
}

/// Forgets an agent when its stream ends.
struct Waiting {
    desk: Arc<Desk>,
    host: HostName,
    id: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.desk.leave(&self.host, self.id);
    }
}

/// Forgets an order when its person goes before an agent came.
struct Ordered {
    desk: Arc<Desk>,
    id: String,
}

impl Drop for Ordered {
    fn drop(&mut self) {
        self.desk.forget(&self.id);
    }
}

#[tonic::async_trait]
impl Exec for ExecService {
    type RunStream = Parts;

    async fn run(&self, request: Request<Streaming<ExecPart>>) -> Result<Response<Parts>, Status> {
        let by = caller(&request)?.user;
        let mut down = request.into_inner();
        let asked: Asked = decode("request", &read_head(&mut down).await?)?;
        let seen = self.mirror.now();
        let (node, host) = choose(&seen.lab, &reports_of_living(&seen), &asked, &by)
            .map_err(Status::invalid_argument)?;
        let id = format!("{:032x}", rand::random::<u128>());
        let words = asked.work.words();
        let order = Order { id: id.clone(), node: node.clone(), work: asked.work, by: by.clone() };
        let _ordered = Ordered { desk: Arc::clone(&self.desk), id };
        let attended = self.desk.order(&host, order, down)?;
        self.journal.write(
            EventKind::Node,
            node.to_string(),
            format!("{node}: {by} asks to {words}"),
        );
        match timeout(ATTENDED_WITHIN, attended).await {
            Ok(Ok(up)) => Ok(Response::new(up.boxed())),
            Ok(Err(_)) | Err(_) => Err(Status::unavailable(format!(
                "host {host} did not attend to it within {} s",
                ATTENDED_WITHIN.as_secs()
            ))),
        }
    }

    type AttendStream = Parts;

    async fn attend(
        &self,
        request: Request<Streaming<ExecPart>>,
    ) -> Result<Response<Parts>, Status> {
        let caller = caller(&request)?;
        let mut up = request.into_inner();
        let Attendance { host, order } = decode("attendance", &read_head(&mut up).await?)?;
        // An agent attends to orders of its own host only.
        caller.must_be_host(&host).map_err(Status::permission_denied)?;
        let Some(id) = order else {
            let (id, orders) = self.desk.wait(&host);
            let waiting = Waiting { desk: Arc::clone(&self.desk), host, id };
            return Ok(Response::new(orders_for(waiting, orders, up)));
        };
        let Some(Unattended { down, up: person, .. }) = self.desk.attend(&host, &id) else {
            return Err(Status::not_found("nobody waits for this any more"));
        };
        person.send(up).map_err(|_| Status::cancelled("whoever asked has gone"))?;
        Ok(Response::new(down.boxed()))
    }
}

/// Orders as they come, until the agent goes.
fn orders_for(
    waiting: Waiting,
    mut orders: mpsc::Receiver<Order>,
    mut agent: Streaming<ExecPart>,
) -> Parts {
    Box::pin(async_stream::try_stream! {
        let _waiting = waiting;
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                // It says nothing more on this stream; that it ends is all there is to hear.
                _ = agent.message() => None,
            };
            let Some(order) = order else { return };
            let head = super::encode(&order)?.json;
            yield ExecPart { kind: Some(Kind::Head(head)) };
        }
    })
}

async fn read_head(from: &mut Streaming<ExecPart>) -> Result<String, Status> {
    let first = timeout(HEAD_WITHIN, from.message())
        .await
        .map_err(|_| Status::deadline_exceeded("nothing was said within 5 s"))??;
    match first.and_then(|part| part.kind) {
        Some(Kind::Head(json)) => Ok(json),
        Some(Kind::Data(_) | Kind::Complaint(_) | Kind::End(_) | Kind::Done(_)) | None => {
            Err(Status::invalid_argument("the first message must say what is asked"))
        }
    }
}
