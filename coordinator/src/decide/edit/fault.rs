//! Faults are injected, healed and forgotten.

use std::collections::BTreeSet;

use faultbed_common::{
    duration::Span,
    fault::{FOR_DEFAULT, FaultSpec, Grade, Lasts},
    host_spec::Wanted,
    lab::{Cluster, Ended, Fault, Means, Origin, Phase, Placement, Resolved, few},
    name::{ClusterName, FaultName, NodeName},
    report::{Identity, NO_LISTENER},
    shape,
    spec::SPEC_BYTES_MAX,
    target,
};

use super::{
    Refusal,
    change::{Change, did_you_mean},
    invalid,
};

/// Most faults that are not over. A script that injects in a loop meets it.
pub(super) const FAULTS_MAX: usize = 500;

/// When an accepted fault begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// At once.
    Now,
    /// When its clusters have been ready once, and whoever leads is known.
    Ready,
}

/// `inject`: begins at once, or with `replace` takes the place of what the fault `given` was. Returns what was
/// asked, in words.
pub(super) fn inject(
    change: &mut Change<'_>,
    given: Option<&FaultName>,
    spec: &FaultSpec,
    replace: bool,
) -> Result<String, Refusal> {
    let mut spec = spec.clone();
    // A verb is now, so `at` would say nothing.
    spec.at = None;
    if replace {
        let Some(name) = given else {
            return Err(invalid("say with --name which fault to replace".to_owned()));
        };
        return self::replace(change, name, spec);
    }
    if spec.lasts.is_none() {
        spec.lasts = Some(Lasts::For(Span(FOR_DEFAULT)));
        change.note(format!("lasts {} unless healed earlier; --for sets it", Span(FOR_DEFAULT)));
    }
    let name = match given {
        Some(name) => {
            let old = change.lab.faults.get(name);
            if old.is_some_and(|old| !old.is_ended()) {
                return Err(invalid(format!(
                    "there is a fault {name} already; `faultbed heal {name}` ends it, `inject` with --replace \
                     changes it, or give another --name"
                )));
            }
            if let Some(old) = old {
                change.own(&format!("fault {name}"), &old.origin)?;
            }
            name.clone()
        }
        None => choose_name(change, &spec),
    };
    let origin = change.origin();
    let own_name = given.is_some();
    accept(change, &name, &spec, origin, When::Now).map_err(|refusal| match refusal {
        // A name that was only going to be chosen means nothing to anybody.
        Refusal::Invalid(why) if !own_name => {
            invalid(why.replacen(&format!("fault {name}: "), "", 1))
        }
        refusal => refusal,
    })?;
    Ok(format!("inject {name}: {} {}", shape::summary(&spec), sides(change, &name)))
}

/// `inject --replace`: another spec for a fault on links that is not over. It is whose it was and lasts as long
/// as it did, from now on, where nothing else is said; one that waits for its clusters waits on.
fn replace(
    change: &mut Change<'_>,
    name: &FaultName,
    mut spec: FaultSpec,
) -> Result<String, Refusal> {
    let Some(old) = change.lab.faults.get(name).cloned() else { return Err(unknown(change, name)) };
    change.own(&format!("fault {name}"), &old.origin)?;
    if old.is_ended() {
        return Err(invalid(format!(
            "fault {name} is over: leave --replace out to inject it again"
        )));
    }
    if old.spec.on.is_some() || spec.on.is_some() {
        return Err(invalid(format!(
            "fault {name}: --replace changes links only, and this is a fault on nodes: `faultbed heal {name}`, \
             and inject it again"
        )));
    }
    spec.lasts = spec.lasts.or(old.spec.lasts);
    let when = match old.phase {
        Phase::Pending { .. } => {
            spec.at = old.spec.at;
            When::Ready
        }
        Phase::Active { .. } | Phase::Ended { .. } => When::Now,
    };
    if old.origin.by == Means::Apply {
        change.note(format!(
            "{name} is of a file: `faultbed apply` of it makes it again what is written there, also once it is over"
        ));
    }
    accept(change, name, &spec, old.origin.clone(), when)?;
    Ok(format!("replace {name}: {} {}", shape::summary(&spec), sides(change, name)))
}

/// On whom a fault turned out to act: `kv-1 | kv-2,kv-3`.
fn sides(change: &Change<'_>, name: &FaultName) -> String {
    change.lab.faults.get(name).map(|fault| fault.resolved.sides(",")).unwrap_or_default()
}

/// `<kind>-<n>`, with the generation it makes as its number, so that none is ever used again.
fn choose_name(change: &Change<'_>, spec: &FaultSpec) -> FaultName {
    let first = change.before.generation.next().0;
    // A user's own name may be in the way; as many tries as there are faults always suffice.
    let tries = first..=first + change.lab.faults.len() as u64 + 1;
    let named = |n: u64| {
        let kind = shape::kind(spec);
        FaultName::parse(&format!("{kind}-{n}"))
            .or_else(|_| FaultName::parse(&format!("effect-{n}")))
    };
    tries
        .filter_map(|n| named(n).ok())
        .find(|name| !change.lab.faults.contains_key(name))
        .expect("there are more numbers than faults, and effect-N is a name")
}

/// Puts a fault into the lab, checked, and begun where its time has come.
pub(super) fn accept(
    change: &mut Change<'_>,
    name: &FaultName,
    spec: &FaultSpec,
    origin: Origin,
    when: When,
) -> Result<(), Refusal> {
    let refuse = |why: &dyn std::fmt::Display| invalid(format!("fault {name}: {why}"));
    let bytes = serde_json::to_string(spec).map_or(0, |text| text.len());
    if bytes > SPEC_BYTES_MAX {
        let why = format!("it has {bytes} bytes; at most {SPEC_BYTES_MAX} are allowed");
        return Err(refuse(&why));
    }
    let others =
        change.lab.faults.iter().filter(|(other, there)| *other != name && !there.is_ended());
    if others.count() >= FAULTS_MAX {
        let why = format!("there are {FAULTS_MAX} faults already; `faultbed heal --all` ends them");
        return Err(refuse(&why));
    }
    shape::check(spec).map_err(|error| refuse(&error))?;
    let named = target::clusters(&change.lab, &shape::targets(spec)).map_err(|e| refuse(&e))?;
    let waits = waits_for(change, &named).filter(|_| when == When::Ready);
    let (phase, resolved) =
        match shape::resolve(&change.lab, change.reports, spec, spec.seed_for(name)) {
            Ok(resolved) => {
                let met = change.met(&resolved);
                meet_others(change, name, &met)?;
                let phase = match waits {
                    Some(why) => Phase::Pending { why },
                    None => {
                        check_grade(change, spec, &resolved).map_err(|why| refuse(&why))?;
                        check_disk(change, spec, &resolved).map_err(|why| refuse(&why))?;
                        Phase::Active { since_unix_ms: change.asked.now_unix_ms }
                    }
                };
                (phase, resolved)
            }
            Err(error) if error.is_later() && when == When::Ready => {
                meet_others(change, name, &named)?;
                let why = waits.unwrap_or_else(|| error.to_string());
                (Phase::Pending { why }, Resolved::default())
            }
            Err(error) => return Err(refuse(&error)),
        };
    note_untouched(change, name, spec, &resolved);
    if spec.disk_stall {
        change.notes.push(DISK_STALL_NOTE.to_owned());
    }
    let revision = change.revision();
    let fault = Fault {
        spec: spec.clone(),
        origin,
        revision,
        phase,
        resolved,
        everyone: change.everyone,
        ended_because: None,
    };
    change.lab.faults.insert(name.clone(), fault.into());
    Ok(())
}

/// What a stall of a disk does not hold: it cannot be told from other calls by its arguments.
const DISK_STALL_NOTE: &str = "syncs wait; reads, writes into memory, and writes to files that were opened with \
     O_DIRECT, O_DSYNC or O_SYNC go on";

/// Whether the hosts can make the disks of these nodes stand still, as far as they have said.
fn check_disk(change: &Change<'_>, spec: &FaultSpec, resolved: &Resolved) -> Result<(), String> {
    for node in resolved.nodes.iter().filter(|_| spec.disk_stall) {
        let identity = change.seen(node).map(|seen| &seen.identity);
        let Some(Identity::Lookup(why)) = identity else { continue };
        if why.starts_with(NO_LISTENER) {
            return Err(format!(
                "the disk of {node} cannot be made to stand still, as its host lets nobody answer for \
                 its system calls ({why}); `faultbed doctor` says what the host lacks"
            ));
        }
    }
    Ok(())
}

/// What a fault that begins when its clusters are ready waits for: those that have never been, else
/// those with nodes on their way to a newer incarnation. Begun at once, it would cut off a node that is
/// to end in order, which then takes all its grace and dies by force.
pub(in crate::decide) fn waits_for(
    change: &Change<'_>,
    clusters: &BTreeSet<ClusterName>,
) -> Option<String> {
    let which = |is_one: &dyn Fn(&Cluster) -> bool| {
        let there = clusters.iter().filter_map(|name| Some((name, change.lab.clusters.get(name)?)));
        let names: Vec<&str> =
            there.filter(|(_, one)| is_one(one)).map(|(name, _)| name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let not_ready = which(&|cluster| !cluster.has_been_ready());
    not_ready.map(|names| format!("{names} not ready")).or_else(|| {
        let names = which(&|cluster| {
            cluster.nodes.iter().any(|(name, placement)| restarts(change, name, placement))
        })?;
        Some(format!("{names} restarting"))
    })
}

/// Whether a node has yet to be ready in an incarnation that was asked for. One that its host started
/// again by itself is beyond that.
fn restarts(change: &Change<'_>, name: &NodeName, placement: &Placement) -> bool {
    placement.wanted == Wanted::Running
        && change.seen(name).is_some_and(|seen| {
            seen.incarnation < placement.incarnation
                || (seen.incarnation == placement.incarnation && !seen.been_ready)
        })
}

/// A fault that meets clusters of others is refused, or with `--everyone` said, naming all of them.
fn meet_others(
    change: &mut Change<'_>,
    name: &FaultName,
    clusters: &BTreeSet<ClusterName>,
) -> Result<(), Refusal> {
    let others = change.others(&change.asked.by, clusters);
    let them = if others.len() == 1 { "it" } else { "them" };
    let others_named = others.join(", ");
    match others.as_slice() {
        [] => Ok(()),
        _ if change.everyone => {
            change.note(format!("{name} meets what is not yours: {others_named}"));
            Ok(())
        }
        _ => Err(invalid(format!("fault {name}: {others_named}; --everyone touches {them} too"))),
    }
}

/// Refuses a grade that some host of its links is known not to have.
pub(in crate::decide) fn check_grade(
    change: &Change<'_>,
    spec: &FaultSpec,
    resolved: &Resolved,
) -> Result<(), String> {
    if spec.grade != Some(Grade::Packet) {
        return Ok(());
    }
    let touched = resolved.touched();
    let hosts: BTreeSet<_> =
        touched.iter().filter_map(|name| Some(&change.lab.node(name)?.placement.host)).collect();
    for host in hosts {
        let proxy = change.reports.get(host).and_then(|report| report.proxy.as_ref());
        if proxy.and_then(|proxy| proxy.best_grade) == Some(Grade::Stream) {
            return Err(format!(
                "host {host} cannot drop packets, so grade \"packet\" cannot be had there; leave \
                 `grade` out for the best there is"
            ));
        }
    }
    Ok(())
}

fn note_untouched(
    change: &mut Change<'_>,
    name: &FaultName,
    spec: &FaultSpec,
    resolved: &Resolved,
) {
    // `isolate` and `partition` say which nodes are left out; pairs are exactly what was named.
    if spec.from.is_some() || spec.between.is_some() {
        return;
    }
    let names = || few(resolved.untouched.iter(), ", ");
    match resolved.untouched.as_slice() {
        [] => {}
        bridges if spec.bridge.is_some() => {
            let see = if bridges.len() == 1 { "sees" } else { "see" };
            change.note(format!("{} {see} both sides of {name}", names()));
        }
        [one] => change.note(format!("{one} is in no group of {name} and keeps its links")),
        _ => {
            let many = names();
            change.note(format!("{many} are in no group of {name} and keep their links"));
        }
    }
}

/// `heal`: the faults named, or all of one's own.
pub(super) fn heal(change: &mut Change<'_>, faults: &[FaultName]) -> Result<String, Refusal> {
    if faults.is_empty() {
        return Ok(heal_all(change));
    }
    for name in faults {
        let Some(fault) = change.lab.faults.get(name) else { return Err(unknown(change, name)) };
        if fault.is_ended() {
            change.note(format!("{name} was over already"));
            continue;
        }
        change.own(&format!("fault {name}"), &fault.origin)?;
        end(change, name);
    }
    let words: Vec<&str> = faults.iter().map(|name| name.as_str()).collect();
    Ok(format!("heal {}", words.join(" ")))
}

fn heal_all(change: &mut Change<'_>) -> String {
    let there: Vec<(FaultName, Origin)> = change
        .lab
        .faults
        .iter()
        .filter(|(_, fault)| !fault.is_ended())
        .map(|(name, fault)| (name.clone(), fault.origin.clone()))
        .collect();
    if there.is_empty() {
        change.note("there is no fault to heal".to_owned());
    }
    for (name, origin) in there {
        if change.may_touch(&origin) {
            end(change, &name);
        } else {
            change
                .note(format!("{name} belongs to {} and stays; --everyone heals it", origin.owner));
        }
    }
    "heal --all".to_owned()
}

fn end(change: &mut Change<'_>, name: &FaultName) {
    let phase = change.ended(Ended::Healed);
    if let Some(fault) = change.lab.faults.get_mut(name) {
        fault.phase = phase;
    }
}

/// `delete fault`.
pub(super) fn delete(change: &mut Change<'_>, name: &FaultName) -> Result<(), Refusal> {
    let Some(fault) = change.lab.faults.get(name) else { return Err(unknown(change, name)) };
    change.own(&format!("fault {name}"), &fault.origin)?;
    change.lab.faults.remove(name);
    Ok(())
}

fn unknown(change: &Change<'_>, name: &FaultName) -> Refusal {
    let near = did_you_mean(name.as_str(), change.lab.faults.keys().map(|name| name.as_str()));
    invalid(format!("there is no fault {name}{near}"))
}

/// What a fault of a file, or one put by hand, must say.
pub(super) fn no_time(name: &FaultName) -> Refusal {
    invalid(format!(
        "fault {name}: say how long it lasts: for = \"30s\", or for = \"none\" for until it is healed"
    ))
}
