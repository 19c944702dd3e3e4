//! Between the records of shims and the words of the loop, and records that may be lost.

use std::{fs, io, io::Write as _, path::Path};

use faultbed_common::generation::Incarnation;
use serde::Serialize;

use crate::{
    clock::BootTime,
    node::{AskedRecord, AskedWhy, Pause, RunState, ShimOrders, records::record_file},
    reconcile::{Asked, Ended, NodeOrders, PauseUntil, Run, Running, Why},
};

/// Writes a record that a power cut may take back: it is whole or the one before.
pub(super) fn write_unsettled(dir: &Path, name: &str, record: &impl Serialize) -> io::Result<()> {
    let draft = dir.join(format!("{name}.draft"));
    record_file(&draft)?.write_all(&serde_json::to_vec(record)?)?;
    fs::rename(draft, dir.join(name))
}

pub(super) fn shim_orders(orders: &NodeOrders) -> ShimOrders {
    ShimOrders {
        dials: orders.dials.clone(),
        far: orders.far.clone(),
        own: orders.own.clone(),
        pause: orders.pause.map(pause),
        stall: orders.stall.map(pause),
    }
}

fn pause(until: PauseUntil) -> Pause {
    Pause {
        until_boottime_ns: match until {
            PauseUntil::Healed => None,
            PauseUntil::BoottimeNs(ns) => Some(ns),
        },
    }
}

pub(super) fn node_orders(orders: ShimOrders) -> NodeOrders {
    let until =
        |pause: Pause| pause.until_boottime_ns.map_or(PauseUntil::Healed, PauseUntil::BoottimeNs);
    NodeOrders {
        dials: orders.dials,
        far: orders.far,
        own: orders.own,
        pause: orders.pause.map(until),
        stall: orders.stall.map(until),
    }
}

pub(super) fn asked_record(asked: &Asked) -> AskedRecord {
    let why = match asked.why {
        Why::Stop => AskedWhy::Stop,
        Why::Kill => AskedWhy::Kill,
        Why::Restart => AskedWhy::Restart,
        Why::Wipe => AskedWhy::Wipe,
        Why::Remove => AskedWhy::Remove,
        // Nobody asks for that; what it could be is a stop.
        Why::Reboot => AskedWhy::Stop,
    };
    AskedRecord { why, signal: asked.signal, at_boot_ms: asked.at.ms() }
}

fn asked(record: &AskedRecord) -> Asked {
    let why = match record.why {
        AskedWhy::Stop => Why::Stop,
        AskedWhy::Kill => Why::Kill,
        AskedWhy::Restart => Why::Restart,
        AskedWhy::Wipe => Why::Wipe,
        AskedWhy::Remove => Why::Remove,
    };
    Asked { why, signal: record.signal, at: BootTime::from_ms(record.at_boot_ms) }
}

pub(super) fn run(incarnation: Incarnation, state: RunState) -> Run {
    let pid = |pid: i32| u32::try_from(pid).unwrap_or(0);
    match state {
        RunState::None => Run::None,
        RunState::Unknown { why } => Run::Unknown { why },
        RunState::Running { record, paused, asked: request } => Run::Running(Running {
            incarnation,
            pid: pid(record.node.pid),
            shim: pid(record.shim.pid),
            started: BootTime::from_ms(record.started_boot_ms),
            paused,
            asked: request.as_ref().map(asked),
        }),
        RunState::Exited { exit, asked: request, rebooted } => {
            let asked = request.filter(|r| exit.was_asked(Some(r))).map(|r| asked(&r).why);
            let went_down = rebooted && exit.told_to_end;
            // A time of an earlier boot may lie years ahead of this one: nobody must wait for it.
            let at_boot_ms = if rebooted { 0 } else { exit.at_boot_ms };
            Run::Ended(Ended {
                incarnation,
                code: exit.code,
                signal: exit.signal,
                at: BootTime::from_ms(at_boot_ms),
                asked: asked.or(went_down.then_some(Why::Reboot)),
            })
        }
    }
}

/// What is over already need not be asked for.
pub(super) fn gone_is_fine(result: io::Result<()>) -> Result<(), String> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}
