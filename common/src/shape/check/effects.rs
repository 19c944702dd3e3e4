//! Which effects fit a shape and each other, and what to write instead of those that do not.

use super::{Shape, malformed};
use crate::{
    duration::Span,
    effect::{Distribution, Loss, Ratio},
    fault::{FaultSpec, Grade, HealPolicy, OneWay},
    preset,
    proxy_spec::{Cut, LinkEffect},
    shape::{ShapeError, chance::Chance, cut, words},
};

/// What effects do to bytes on their way: nothing of it where no byte passes.
const TO_BYTES: [(&str, &str); 9] = [
    ("latency", "delay"),
    ("rtt", "delay"),
    ("bandwidth", "pace"),
    ("loss", "lose"),
    ("corrupt", "corrupt"),
    ("slice", "slice"),
    ("limit", "count"),
    ("slow_close", "close later"),
    ("preset", "slow down"),
];

/// What effects do beside that: nothing of it behind a cut.
const TO_CONNECTIONS: [(&str, &str); 8] = [
    ("stall", "hold"),
    ("jam", "hold"),
    ("refuse", "refuse"),
    ("time_out", "leave unanswered"),
    ("accept_delay", "accept later"),
    ("reset", "reset"),
    ("reset_after", "reset"),
    ("close_after", "close"),
];

/// Effects of which a connection can have one.
const EITHER: [(&str, &str, &str); 6] = [
    ("latency", "rtt", "both say how late bytes are"),
    ("stall", "jam", "bytes wait with their sender, or in the proxy"),
    ("refuse", "time_out", "a new connection is refused, or gets no answer"),
    ("refuse", "accept_delay", "a connection that is refused is not accepted"),
    ("time_out", "accept_delay", "a connection without an answer is not accepted"),
    ("reset_after", "close_after", "a connection ends once"),
];

/// Effects that are made in user space, which is grade "stream". Ends of connections are none: a RST
/// or a FIN is a real one, whoever asked for it.
const IN_USER_SPACE: [(&str, &str); 10] = [
    ("latency", "a delay"),
    ("rtt", "a delay"),
    ("bandwidth", "a bandwidth"),
    ("corrupt", "corruption"),
    ("slice", "slicing"),
    ("stall", "holding bytes"),
    ("jam", "holding bytes"),
    ("accept_delay", "a late accept"),
    ("limit", "counting bytes"),
    ("slow_close", "a late end"),
];

/// The fields of the effects on links that a fault names.
fn fields(spec: &FaultSpec) -> Vec<&'static str> {
    words::link_effects(spec).iter().map(|named| named.field).collect()
}

/// The effects on nodes that a fault names, as written.
fn node_effects(spec: &FaultSpec) -> Vec<&'static str> {
    let named = [
        ("pause", spec.pause),
        ("kill", spec.kill),
        ("stop", spec.stop),
        ("disk_stall", spec.disk_stall),
        ("effect", spec.effect.is_some()),
    ];
    named.into_iter().filter_map(|(word, is)| is.then_some(word)).collect()
}

pub(super) fn on_nodes(spec: &FaultSpec) -> Result<(), ShapeError> {
    let options = [
        ("jitter", spec.jitter.is_some()),
        ("distribution", spec.distribution.is_some()),
        ("preset", spec.preset.is_some()),
        ("probability", spec.probability.is_some()),
        ("canary", spec.canary),
        ("fast_heal", spec.fast_heal),
        ("one_way", spec.one_way.is_some()),
        ("clients", spec.clients),
        ("across", spec.across),
        ("grade", spec.grade.is_some()),
        ("heal", spec.heal.is_some()),
    ];
    let options = options.into_iter().filter_map(|(word, is)| is.then_some(word));
    if let Some(word) = fields(spec).into_iter().chain(options).next() {
        return Err(malformed(&format!(
            "`{word}` is for links: name them with `partition`, `isolate`, `from` and `to` or \
             `between`, not `on`"
        )));
    }
    match node_effects(spec).as_slice() {
        [_] => Ok(()),
        [] => Err(malformed(
            "`on` needs an effect: `pause`, `kill`, `stop`, `disk_stall` or `effect = \"NAME\"`",
        )),
        many => {
            let message = format!("{} exclude each other: write one", many.join(", "));
            Err(malformed(&message))
        }
    }
}

pub(super) fn on_links(spec: &FaultSpec, shape: Shape<'_>) -> Result<(), ShapeError> {
    if let Some(word) = node_effects(spec).first() {
        return Err(malformed(&format!("`{word}` acts on nodes: name them with `on`")));
    }
    never(spec)?;
    let mut named = fields(spec);
    named.extend(spec.preset.is_some().then_some("preset"));
    together(&named)?;
    let applied = preset::applied(spec);
    times(&applied)?;
    amounts(&applied)?;
    if spec.rtt.is_some() && !matches!(shape, Shape::Between(..)) {
        return Err(malformed(
            "`rtt` is split over two ways and needs `between`; here `latency` fits",
        ));
    }
    jitter(&applied)?;
    fits_shape(spec, shape, &named)?;
    one_way(spec, shape, &named)?;
    grade(&applied)?;
    options(&applied)
}

/// What no proxy of streams can do, on any host.
fn never(spec: &FaultSpec) -> Result<(), ShapeError> {
    let asked = [("duplicate", "once", spec.duplicate), ("reorder", "in order", spec.reorder)];
    let Some((word, how, _)) = asked.into_iter().find(|(.., share)| share.is_some()) else {
        return Ok(());
    };
    Err(malformed(&format!(
        "`{word}` cannot be had: TCP delivers a stream {how}, so an application sees packets that \
         the network duplicates or reorders as late bytes only, and a proxy has no packets to do it \
         to; write `latency` with `jitter`, or `loss`"
    )))
}

/// Effects of which one leaves nothing to another.
fn together(named: &[&str]) -> Result<(), ShapeError> {
    let has = |word: &str| named.contains(&word);
    if has("cut") {
        let behind = TO_BYTES.iter().chain(&TO_CONNECTIONS);
        if let Some((word, verb)) = behind.into_iter().find(|(word, _)| has(word)) {
            return Err(malformed(&format!(
                "a cut leaves nothing to {verb}: write `cut` or `{word}`"
            )));
        }
    }
    for (one, other, why) in EITHER {
        if has(one) && has(other) {
            return Err(malformed(&format!(
                "`{one}` and `{other}` exclude each other, as {why}: write one"
            )));
        }
    }
    if let Some(held) = ["stall", "jam"].into_iter().find(|word| has(word))
        && let Some((word, verb)) = TO_BYTES.iter().find(|(word, _)| has(word))
    {
        return Err(malformed(&format!(
            "`{held}` lets no byte pass until it ends, so there is nothing to {verb}: write \
             `{held}` or `{word}`"
        )));
    }
    Ok(())
}

fn times(spec: &FaultSpec) -> Result<(), ShapeError> {
    let at_once = |word: &str, instead: &str| format!("`{word}` of 0s is now: write `{instead}`");
    let nothing = |word: &str| format!("`{word}` of 0s does nothing");
    let times: [(&str, Option<Span>, u128, Option<String>); 7] = [
        ("latency", spec.latency, 1, Some(nothing("latency"))),
        ("rtt", spec.rtt, 2, Some(nothing("rtt"))),
        ("jitter", spec.jitter, 1, None),
        ("accept_delay", spec.accept_delay, 1, Some(nothing("accept_delay"))),
        ("slow_close", spec.slow_close, 1, Some(nothing("slow_close"))),
        ("reset_after", spec.reset_after, 1, Some(at_once("reset_after", "reset"))),
        ("close_after", spec.close_after, 1, Some(at_once("close_after", "reset"))),
    ];
    for (word, span, step_us, zero) in times {
        let Some(span) = span else { continue };
        if span.0.as_nanos() % (step_us * 1000) != 0 {
            return Err(malformed(&format!(
                "`{word}` is finer than {step_us}us, the least there is"
            )));
        }
        if let (true, Some(why)) = (span.0.is_zero(), zero) {
            return Err(malformed(&why));
        }
    }
    Ok(())
}

fn amounts(spec: &FaultSpec) -> Result<(), ShapeError> {
    let shares = [("corrupt", spec.corrupt), ("probability", spec.probability)];
    if let Some((word, _)) = shares.iter().find(|(_, share)| *share == Some(Ratio::ZERO)) {
        return Err(malformed(&format!("`{word}` of 0% does nothing")));
    }
    if spec.limit.is_some_and(|size| size.bytes == 0) {
        return Err(malformed("`limit` of 0B lets nothing pass: write `refuse`, or 1B or more"));
    }
    let Some(loss) = spec.loss else { return Ok(()) };
    let (never, always) = match loss {
        Loss::Bernoulli(share) => (share == Ratio::ZERO, share == Ratio::ONE),
        Loss::Gilbert { enter, good, bad, .. } => {
            let is_never = |share| share == Ratio::ZERO;
            let stays_good = is_never(enter) && is_never(good);
            (stays_good || (is_never(good) && is_never(bad)), good == Ratio::ONE && bad == good)
        }
        Loss::Burst { .. } => (false, false),
    };
    if never {
        return Err(malformed("`loss` that never loses anything does nothing"));
    }
    if always {
        return Err(malformed("`loss` of everything is a cut: write `cut`"));
    }
    Ok(())
}

fn jitter(spec: &FaultSpec) -> Result<(), ShapeError> {
    let Some(jitter) = spec.jitter else {
        return match spec.distribution {
            Some(_) => Err(malformed("`distribution` needs `jitter`: how wide it is")),
            None => Ok(()),
        };
    };
    let (word, most) = match (spec.latency, spec.rtt) {
        (Some(latency), _) => ("`latency`", latency.0),
        (None, Some(rtt)) => ("half of `rtt`", rtt.0 / 2),
        (None, None) => return Err(malformed("`jitter` needs `latency` or `rtt`")),
    };
    // The others are cut off at no delay, as their tails have no end anyway.
    if spec.distribution.unwrap_or_default() == Distribution::Uniform && jitter.0 > most {
        return Err(malformed(&format!(
            "`jitter` is larger than {word}: bytes would have to arrive before they are sent"
        )));
    }
    Ok(())
}

fn fits_shape(spec: &FaultSpec, shape: Shape<'_>, named: &[&str]) -> Result<(), ShapeError> {
    if matches!(shape, Shape::FromTo(..) | Shape::Between(..)) {
        if named.is_empty() {
            return Err(malformed(
                "say what happens to these links: `cut = true`, `latency`, `loss`, …",
            ));
        }
        if spec.across {
            return Err(malformed(
                "`across` is for `partition`, `isolate` and their kind; these pairs are met as named",
            ));
        }
    }
    if spec.clients && !matches!(shape, Shape::Isolate(_)) {
        return Err(malformed(
            "`clients` is a flag of `isolate`; elsewhere name clients as a target",
        ));
    }
    Ok(())
}

fn one_way(spec: &FaultSpec, shape: Shape<'_>, named: &[&str]) -> Result<(), ShapeError> {
    let Some(one_way) = spec.one_way else { return Ok(()) };
    match shape {
        Shape::Partition(groups) if groups.len() > 2 => {
            return Err(malformed(
                "`one_way` needs exactly two groups: from the first to the second",
            ));
        }
        Shape::Chance(Chance::Ring, _) => {
            return Err(malformed("`one_way` goes from one side to the other; a ring has none"));
        }
        _ => {}
    }
    if spec.rtt.is_some() {
        return Err(malformed("`rtt` has two ways and `one_way` one: write `latency`"));
    }
    let others = named.iter().find(|word| **word != "cut");
    if let (OneWay::Packets, Some(word)) = (one_way, others) {
        return Err(malformed(&format!(
            "`one_way = \"packets\"` is for cuts, and `{word}` meets bytes: write `one_way = \"bytes\"`"
        )));
    }
    Ok(())
}

/// A grade that no host could give is refused here; one that some host lacks when it begins.
fn grade(spec: &FaultSpec) -> Result<(), ShapeError> {
    let named = fields(spec);
    let is_cut = words::cuts(spec);
    match spec.grade {
        Some(Grade::Packet) => {
            let is_named = |(word, _): &&(&str, &str)| named.contains(word);
            if let Some((_, what)) = IN_USER_SPACE.iter().find(is_named) {
                return Err(malformed(&format!(
                    "{what} is made in user space, which is grade \"stream\": leave `grade` out"
                )));
            }
            if is_cut && cut(spec) == Cut::Bytes {
                return Err(malformed(
                    "stopping the bytes of one way is grade \"stream\", as handshakes pass: write \
                     `one_way = \"packets\"` for a cut of packets, or leave `grade` out",
                ));
            }
            if is_shared(spec) && (is_cut || spec.refuse) {
                return Err(malformed(
                    "grade \"packet\" drops or answers SYNs, which are of no connection yet, so it \
                     cannot be had for a share of them: leave `grade` or `probability` out",
                ));
            }
            Ok(())
        }
        Some(Grade::Stream) if spec.one_way == Some(OneWay::Packets) => Err(malformed(
            "grade \"stream\" cannot stop packets: write `one_way = \"bytes\"`, or leave `grade` out",
        )),
        Some(Grade::Stream) if spec.time_out => Err(malformed(
            "a connection that grade \"stream\" has accepted does not time out: write `refuse`, or \
             leave `grade` out",
        )),
        Some(Grade::Stream)
            if spec.reset || spec.reset_after.is_some() || spec.close_after.is_some() =>
        {
            Err(malformed(
                "a connection that is reset or closed is so for real, which is grade \"packet\": \
                 leave `grade` out",
            ))
        }
        Some(Grade::Stream) | None => Ok(()),
    }
}

/// Whether some connections meet it and others do not.
fn is_shared(spec: &FaultSpec) -> bool {
    spec.probability.is_some_and(|share| share < Ratio::ONE)
}

/// Whether somebody who asks over the link can tell that the fault is on it.
fn is_told_by_canary(spec: &FaultSpec) -> bool {
    let LinkEffect { cut, hold, delay, dials, accept_delay_us, .. } = crate::shape::effect(spec);
    cut.is_some() || hold.is_some() || delay.is_some() || dials.is_some() || accept_delay_us > 0
}

/// What is asked beside the effects.
fn options(spec: &FaultSpec) -> Result<(), ShapeError> {
    let is_cut = words::cuts(spec);
    let of_packets = is_cut && cut(spec) == Cut::Packets;
    let refusals = [
        (
            is_shared(spec) && spec.time_out,
            "`probability` is drawn when a connection is accepted, and with `time_out` none is: \
             write `refuse`, or leave `probability` out",
        ),
        (
            is_shared(spec) && spec.one_way == Some(OneWay::Packets),
            "`probability` is drawn for connections, and a packet that makes one is of none yet: \
             write `one_way = \"bytes\"`",
        ),
        (
            spec.canary && !is_told_by_canary(spec),
            "`canary` proves a cut, a hold, a delay or a refusal; what other effects did is counted \
             anyway: leave it out",
        ),
        (
            spec.canary && is_shared(spec),
            "`canary` proves what every connection meets, and with `probability` some are spared: \
             write one",
        ),
        (
            spec.fast_heal && (!of_packets || is_shared(spec) || spec.grade == Some(Grade::Stream)),
            "`fast_heal` is for a cut of packets: only after one do peers wait before they try \
             again: leave it out",
        ),
        (
            spec.fast_heal && matches!(spec.heal, Some(HealPolicy::Reset | HealPolicy::Close)),
            "`fast_heal` is for connections that go on, and this `heal` ends them: write one",
        ),
    ];
    match refusals.into_iter().find(|(is, _)| *is) {
        Some((_, why)) => Err(malformed(why)),
        None => Ok(()),
    }
}
