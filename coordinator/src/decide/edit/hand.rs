//! Adopts one spec that was put into the store by hand, as `apply` would that one object.

use faultbed_common::{
    fault::FaultSpec,
    lab::Origin,
    name::{ClusterName, FaultName},
    spec::{ClusterSpec, SPEC_BYTES_MAX},
};

use super::{Refusal, apply, change::Change, cluster, fault, invalid};

/// Returns what was done, in words.
pub(super) fn adopt(
    change: &mut Change<'_>,
    kind: &str,
    name: &str,
    value: Option<&str>,
) -> Result<String, Refusal> {
    if let Some(value) = value
        && value.len() > SPEC_BYTES_MAX
    {
        let bytes = value.len();
        return Err(invalid(format!(
            "{kind} {name}: {bytes} bytes were put; at most {SPEC_BYTES_MAX} are allowed"
        )));
    }
    match (kind, value) {
        ("cluster", Some(value)) => put_cluster(change, &parse_name(name)?, value)?,
        ("cluster", None) => cluster::remove(change, &parse_name::<_>(name)?, false),
        ("fault", Some(value)) => put_fault(change, &parse_name(name)?, value)?,
        ("fault", None) => {
            change.lab.faults.remove(&parse_name::<faultbed_common::name::kind::Fault>(name)?);
        }
        _ => {
            return Err(invalid(format!(
                "{kind:?} is no kind of spec: cluster and fault are read here"
            )));
        }
    }
    let verb = if value.is_some() { "put" } else { "delete" };
    Ok(format!("{verb} {kind} {name} by hand"))
}

fn parse_name<K: faultbed_common::name::Kind>(
    name: &str,
) -> Result<faultbed_common::name::Name<K>, Refusal> {
    faultbed_common::name::Name::parse(name).map_err(invalid)
}

/// The origin of an object put by hand: one that is there keeps its own.
fn origin(change: &Change<'_>, old: Option<&Origin>) -> Origin {
    old.cloned().unwrap_or_else(|| change.origin())
}

fn put_cluster(change: &mut Change<'_>, name: &ClusterName, value: &str) -> Result<(), Refusal> {
    let spec: ClusterSpec = serde_json::from_str(value)
        .map_err(|error| invalid(format!("read cluster {name}: {error}")))?;
    let old = change.lab.clusters.get(name);
    if old.is_some_and(|old| old.spec == spec) {
        return Ok(());
    }
    let origin = origin(change, old.map(|old| &old.origin));
    cluster::accept(change, name, &spec, origin)
}

fn put_fault(change: &mut Change<'_>, name: &FaultName, value: &str) -> Result<(), Refusal> {
    let spec: FaultSpec = serde_json::from_str(value)
        .map_err(|error| invalid(format!("read fault {name}: {error}")))?;
    let old = change.lab.faults.get(name);
    if old.is_some_and(|old| old.spec == spec) {
        return Ok(());
    }
    if spec.lasts.is_none() {
        return Err(fault::no_time(name));
    }
    let origin = origin(change, old.map(|old| &old.origin));
    fault::accept(change, name, &spec, origin, apply::when(&spec))
}
