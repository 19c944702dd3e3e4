//! Reads one fault of a lab file.

use crate::{
    duration::Span,
    effect::{Distribution, Ratio},
    fault::{Begin, FaultSpec, Grade, HealPolicy, Lasts, OneWay, Targets},
    file::{
        Checks,
        walk::{Item, Section},
    },
    preset,
};

/// A fault. Whether its fields fit each other is asked only where each of them could be read.
pub(super) fn read_fault(item: &Item<'_>, checks: &Checks) -> Option<FaultSpec> {
    let name = &item.name;
    let section = item.section()?;
    let before = section.problems().count();
    let mut spec = read_shape(&section, checks);
    read_bytes(&section, &mut spec);
    read_connections(&section, &mut spec);
    read_nodes(&section, &mut spec);
    read_terms(&section, &mut spec);
    spec.lasts = read_lasts(&section, name);
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

/// On what it acts.
fn read_shape(section: &Section<'_>, checks: &Checks) -> FaultSpec {
    let targets = |field| section.get(field).and_then(|item| read_targets(&item, checks));
    FaultSpec {
        partition: section.get("partition").and_then(|item| read_groups(&item, checks)),
        isolate: targets("isolate"),
        halves: targets("halves"),
        minority: targets("minority"),
        ring: targets("ring"),
        bridge: targets("bridge"),
        from: targets("from"),
        to: targets("to"),
        between: section.get("between").and_then(|item| read_sides(&item, checks)),
        on: targets("on"),
        ..FaultSpec::default()
    }
}

fn truth(section: &Section<'_>, field: &'static str) -> bool {
    section.get(field).and_then(|item| item.truth()).unwrap_or_default()
}

fn span(section: &Section<'_>, field: &'static str) -> Option<Span> {
    section.get(field).and_then(|item| item.duration())
}

fn share(section: &Section<'_>, field: &'static str) -> Option<Ratio> {
    section.get(field).and_then(|item| item.amount("1%"))
}

/// What it does to bytes.
fn read_bytes(section: &Section<'_>, spec: &mut FaultSpec) {
    let distributions = [
        ("uniform", Distribution::Uniform),
        ("normal", Distribution::Normal),
        ("pareto", Distribution::Pareto),
    ];
    spec.cut = truth(section, "cut");
    spec.stall = truth(section, "stall");
    spec.jam = truth(section, "jam");
    spec.latency = span(section, "latency");
    spec.rtt = span(section, "rtt");
    spec.jitter = span(section, "jitter");
    spec.distribution = section.get("distribution").and_then(|item| item.choice(&distributions));
    spec.bandwidth = section.get("bandwidth").and_then(|item| item.amount("10Mbit"));
    spec.loss = section.get("loss").and_then(|item| item.amount("1%"));
    spec.corrupt = share(section, "corrupt");
    spec.duplicate = share(section, "duplicate");
    spec.reorder = share(section, "reorder");
    spec.slice = section.get("slice").and_then(|item| item.amount("64B"));
    spec.preset = section.get("preset").and_then(|item| {
        let preset = item.text()?;
        preset::find(preset).map_err(|unknown| item.wrong(unknown.to_string(), None)).ok()?;
        Some(preset.to_owned())
    });
}

/// What it does to connections.
fn read_connections(section: &Section<'_>, spec: &mut FaultSpec) {
    spec.refuse = truth(section, "refuse");
    spec.time_out = truth(section, "time_out");
    spec.accept_delay = span(section, "accept_delay");
    spec.reset = truth(section, "reset");
    spec.reset_after = span(section, "reset_after");
    spec.close_after = span(section, "close_after");
    spec.limit = section.get("limit").and_then(|item| item.amount("10KiB"));
    spec.slow_close = span(section, "slow_close");
}

/// What it does to nodes.
fn read_nodes(section: &Section<'_>, spec: &mut FaultSpec) {
    spec.pause = truth(section, "pause");
    spec.kill = truth(section, "kill");
    spec.stop = truth(section, "stop");
    spec.disk_stall = truth(section, "disk_stall");
    let effect = section.get("effect");
    spec.effect = effect.and_then(|item| item.filled_text()).map(str::to_owned);
}

/// Whom it meets, how well, and what becomes of it.
fn read_terms(section: &Section<'_>, spec: &mut FaultSpec) {
    let begins = [("ready", Begin::Ready), ("start", Begin::Start)];
    let grades = [("stream", Grade::Stream), ("packet", Grade::Packet)];
    let heals = [
        ("resume", HealPolicy::Resume),
        ("reset", HealPolicy::Reset),
        ("close", HealPolicy::Close),
    ];
    spec.probability = share(section, "probability");
    spec.one_way = section.get("one_way").and_then(|item| read_one_way(&item));
    spec.clients = truth(section, "clients");
    spec.across = truth(section, "across");
    spec.follow = truth(section, "follow");
    spec.at = section.get("at").and_then(|item| item.choice(&begins));
    spec.grade = section.get("grade").and_then(|item| item.choice(&grades));
    spec.heal = section.get("heal").and_then(|item| item.choice(&heals));
    spec.seed = section.get("seed").and_then(|item| item.number(0, u64::MAX, None));
    spec.canary = truth(section, "canary");
    spec.fast_heal = truth(section, "fast_heal");
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

/// `[["kv-1"], ["kv-2", "kv-3"]]`, or as on the command line `"kv-1 | kv-2,kv-3"`.
fn read_groups(item: &Item<'_>, checks: &Checks) -> Option<Vec<Targets>> {
    let groups = match item.is_text() {
        true => read_bars(item, checks)?,
        false => read_list(item, checks)?,
    };
    if groups.len() < 2 {
        let help = "write partition = [[\"kv-1\"], [\"kv-2\", \"kv-3\"]]; \
                    to cut nodes from all others of their cluster, isolate = \"kv-1\"";
        item.wrong("a partition has two groups or more", Some(help.to_owned()));
        return None;
    }
    Some(groups)
}

fn read_bars(item: &Item<'_>, checks: &Checks) -> Option<Vec<Targets>> {
    let mut groups = Vec::new();
    for group in item.text()?.split('|').map(Targets::split) {
        if let Some(error) = group.0.iter().find_map(|target| (checks.target)(target).err()) {
            item.wrong(error.to_string(), None);
            return None;
        }
        groups.push(group);
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
