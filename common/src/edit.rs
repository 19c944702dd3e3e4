//! One change of a lab as people ask for it, and the answer. `faultbed-coordinator` decides it purely.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    blueprint::Blueprint,
    duration::Span,
    fault::FaultSpec,
    generation::Generation,
    lab::Resolved,
    name::{ClusterName, FaultName, HostName, NodeName},
    program::{Files, Needs},
    spec::{ClusterSpec, LabFile},
};

/// A change asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EditRequest {
    /// What.
    pub edit: Edit,
    /// Only say what it would do.
    #[serde(default)]
    pub plan: bool,
    /// Refuse unless the lab is at this generation.
    #[serde(default)]
    pub if_generation: Option<Generation>,
    /// Blueprints of the user's own that the edit names by path, by that path.
    #[serde(default)]
    pub blueprints: BTreeMap<String, Blueprint>,
    /// May touch what others own.
    #[serde(default)]
    pub everyone: bool,
    /// May take nodes away whose blueprint says that they cannot leave without losing data.
    #[serde(default)]
    pub force: bool,
    /// What the asker knows of the programs on its machine.
    #[serde(default)]
    pub files: Files,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edit {
    /// Make the lab as this file says; replaces what the last `apply` made. Boxed: it is large.
    Apply(Box<LabFile>),
    /// A new cluster, or exactly the one that is there.
    StartCluster {
        /// Its name.
        name: ClusterName,
        /// What is asked for.
        spec: ClusterSpec,
    },
    /// Remove a cluster.
    DeleteCluster {
        /// Its name.
        name: ClusterName,
        /// And its data.
        wipe: bool,
    },
    /// Start, stop, restart, kill or wipe nodes.
    Node {
        /// The targets as written.
        targets: Vec<String>,
        /// What to do with each.
        verb: NodeVerb,
    },
    /// Set a field of the spec of the targets' nodes, such as `path`; the nodes restart.
    Set {
        /// Targets as written: nodes, `CLUSTER/ROLE` or a cluster.
        targets: Vec<String>,
        /// `path`, `config`, `args`, `env.NAME`, `on_crash`, `lease`, `count`.
        field: String,
        /// As text.
        value: String,
    },
    /// Take nodes out of their cluster for good: their role has so many fewer.
    Remove {
        /// Targets as written.
        targets: Vec<String>,
    },
    /// A new fault, or another spec for one that is not over.
    Inject {
        /// Its name; chosen where it is not said.
        name: Option<FaultName>,
        /// What.
        spec: Box<FaultSpec>,
        /// Whether there is a fault of this name, which takes the spec and keeps its connections and evidence.
        #[serde(default)]
        replace: bool,
    },
    /// End faults; all of one's own where none is named.
    Heal {
        /// Which.
        faults: Vec<FaultName>,
    },
    /// Begins the lease of the whole lab anew, or takes it away.
    LabLease {
        /// From now on.
        lasts: Option<Span>,
    },
    /// Let no new node come to a host, or let them come again.
    DrainHost {
        /// Which.
        name: HostName,
        /// Whether it is to be drained.
        drained: bool,
    },
    /// Take a host out of the lab; its agent is told, and ends.
    RemoveHost {
        /// Which.
        name: HostName,
        /// And the nodes that are placed there.
        force: bool,
    },
    /// Give labels to a host, or take back those given so.
    LabelHost {
        /// Which.
        name: HostName,
        /// Labels and their values.
        set: BTreeMap<String, String>,
        /// Labels for which the file's or the join's word is to hold again.
        unset: BTreeSet<String>,
    },
    /// Forget an ended fault, or heal and forget one.
    DeleteFault {
        /// Its name.
        name: FaultName,
    },
}

/// What a verb asks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeVerb {
    /// Run, in a new incarnation where it is down.
    Start,
    /// Down on purpose.
    Stop,
    /// A new incarnation, of the file now at its path.
    Restart,
    /// Ended by this signal; stays down, or comes back at once where `respawn` says so.
    Kill {
        /// The number.
        signal: i32,
        /// Start it again.
        respawn: bool,
    },
    /// Stop, delete its data, and start it again if it was to run.
    Wipe,
}

/// What a change did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EditReply {
    /// The generation after it.
    pub generation: Generation,
    /// Whether anything changes at all.
    pub changed: bool,
    /// Each object that changes.
    pub objects: Vec<ObjectChange>,
    /// What becomes of nodes.
    pub nodes: BTreeMap<NodeName, NodeFate>,
    /// What the targets of a fault resolved to, by fault.
    pub resolved: BTreeMap<FaultName, Resolved>,
    /// Things to know that do not prevent it, such as objects kept because a verb made them.
    pub notes: Vec<String>,
    /// What the asker must do first; then nothing was changed, and it asks again.
    #[serde(default, skip_serializing_if = "Needs::is_empty")]
    pub needs: Needs,
}

/// One object before and after, as TOML for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectChange {
    /// `cluster` or `fault`, `host` or `lab`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// As it was.
    pub before: Option<String>,
    /// As it will be.
    pub after: Option<String>,
}

/// What a change does to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeFate {
    /// It is new, or down, and starts.
    Start,
    /// It runs and starts again.
    Restart,
    /// It stops.
    Stop,
    /// It is killed.
    Kill,
    /// It goes away.
    Remove,
    /// Its data is deleted.
    Wipe,
}

/// Which accepted objects are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// The whole accepted lab, as `lab::Lab`.
    Lab,
    /// The history, newest last, as a list of [`HistoryEntry`].
    History,
}

/// What a watcher wants to hear of the lab. Nothing said is all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchQuery {
    /// Faults without their links, one by one: whether they are in force and what all links together have
    /// met is said all the same. Who waits for a fault of thousands of links hears of it much sooner.
    pub brief: bool,
    /// Nothing but faults, briefly, and hosts: no nodes, and not what is pending.
    pub only_faults: bool,
}

/// One accepted generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Which.
    pub generation: Generation,
    /// When, on the accepting coordinator's clock.
    pub at_unix_ms: u64,
    /// Who.
    pub by: String,
    /// What was asked, in words: `restart kv-1`.
    pub what: String,
    /// The objects it changed.
    pub objects: Vec<ObjectChange>,
}
