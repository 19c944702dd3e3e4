//! Does one step for one node: one effect, nothing decided.

use std::{sync::Arc, time::Duration};

use faultbed_common::{host_spec::NodeSpec, name::NodeName};

use super::{
    Asked, Hands, NodeAct, NodeRecord,
    hands::{CommandFailed, CommandOrder, StartOrder},
};
use crate::binaries::Binary;

/// `init`, `join` and `leave` commands are killed after this.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// A node that is asked to go must not wait long for a cluster that does not answer.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Nor longer than this for one that moves its data away first.
const LEAVE_TIMEOUT_MAX: Duration = Duration::from_secs(10 * 60);

/// One try of a `bootstrap` command is killed after this.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(30);

/// A step with all it needs.
#[derive(Debug, Clone)]
pub struct Job {
    /// For which node.
    pub node: NodeName,
    /// What.
    pub act: NodeAct,
    /// How the node runs; `None` only for one whose orders are lost.
    pub spec: Option<Arc<NodeSpec>>,
    /// What was done before.
    pub record: NodeRecord,
}

/// How a step ended.
#[derive(Debug, Clone)]
pub struct Done {
    /// For which node.
    pub node: NodeName,
    /// What.
    pub act: NodeAct,
    /// What it runs now, after a start; or why the step failed.
    pub result: Result<Option<Binary>, String>,
}

/// Does the step.
pub async fn execute<H: Hands>(hands: Arc<H>, job: Job) -> Done {
    let (node, act) = (job.node.clone(), job.act.clone());
    let result = match act {
        NodeAct::Init { .. } | NodeAct::Join | NodeAct::Leave | NodeAct::Bootstrap => {
            command(&*hands, &job).await.map(|()| None)
        }
        NodeAct::Fetch { ref pushed } => hands.fetch(pushed.clone()).await.map(|()| None),
        NodeAct::EffectOn { on: ref probe, .. }
        | NodeAct::EffectOff { probe: Some(ref probe), .. } => {
            hands.call(&node, job.spec.as_deref(), probe).await.map(|()| None)
        }
        _ => match tokio::task::spawn_blocking(move || block(&*hands, &job)).await {
            Ok(result) => result,
            Err(error) => Err(format!("step ended early: {error}")),
        },
    };
    Done { node, act, result }
}

fn block<H: Hands>(hands: &H, job: &Job) -> Result<Option<Binary>, String> {
    let Job { node, act, spec, record } = job;
    let spec = || spec.clone().ok_or_else(|| "its orders are lost".to_owned());
    match act {
        NodeAct::Start { incarnation, cause, orders } => {
            let order = StartOrder {
                node: node.clone(),
                spec: spec()?,
                incarnation: *incarnation,
                cause: *cause,
                before: record.binary.clone(),
                orders: orders.clone(),
            };
            hands.start(&order).map(Some)
        }
        NodeAct::Check { .. } => hands.check(node, &*spec()?).map(|()| None),
        NodeAct::Signal { incarnation, why, signal } => {
            let asked = Asked { why: *why, signal: *signal, at: hands.now() };
            hands.signal(node, *incarnation, &asked).map(|()| None)
        }
        NodeAct::KillTree { incarnation } => hands.kill_tree(node, *incarnation).map(|()| None),
        NodeAct::Orders { incarnation, orders } => {
            hands.set_orders(node, *incarnation, orders).map(|()| None)
        }
        NodeAct::Wipe { .. } => hands.wipe(node, &*spec()?).map(|()| None),
        NodeAct::Retire { wipe } => hands.retire(node, *wipe).map(|()| None),
        // The loop itself does the first, and the others run commands or wait for others.
        NodeAct::Interrupt
        | NodeAct::Fetch { .. }
        | NodeAct::Init { .. }
        | NodeAct::Join
        | NodeAct::Leave
        | NodeAct::Bootstrap
        | NodeAct::EffectOn { .. }
        | NodeAct::EffectOff { .. } => Ok(None),
    }
}

async fn command<H: Hands>(hands: &H, job: &Job) -> Result<(), String> {
    let Some(spec) = job.spec.clone() else { return Ok(()) };
    let launch = &spec.launch;
    let (argv, timeout) = match &job.act {
        NodeAct::Init { index } => (launch.init.get(*index).cloned(), COMMAND_TIMEOUT),
        NodeAct::Join => (launch.join.clone(), COMMAND_TIMEOUT),
        NodeAct::Leave => {
            let timeout = launch.leave_timeout.map_or(LEAVE_TIMEOUT, |span| span.0);
            (launch.leave.clone(), timeout.min(LEAVE_TIMEOUT_MAX))
        }
        NodeAct::Bootstrap => {
            (launch.bootstrap.as_ref().map(|b| b.command.clone()), BOOTSTRAP_TIMEOUT)
        }
        _ => (None, COMMAND_TIMEOUT),
    };
    // What is not there any more need not be done.
    let Some(argv) = argv else { return Ok(()) };
    let order = CommandOrder { node: job.node.clone(), spec: spec.clone(), argv, timeout };
    match hands.command(order).await {
        Ok(_) => Ok(()),
        Err(CommandFailed { why, output }) => {
            let done = launch.bootstrap.as_ref().and_then(|b| b.done.as_deref());
            let is_done = job.act == NodeAct::Bootstrap
                && done.is_some_and(|done| !done.is_empty() && output.contains(done));
            if is_done { Ok(()) } else { Err(why) }
        }
    }
}
