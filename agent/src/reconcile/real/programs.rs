//! Which program a node runs, and whether it is the right one.

use std::{
    path::{Path, PathBuf},
    sync::PoisonError,
};

use faultbed_common::{
    host_spec::{Launch, NodeSpec},
    name::NodeName,
    report::REFUSED,
};

use super::{RealHands, VERSION_TIMEOUT, check, prepare};
use crate::{
    binaries::{self, Binary},
    reconcile::{
        hands::{CommandOrder, Hands as _, StartOrder},
        step::Cause,
    },
    search,
};

impl RealHands {
    /// What shall be run, for this cause.
    pub(super) fn binary(&self, order: &StartOrder) -> Result<(Binary, PathBuf), String> {
        let now_there = || {
            let binary = self.now_there(&order.spec.launch)?;
            Ok((binary.clone(), binary.path))
        };
        match (&order.before, order.cause) {
            (None, _) | (Some(_), Cause::Command) => now_there(),
            (Some(before), Cause::Crash) => match binaries::again(before) {
                Ok(path) => Ok((before.clone(), path)),
                Err(error) => Err(error.to_string()),
            },
            (Some(before), Cause::FaultOver) => match binaries::again(before) {
                Ok(path) => Ok((before.clone(), path)),
                Err(_) => now_there(),
            },
        }
    }

    /// The program that is at a node's path now.
    fn now_there(&self, launch: &Launch) -> Result<Binary, String> {
        // A pushed program is where we keep it, whatever the orders call that place.
        let own = launch.pushed.as_ref().map(|pushed| pushed.file(&self.dir));
        let program = own.as_deref().and_then(Path::to_str).unwrap_or(&launch.program);
        let path = search::path(&launch.search);
        let mut binary = binaries::find(program, &path).map_err(|error| error.to_string())?;
        binary.from = launch.pushed.as_ref().map(|pushed| PathBuf::from(&pushed.path));
        let known = self.hashes.lock().unwrap_or_else(PoisonError::into_inner).known(&binary);
        Ok(Binary { from: binary.from.clone(), ..known.unwrap_or(binary) })
    }

    /// Whether a program is the right one; `of` is the one node that is meant, where not its whole role
    /// is. What ran before has said it already.
    pub(super) fn check_version(
        &self,
        of: Option<&NodeName>,
        spec: &NodeSpec,
        binary: &Binary,
    ) -> Result<(), String> {
        if spec.launch.version_rule.is_none() {
            return Ok(());
        }
        let args = &spec.launch.version;
        let ask = || prepare::version(&binary.path, args, VERSION_TIMEOUT);
        let said = binary.version.clone().or_else(ask);
        check::version(of, spec, binary.shown(), said.as_deref())
    }

    /// What a start looks at before it changes anything, for the node that still runs: one that could
    /// not come back is not ended.
    pub(super) fn check_next(&self, node: &NodeName, spec: &NodeSpec) -> Result<(), String> {
        let checked = || {
            self.allow.check_user(spec.launch.user.as_deref())?;
            let binary = self.now_there(&spec.launch)?;
            self.allow.check_program(&binary.path)?;
            self.check_version(Some(node), spec, &binary)?;
            check::surroundings(spec)
        };
        checked().map_err(refused)
    }

    /// What a start runs, when everything that it needs was looked at.
    pub(super) fn checked(&self, order: &StartOrder) -> Result<(Binary, PathBuf), String> {
        let StartOrder { node, spec, .. } = order;
        let checked = || {
            self.allow.check_user(spec.launch.user.as_deref())?;
            let (binary, program) = self.binary(order)?;
            self.allow.check_program(&binary.path)?;
            if order.cause == Cause::Command {
                // What ran before is one node's own; what never ran is its whole role's.
                let of = order.before.is_some().then_some(node);
                self.check_version(of, spec, &binary)?;
            }
            check::surroundings(spec)?;
            check::data(&self.lab, &self.node_dir(node), spec)?;
            Ok((binary, program))
        };
        checked().map_err(refused)
    }

    /// What is looked at before a node starts, before commands make data for it.
    pub(super) fn check_before_first(&self, order: &CommandOrder) -> Result<(), String> {
        let spec = &order.spec;
        let checked = || {
            self.check_version(None, spec, &self.now_there(&spec.launch)?)?;
            check::surroundings(spec)?;
            check::data(&self.lab, &self.node_dir(&order.node), spec)
        };
        checked().map_err(refused)
    }
}

/// Says of a reason that time does not change it.
fn refused(why: String) -> String {
    format!("{REFUSED}{why}")
}
