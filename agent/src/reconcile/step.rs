//! Steps: what a plan consists of. One idempotent effect each; done twice they do no harm.

use faultbed_common::{
    generation::{FaultRevision, Incarnation},
    name::{FaultName, NodeName},
    probe::Probe,
    program::Pushed,
    proxy_spec::ProxyFile,
};

use super::{NodeOrders, Why};

/// One effect.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Makes the proxy process run and do exactly this.
    Proxy(Box<ProxyFile>),
    /// Something for one node.
    Node {
        /// Which.
        node: NodeName,
        /// What.
        act: NodeAct,
    },
}

/// What is done for one node.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeAct {
    /// Ends the command that keeps the node busy: it is not wanted any more.
    Interrupt,
    /// Switches a custom effect off and forgets it.
    EffectOff {
        /// The fault it was of.
        fault: FaultName,
        /// How; nothing where the restart that was needed has been.
        probe: Option<Box<Probe>>,
    },
    /// Runs the command that makes the node leave its cluster.
    Leave,
    /// Looks whether what its next incarnation is to run can be run here, while it runs on.
    Check {
        /// Which that is.
        incarnation: Incarnation,
    },
    /// Asks the node to end.
    Signal {
        /// Which incarnation; a later one is not touched.
        incarnation: Incarnation,
        /// What for.
        why: Why,
        /// By which signal.
        signal: i32,
    },
    /// Ends every process of the node.
    KillTree {
        /// Which incarnation.
        incarnation: Incarnation,
    },
    /// Deletes its data; then it has been done this often.
    Wipe {
        /// The count afterwards.
        wipes: u64,
    },
    /// Forgets a node that is down and left the lab.
    Retire {
        /// Deletes its data too.
        wipe: bool,
    },
    /// Tells the shim what changed.
    Orders {
        /// Which incarnation.
        incarnation: Incarnation,
        /// Everything it must know.
        orders: NodeOrders,
    },
    /// Runs the `init` command of this number on empty data.
    Init {
        /// Counted from 0.
        index: usize,
    },
    /// Runs the command that joins the node to its cluster.
    Join,
    /// Fetches the program that was pushed for it.
    Fetch {
        /// Which.
        pushed: Pushed,
    },
    /// Starts the node.
    Start {
        /// As this incarnation.
        incarnation: Incarnation,
        /// Why, which decides what is run.
        cause: Cause,
        /// What its shim must know from the beginning.
        orders: NodeOrders,
    },
    /// Runs the command that sets up the cluster.
    Bootstrap,
    /// Switches a custom effect on.
    EffectOn {
        /// The fault it is of.
        fault: FaultName,
        /// Its version.
        revision: FaultRevision,
        /// In which incarnation.
        incarnation: Incarnation,
        /// How.
        on: Box<Probe>,
        /// How it is undone, for the record.
        off: Option<Box<Probe>>,
    },
}

/// Why a node is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody wants it: it runs the file that is now at its path.
    Command,
    /// A fault, or its machine, kept it down and does no more: it runs what it ran before.
    FaultOver,
    /// It crashed and may come back: it runs what it ran before.
    Crash,
}

/// Kinds of steps, by which failures are remembered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    /// See [`NodeAct::Interrupt`].
    Interrupt,
    /// See [`NodeAct::EffectOff`].
    EffectOff(FaultName),
    /// See [`NodeAct::Leave`].
    Leave,
    /// See [`NodeAct::Check`].
    Check,
    /// See [`NodeAct::Signal`].
    Signal,
    /// See [`NodeAct::KillTree`].
    KillTree,
    /// See [`NodeAct::Wipe`].
    Wipe,
    /// See [`NodeAct::Retire`].
    Retire,
    /// See [`NodeAct::Orders`].
    Orders,
    /// See [`NodeAct::Init`].
    Init,
    /// See [`NodeAct::Join`].
    Join,
    /// See [`NodeAct::Fetch`].
    Fetch,
    /// See [`NodeAct::Start`].
    Start,
    /// See [`NodeAct::Bootstrap`].
    Bootstrap,
    /// See [`NodeAct::EffectOn`].
    EffectOn(FaultName),
}

impl NodeAct {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> StepKind {
        match self {
            Self::Interrupt => StepKind::Interrupt,
            Self::EffectOff { fault, .. } => StepKind::EffectOff(fault.clone()),
            Self::Leave => StepKind::Leave,
            Self::Check { .. } => StepKind::Check,
            Self::Signal { .. } => StepKind::Signal,
            Self::KillTree { .. } => StepKind::KillTree,
            Self::Wipe { .. } => StepKind::Wipe,
            Self::Retire { .. } => StepKind::Retire,
            Self::Orders { .. } => StepKind::Orders,
            Self::Init { .. } => StepKind::Init,
            Self::Join => StepKind::Join,
            Self::Fetch { .. } => StepKind::Fetch,
            Self::Start { .. } => StepKind::Start,
            Self::Bootstrap => StepKind::Bootstrap,
            Self::EffectOn { fault, .. } => StepKind::EffectOn(fault.clone()),
        }
    }
}

impl StepKind {
    /// Whether it takes something away. Such steps come first: a new node may need the old port.
    #[must_use]
    pub fn removes(&self) -> bool {
        match self {
            Self::Interrupt
            | Self::EffectOff(_)
            | Self::Leave
            | Self::Signal
            | Self::KillTree
            | Self::Wipe
            | Self::Retire => true,
            Self::Check
            | Self::Orders
            | Self::Init
            | Self::Join
            | Self::Fetch
            | Self::Start
            | Self::Bootstrap
            | Self::EffectOn(_) => false,
        }
    }

    /// Whether it runs a command that can be ended at any moment and begun again.
    #[must_use]
    pub fn is_interruptible(&self) -> bool {
        matches!(
            self,
            Self::Init
                | Self::Join
                | Self::Leave
                | Self::Fetch
                | Self::Bootstrap
                | Self::EffectOn(_)
        )
    }

    /// What it does, for people.
    #[must_use]
    pub fn verb(&self) -> String {
        match self {
            Self::Interrupt => "interrupt its command".to_owned(),
            Self::EffectOff(fault) => format!("switch off {fault}"),
            Self::Leave => "leave the cluster".to_owned(),
            Self::Check => "check its next program".to_owned(),
            Self::Signal => "stop".to_owned(),
            Self::KillTree => "kill its processes".to_owned(),
            Self::Wipe => "wipe its data".to_owned(),
            Self::Retire => "put away its directory".to_owned(),
            Self::Orders => "tell its shim".to_owned(),
            Self::Init => "initialise its data".to_owned(),
            Self::Join => "join the cluster".to_owned(),
            Self::Fetch => "fetch its program".to_owned(),
            Self::Start => "start".to_owned(),
            Self::Bootstrap => "set up the cluster".to_owned(),
            Self::EffectOn(fault) => format!("switch on {fault}"),
        }
    }
}
