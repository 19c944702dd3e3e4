//! A fault in words: which effects it names, for tables and for names.

use super::{cut, is_one_way};
use crate::{effect::Distribution, fault::FaultSpec, preset, proxy_spec::Cut};

/// One effect on links that a fault names.
pub(super) struct Named {
    /// Its field in a file.
    pub(super) field: &'static str,
    /// Its word on the command line.
    pub(super) word: &'static str,
    /// With how much of it: `latency 50ms ±5ms`.
    pub(super) text: String,
}

/// The effects on links that a fault names, in the order in which they are told. Those of its preset
/// only where it was applied.
pub(super) fn link_effects(spec: &FaultSpec) -> Vec<Named> {
    // The long tail of Pareto is only ever added; the others go either way.
    let jitter = spec.jitter.map(|span| match spec.distribution.unwrap_or_default() {
        Distribution::Uniform => format!(" ±{span}"),
        Distribution::Normal => format!(" ±{span} normal"),
        Distribution::Pareto => format!(" +{span} pareto"),
    });
    let late = |span: &dyn std::fmt::Display| format!("{span}{}", jitter.as_deref().unwrap_or(""));
    let bare = |is: bool| is.then(String::new);
    let named = [
        ("cut", "cut", bare(spec.cut)),
        ("stall", "stall", bare(spec.stall)),
        ("jam", "jam", bare(spec.jam)),
        ("latency", "latency", spec.latency.map(|span| late(&span))),
        ("rtt", "rtt", spec.rtt.map(|span| late(&span))),
        ("bandwidth", "bandwidth", spec.bandwidth.map(|rate| rate.to_string())),
        ("loss", "loss", spec.loss.map(|loss| loss.to_string())),
        ("corrupt", "corrupt", spec.corrupt.map(|share| share.to_string())),
        ("duplicate", "duplicate", spec.duplicate.map(|share| share.to_string())),
        ("reorder", "reorder", spec.reorder.map(|share| share.to_string())),
        ("slice", "slice", spec.slice.map(|slice| slice.to_string())),
        ("refuse", "refuse", bare(spec.refuse)),
        ("time_out", "time-out", bare(spec.time_out)),
        ("accept_delay", "accept-delay", spec.accept_delay.map(|span| span.to_string())),
        ("reset", "reset", bare(spec.reset)),
        ("reset_after", "reset", spec.reset_after.map(|span| format!("after {span}"))),
        ("close_after", "close", spec.close_after.map(|span| format!("after {span}"))),
        ("limit", "limit", spec.limit.map(|size| size.to_string())),
        ("slow_close", "slow-close", spec.slow_close.map(|span| span.to_string())),
    ];
    named
        .into_iter()
        .filter_map(|(field, word, amount)| {
            let amount = amount?;
            let text = if amount.is_empty() { word.to_owned() } else { format!("{word} {amount}") };
            Some(Named { field, word, text })
        })
        .collect()
}

/// Whether nothing passes: said so, or no other effect was named.
pub(super) fn cuts(spec: &FaultSpec) -> bool {
    spec.cut || link_effects(spec).is_empty()
}

/// The fault in a few words, for tables: `cut`, `one-way cut`, `latency 50ms ±5ms, loss 1%`, `pause`.
#[must_use]
pub fn summary(spec: &FaultSpec) -> String {
    if spec.on.is_some() {
        return node_word(spec).to_owned();
    }
    let applied = preset::applied(spec);
    let mut text = if cuts(&applied) {
        match (cut(spec), is_one_way(spec)) {
            (Cut::Packets, false) => "cut",
            (Cut::Bytes, _) => "one-way cut",
            (Cut::Packets, true) => "one-way cut of packets",
        }
        .to_owned()
    } else {
        let effects: Vec<String> =
            link_effects(&applied).into_iter().map(|named| named.text).collect();
        let effects = effects.join(", ");
        let way = if spec.one_way.is_some() { "one-way " } else { "" };
        match &spec.preset {
            Some(preset) => format!("{way}{preset} ({effects})"),
            None => format!("{way}{effects}"),
        }
    };
    if spec.ring.is_some() {
        text.push_str(" in a ring");
    }
    if let Some(share) = spec.probability {
        text.push_str(&format!(", for {share} of connections"));
    }
    text
}

/// The word that names of faults begin with where none is chosen: `partition`, `latency`, `pause`.
#[must_use]
pub fn kind(spec: &FaultSpec) -> &str {
    if let Some(preset) = &spec.preset {
        return preset;
    }
    let shapes = [
        ("partition", spec.partition.is_some()),
        ("isolate", spec.isolate.is_some()),
        ("halves", spec.halves.is_some()),
        ("minority", spec.minority.is_some()),
        ("ring", spec.ring.is_some()),
        ("bridge", spec.bridge.is_some()),
    ];
    match link_effects(spec).iter().find(|named| named.field != "cut") {
        Some(named) if named.field == "rtt" => "latency",
        Some(named) => named.word,
        None if spec.on.is_some() => node_word(spec),
        None => shapes.into_iter().find_map(|(word, is)| is.then_some(word)).unwrap_or("cut"),
    }
}

fn node_word(spec: &FaultSpec) -> &str {
    match &spec.effect {
        _ if spec.pause => "pause",
        _ if spec.kill => "kill",
        _ if spec.stop => "stop",
        _ if spec.disk_stall => "disk-stall",
        Some(effect) => effect,
        None => "effect",
    }
}
