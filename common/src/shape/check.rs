//! Checks a fault without a lab: exactly one shape, effects that fit it, nothing that would be ignored.

use std::time::Duration;

use super::ShapeError;
use crate::{
    fault::{FaultSpec, Grade, Lasts, OneWay, Targets},
    target,
};

/// The checked form of a fault's targets.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape<'a> {
    /// Links between groups.
    Partition(&'a [Targets]),
    /// Links between each of these and all others of its cluster.
    Isolate(&'a Targets),
    /// Links from these to those.
    FromTo(&'a Targets, &'a Targets),
    /// Links both ways.
    Between(&'a Targets, &'a Targets),
    /// Nodes.
    On(&'a Targets),
}

pub(super) fn check(spec: &FaultSpec) -> Result<Shape<'_>, ShapeError> {
    let shape = shape(spec)?;
    for targets in sides(shape) {
        if targets.0.is_empty() {
            return Err(malformed("one side names no target"));
        }
        for text in &targets.0 {
            target::check(text)?;
        }
    }
    time(spec)?;
    match shape {
        Shape::On(_) => on_nodes(spec)?,
        Shape::Partition(_) | Shape::Isolate(_) | Shape::FromTo(..) | Shape::Between(..) => {
            on_links(spec, shape)?;
        }
    }
    let targets: Vec<String> = sides(shape).flat_map(|targets| targets.0.clone()).collect();
    if spec.follow && !target::can_move(&targets) {
        return Err(malformed(
            "`follow` needs a target that can move, such as leader:CLUSTER; these never do",
        ));
    }
    Ok(shape)
}

fn shape(spec: &FaultSpec) -> Result<Shape<'_>, ShapeError> {
    let mut found: Vec<(&str, Shape<'_>)> = Vec::new();
    if let Some(groups) = &spec.partition {
        if groups.len() < 2 {
            return Err(malformed(&format!(
                "a partition needs two groups or more and has {}; `isolate` cuts one node from its \
                 cluster",
                groups.len()
            )));
        }
        found.push(("partition", Shape::Partition(groups)));
    }
    if let Some(targets) = &spec.isolate {
        found.push(("isolate", Shape::Isolate(targets)));
    }
    match (&spec.from, &spec.to) {
        (Some(from), Some(to)) => found.push(("from and to", Shape::FromTo(from, to))),
        (Some(_), None) => return Err(malformed("`from` needs `to`")),
        (None, Some(_)) => return Err(malformed("`to` needs `from`")),
        (None, None) => {}
    }
    match spec.between.as_deref() {
        Some([a, b]) => found.push(("between", Shape::Between(a, b))),
        Some(sides) => {
            let message = format!("`between` needs exactly two sides and has {}", sides.len());
            return Err(malformed(&message));
        }
        None => {}
    }
    if let Some(targets) = &spec.on {
        found.push(("on", Shape::On(targets)));
    }
    match found.as_slice() {
        [(_, shape)] => Ok(*shape),
        [] => Err(malformed(
            "it names no targets: write one of `partition`, `isolate`, `from` and `to`, `between`, \
             `on`",
        )),
        many => {
            let words: Vec<&str> = many.iter().map(|(word, _)| *word).collect();
            Err(malformed(&format!("{} exclude each other: write one", words.join(", "))))
        }
    }
}

fn sides(shape: Shape<'_>) -> impl Iterator<Item = &Targets> {
    let (many, one, two): (&[Targets], _, _) = match shape {
        Shape::Partition(groups) => (groups, None, None),
        Shape::Isolate(targets) | Shape::On(targets) => (&[], Some(targets), None),
        Shape::FromTo(a, b) | Shape::Between(a, b) => (&[], Some(a), Some(b)),
    };
    many.iter().chain(one).chain(two)
}

fn time(spec: &FaultSpec) -> Result<(), ShapeError> {
    if let Some(Lasts::For(span)) = spec.lasts
        && span.0 < Duration::from_millis(1)
    {
        return Err(malformed("`for` must be at least 1ms, or \"none\" for until it is healed"));
    }
    for (word, span, step_us) in
        [("latency", spec.latency, 1), ("rtt", spec.rtt, 2), ("jitter", spec.jitter, 1)]
    {
        let Some(span) = span else { continue };
        if span.0.as_nanos() % (step_us * 1000) != 0 {
            return Err(malformed(&format!(
                "`{word}` is finer than {step_us}us, the least there is"
            )));
        }
        if span.0.is_zero() && word != "jitter" {
            return Err(malformed(&format!("`{word}` of 0s does nothing")));
        }
    }
    Ok(())
}

/// The effects on nodes that a fault names, as written.
fn node_effects(spec: &FaultSpec) -> Vec<&'static str> {
    let named = [
        ("pause", spec.pause),
        ("kill", spec.kill),
        ("stop", spec.stop),
        ("effect", spec.effect.is_some()),
    ];
    named.into_iter().filter_map(|(word, is)| is.then_some(word)).collect()
}

fn on_nodes(spec: &FaultSpec) -> Result<(), ShapeError> {
    let of_links = [
        ("cut", spec.cut),
        ("latency", spec.latency.is_some()),
        ("rtt", spec.rtt.is_some()),
        ("jitter", spec.jitter.is_some()),
        ("one_way", spec.one_way.is_some()),
        ("clients", spec.clients),
        ("across", spec.across),
        ("grade", spec.grade.is_some()),
        ("heal", spec.heal.is_some()),
    ];
    if let Some((word, _)) = of_links.iter().find(|(_, is)| *is) {
        return Err(malformed(&format!(
            "`{word}` is for links: name them with `partition`, `isolate`, `from` and `to` or \
             `between`, not `on`"
        )));
    }
    match node_effects(spec).as_slice() {
        [_] => {}
        [] => {
            let message = "`on` needs an effect: `pause`, `kill`, `stop` or `effect = \"NAME\"`";
            return Err(malformed(message));
        }
        many => {
            let message = format!("{} exclude each other: write one", many.join(", "));
            return Err(malformed(&message));
        }
    }
    Ok(())
}

fn on_links(spec: &FaultSpec, shape: Shape<'_>) -> Result<(), ShapeError> {
    if let Some(word) = node_effects(spec).first() {
        return Err(malformed(&format!("`{word}` acts on nodes: name them with `on`")));
    }
    let is_delay = spec.latency.is_some() || spec.rtt.is_some();
    if spec.latency.is_some() && spec.rtt.is_some() {
        return Err(malformed("`latency` and `rtt` exclude each other: write one"));
    }
    if spec.cut && is_delay {
        return Err(malformed("a cut leaves nothing to delay: write `cut` or `latency`"));
    }
    if spec.rtt.is_some() && !matches!(shape, Shape::Between(..)) {
        return Err(malformed(
            "`rtt` is split over two ways and needs `between`; here `latency` fits",
        ));
    }
    jitter(spec)?;
    match shape {
        Shape::FromTo(..) | Shape::Between(..) => {
            if !spec.cut && !is_delay {
                return Err(malformed(
                    "say what happens to these links: `cut = true` or `latency`",
                ));
            }
            if spec.across {
                return Err(malformed(
                    "`across` is for `partition` and `isolate`; these pairs are met as named",
                ));
            }
        }
        Shape::Partition(_) | Shape::Isolate(_) | Shape::On(_) => {}
    }
    if spec.clients && !matches!(shape, Shape::Isolate(_)) {
        return Err(malformed(
            "`clients` is a flag of `isolate`; elsewhere name clients as a target",
        ));
    }
    one_way(spec, shape, is_delay)?;
    grade(spec, is_delay)
}

fn jitter(spec: &FaultSpec) -> Result<(), ShapeError> {
    let Some(jitter) = spec.jitter else { return Ok(()) };
    let (word, most) = match (spec.latency, spec.rtt) {
        (Some(latency), _) => ("`latency`", latency.0),
        (None, Some(rtt)) => ("half of `rtt`", rtt.0 / 2),
        (None, None) => return Err(malformed("`jitter` needs `latency` or `rtt`")),
    };
    if jitter.0 > most {
        return Err(malformed(&format!(
            "`jitter` is larger than {word}: bytes would have to arrive before they are sent"
        )));
    }
    Ok(())
}

fn one_way(spec: &FaultSpec, shape: Shape<'_>, is_delay: bool) -> Result<(), ShapeError> {
    let Some(one_way) = spec.one_way else { return Ok(()) };
    if let Shape::Partition(groups) = shape
        && groups.len() > 2
    {
        return Err(malformed("`one_way` needs exactly two groups: from the first to the second"));
    }
    if spec.rtt.is_some() {
        return Err(malformed("`rtt` has two ways and `one_way` one: write `latency`"));
    }
    if one_way == OneWay::Packets && is_delay {
        return Err(malformed("`one_way = \"packets\"` is for cuts: a delay meets bytes"));
    }
    Ok(())
}

/// A grade that no host could give is refused here; one that some host lacks when it begins.
fn grade(spec: &FaultSpec, is_delay: bool) -> Result<(), ShapeError> {
    match spec.grade {
        Some(Grade::Packet) if is_delay => Err(malformed(
            "a delay is made in user space, which is grade \"stream\": leave `grade` out",
        )),
        Some(Grade::Packet) if super::cut(spec) == crate::proxy_spec::Cut::Bytes => Err(malformed(
            "stopping the bytes of one way is grade \"stream\", as handshakes pass: write \
             `one_way = \"packets\"` for a cut of packets, or leave `grade` out",
        )),
        Some(Grade::Stream) if spec.one_way == Some(OneWay::Packets) => Err(malformed(
            "grade \"stream\" cannot stop packets: write `one_way = \"bytes\"`, or leave `grade` out",
        )),
        Some(Grade::Packet | Grade::Stream) | None => Ok(()),
    }
}

fn malformed(message: &str) -> ShapeError {
    ShapeError::Malformed(message.to_owned())
}
