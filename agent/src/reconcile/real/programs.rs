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

use super::{RealHands, VERSION_TIMEOUT, check};
use crate::{
    binaries::{
        self, Binary,
        version::{self, Said},
    },
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

    /// The program hashed and pinned. One after the other: nodes of one program start together, and it is read
    /// once for all of them.
    pub(super) fn hashed(&self, binary: &Binary, bins: &Path) -> Result<Binary, String> {
        let _turn = self.identifying.lock().unwrap_or_else(PoisonError::into_inner);
        let hashes = || self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = hashes().known(binary).filter(|known| known.sha256.is_some());
        if let Some(known) = known {
            return Ok(Binary { from: binary.from.clone(), ..known });
        }
        let found = binaries::identify(binary, bins)?;
        hashes().learn(&found);
        Ok(found)
    }

    /// The program with its version, where it is the right one; `of` is the one node that is meant, where
    /// not its whole role is. What was asked before is not asked again.
    fn fit(
        &self,
        of: Option<&NodeName>,
        spec: &NodeSpec,
        mut binary: Binary,
    ) -> Result<Binary, Lack> {
        if spec.launch.version_rule.is_none() {
            return Ok(binary);
        }
        if binary.version.is_none() {
            match version::ask(&binary.path, &spec.launch.version, VERSION_TIMEOUT) {
                Said::Line(line) => {
                    binary.version = Some(line);
                    self.hashes.lock().unwrap_or_else(PoisonError::into_inner).learn(&binary);
                }
                Said::Nothing => {}
                Said::Late => {
                    return Err(Lack::Passing(check::late(spec, binary.shown(), VERSION_TIMEOUT)));
                }
            }
        }
        check::version(of, spec, binary.shown(), binary.version.as_deref())?;
        Ok(binary)
    }

    /// What a start looks at before it changes anything, for the node that still runs: one that could
    /// not come back is not ended.
    pub(super) fn check_next(&self, node: &NodeName, spec: &NodeSpec) -> Result<(), String> {
        let checked = || {
            self.allow.check_user(spec.launch.user.as_deref())?;
            let binary = self.now_there(&spec.launch)?;
            self.allow.check_program(&binary.path)?;
            self.fit(Some(node), spec, binary)?;
            Ok(check::surroundings(spec)?)
        };
        checked().map_err(Lack::said)
    }

    /// What a start runs, when everything that it needs was looked at.
    pub(super) fn checked(&self, order: &StartOrder) -> Result<(Binary, PathBuf), String> {
        let StartOrder { node, spec, .. } = order;
        let checked = || {
            self.allow.check_user(spec.launch.user.as_deref())?;
            let (mut binary, program) = self.binary(order)?;
            self.allow.check_program(&binary.path)?;
            if order.cause == Cause::Command {
                // What ran before is one node's own; what never ran is its whole role's.
                let of = order.before.is_some().then_some(node);
                binary = self.fit(of, spec, binary)?;
            }
            check::surroundings(spec)?;
            check::data(&self.lab, &self.node_dir(node), spec)?;
            Ok((binary, program))
        };
        checked().map_err(Lack::said)
    }

    /// What is looked at before a node starts, before commands make data for it.
    pub(super) fn check_before_first(&self, order: &CommandOrder) -> Result<(), String> {
        let spec = &order.spec;
        let checked = || {
            self.fit(None, spec, self.now_there(&spec.launch)?)?;
            check::surroundings(spec)?;
            Ok(check::data(&self.lab, &self.node_dir(&order.node), spec)?)
        };
        checked().map_err(Lack::said)
    }
}

/// Why a node is not started.
enum Lack {
    /// Time does not change it.
    Lasting(String),
    /// It may be otherwise when it is looked at again.
    Passing(String),
}

impl Lack {
    fn said(self) -> String {
        match self {
            Self::Lasting(why) => format!("{REFUSED}{why}"),
            Self::Passing(why) => why,
        }
    }
}

impl From<String> for Lack {
    fn from(why: String) -> Self {
        Self::Lasting(why)
    }
}
