//! Reads one fault of a lab file.

use crate::{
    duration::Span,
    fault::{Begin, FaultSpec, Grade, HealPolicy, Lasts, OneWay, Targets},
    file::{
        Checks,
        walk::{Item, Section},
    },
};

/// A fault. Whether its fields fit each other is asked only where each of them could be read.
pub(super) fn read_fault(item: &Item<'_>, checks: &Checks) -> Option<FaultSpec> {
    let name = &item.name;
    let section = item.section()?;
    let before = section.problems().count();
    let targets = |field| section.get(field).and_then(|item| read_targets(&item, checks));
    let truth = |field| section.get(field).and_then(|item| item.truth()).unwrap_or_default();
    let span = |field| section.get(field).and_then(|item| item.duration::<Span>());
    let spec = FaultSpec {
        partition: section.get("partition").and_then(|item| read_groups(&item, checks)),
        isolate: targets("isolate"),
        from: targets("from"),
        to: targets("to"),
        between: section.get("between").and_then(|item| read_sides(&item, checks)),
        on: targets("on"),
        cut: truth("cut"),
        latency: span("latency"),
        rtt: span("rtt"),
        jitter: span("jitter"),
        pause: truth("pause"),
        kill: truth("kill"),
        stop: truth("stop"),
        effect: section.get("effect").and_then(|item| item.filled_text()).map(str::to_owned),
        one_way: section.get("one_way").and_then(|item| read_one_way(&item)),
        clients: truth("clients"),
        across: truth("across"),
        follow: truth("follow"),
        lasts: read_lasts(&section, name),
        at: section
            .get("at")
            .and_then(|item| item.choice(&[("ready", Begin::Ready), ("start", Begin::Start)])),
        grade: section
            .get("grade")
            .and_then(|item| item.choice(&[("stream", Grade::Stream), ("packet", Grade::Packet)])),
        heal: section.get("heal").and_then(|item| {
            item.choice(&[
                ("resume", HealPolicy::Resume),
                ("reset", HealPolicy::Reset),
                ("close", HealPolicy::Close),
            ])
        }),
        seed: section.get("seed").and_then(|item| item.number(0, u64::MAX, None)),
    };
    section.finish();
    if section.problems().count() > before {
        return None;
    }
    if let Err(error) = (checks.shape)(&spec) {
        section.problems().add(section.span.clone(), format!("fault {name}: {error}"), None);
        return None;
    }
    Some(spec)
}

/// A file says how long every fault lasts: one that nobody thinks of again is a trap.
fn read_lasts(section: &Section<'_>, name: &str) -> Option<Lasts> {
    let Some(item) = section.get("for") else {
        let what = format!("fault {name} does not say how long it lasts");
        section.missing(what, "add for = \"30s\", or for = \"none\" until it is healed");
        return None;
    };
    item.duration()
}

/// `"kv-1"`, `"kv-1,kv-2"` or `["kv-1", "kv-2"]`.
fn read_targets(item: &Item<'_>, checks: &Checks) -> Option<Targets> {
    let mut all = Vec::new();
    let mut good = true;
    for part in item.one_or_more()? {
        let Some(text) = part.text() else {
            good = false;
            continue;
        };
        for target in Targets::split(text).0 {
            if let Err(error) = (checks.target)(&target) {
                part.wrong(error.to_string(), None);
                good = false;
            }
            all.push(target);
        }
    }
    if all.is_empty() && good {
        item.wrong(format!("{} names no target", item.name), None);
        return None;
    }
    good.then_some(Targets(all))
}

fn read_groups(item: &Item<'_>, checks: &Checks) -> Option<Vec<Targets>> {
    let groups = read_list(item, checks)?;
    if groups.len() < 2 {
        let help = "write partition = [[\"kv-1\"], [\"kv-2\", \"kv-3\"]]; \
                    to cut nodes from all others of their cluster, isolate = \"kv-1\"";
        item.wrong("a partition has two groups or more", Some(help.to_owned()));
        return None;
    }
    Some(groups)
}

fn read_sides(item: &Item<'_>, checks: &Checks) -> Option<Vec<Targets>> {
    let sides = read_list(item, checks)?;
    if sides.len() != 2 {
        let message = format!("between has two sides, and this has {}", sides.len());
        item.wrong(message, Some("write between = [\"kv-1\", \"kv-2,kv-3\"]".to_owned()));
        return None;
    }
    Some(sides)
}

fn read_list(item: &Item<'_>, checks: &Checks) -> Option<Vec<Targets>> {
    let parts = item.list()?;
    // Every group is looked at, also after a wrong one.
    let groups: Vec<Option<Targets>> =
        parts.iter().map(|part| read_targets(part, checks)).collect();
    groups.into_iter().collect()
}

/// `true`, `"bytes"` or `"packets"`.
fn read_one_way(item: &Item<'_>) -> Option<OneWay> {
    if item.is_truth() {
        return item.truth()?.then_some(OneWay::Bytes);
    }
    if item.is_text() {
        return item.choice(&[("bytes", OneWay::Bytes), ("packets", OneWay::Packets)]);
    }
    item.wrong("one_way must be true, \"bytes\" or \"packets\"", None);
    None
}
