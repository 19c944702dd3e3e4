//! Checks a fault without a lab: exactly one shape, effects that fit it, nothing that would be ignored.

use std::time::Duration;

use super::{ShapeError, chance::Chance};
use crate::{
    fault::{FaultSpec, Lasts, Targets},
    preset, target,
};

mod effects;

/// The checked form of a fault's targets.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape<'a> {
    /// Links between groups.
    Partition(&'a [Targets]),
    /// Links between each of these and all others of its cluster.
    Isolate(&'a Targets),
    /// Links between nodes that the dice choose.
    Chance(Chance, &'a Targets),
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
    if let Some(Lasts::For(span)) = spec.lasts
        && span.0 < Duration::from_millis(1)
    {
        return Err(malformed("`for` must be at least 1ms, or \"none\" for until it is healed"));
    }
    if let Some(name) = &spec.preset {
        preset::find(name).map_err(|unknown| malformed(&unknown.to_string()))?;
    }
    match shape {
        Shape::On(_) => effects::on_nodes(spec)?,
        Shape::Partition(_)
        | Shape::Isolate(_)
        | Shape::Chance(..)
        | Shape::FromTo(..)
        | Shape::Between(..) => effects::on_links(spec, shape)?,
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
    let by_chance = [
        (Chance::Halves, &spec.halves),
        (Chance::Minority, &spec.minority),
        (Chance::Ring, &spec.ring),
        (Chance::Bridge, &spec.bridge),
    ];
    for (chance, targets) in by_chance {
        found.extend(targets.iter().map(|targets| (chance.word(), Shape::Chance(chance, targets))));
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
            "it names no targets: write one of `partition`, `isolate`, `halves`, `minority`, `ring`, \
             `bridge`, `from` and `to`, `between`, `on`",
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
        Shape::Isolate(targets) | Shape::Chance(_, targets) | Shape::On(targets) => {
            (&[], Some(targets), None)
        }
        Shape::FromTo(a, b) | Shape::Between(a, b) => (&[], Some(a), Some(b)),
    };
    many.iter().chain(one).chain(two)
}

fn malformed(message: &str) -> ShapeError {
    ShapeError::Malformed(message.to_owned())
}
