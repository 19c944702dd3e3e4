//! Reads lab files and blueprint files: every mistake at once, each with its place and the nearest valid name.

mod blueprint;
mod excerpt;
mod fault;
mod lab;
mod roles;
#[cfg(test)]
mod tests;
mod trial;
mod walk;
mod write;

use std::ops::Range;

use serde_spanned::Spanned;
use toml::de::DeTable;

pub use excerpt::line_column;
pub use roles::check_roles;
pub use write::{to_toml_cluster, to_toml_fault};

use crate::{
    blueprint::Blueprint,
    fault::FaultSpec,
    shape::{self, ShapeError},
    spec::{LabFile, SPEC_BYTES_MAX},
    target::{self, TargetError},
};

use walk::{Problems, Section};

/// One mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The bytes of the text that are wrong.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What is allowed, or the nearest valid name.
    pub help: Option<String>,
}

/// What is asked of every fault beside the types of its fields.
#[derive(Debug, Clone, Copy)]
struct Checks {
    shape: fn(&FaultSpec) -> Result<(), ShapeError>,
    target: fn(&str) -> Result<(), TargetError>,
}

/// Parses a lab file. Knows no blueprints: roles are checked by [`check_roles`].
///
/// # Errors
/// All mistakes, in the order of the text.
pub fn parse_lab(text: &str) -> Result<LabFile, Vec<Problem>> {
    parse_lab_with(text, &Checks { shape: shape::check, target: target::check })
}

fn parse_lab_with(text: &str, checks: &Checks) -> Result<LabFile, Vec<Problem>> {
    read(text, |root| lab::read_lab(root, checks))
}

/// Parses a blueprint file and checks its templates and expressions, by rendering them for a small
/// cluster that nobody runs.
///
/// # Errors
/// All mistakes, in the order of the text.
pub fn parse_blueprint(text: &str) -> Result<Blueprint, Vec<Problem>> {
    read(text, |root| blueprint::read_blueprint(root, text))?.ok_or_else(Vec::new)
}

/// Parses the text and walks its tree; the result counts only where nothing was wrong.
fn read<T>(text: &str, walk: impl FnOnce(&Section<'_>) -> T) -> Result<T, Vec<Problem>> {
    let problems = Problems::default();
    let Some(tree) = parse_tree(text, &problems) else { return Err(problems.into_list()) };
    let result = walk(&Section::root(&tree, &problems));
    match problems.into_list() {
        list if list.is_empty() => Ok(result),
        list => Err(list),
    }
}

/// The tree of a text that is TOML. Where it is not, its tree has holes, and to report what is
/// missing there would be noise; a key that is there twice leaves no hole.
fn parse_tree<'a>(text: &'a str, problems: &Problems) -> Option<Spanned<DeTable<'a>>> {
    if text.len() > SPEC_BYTES_MAX {
        let message =
            format!("the file has {} bytes; at most {SPEC_BYTES_MAX} are read", text.len());
        problems.add(0..0, message, None);
        return None;
    }
    let (tree, errors) = DeTable::parse_recoverable(text);
    let harmless = errors.iter().all(|error| error.message() == "duplicate key");
    // The parser goes on as it can; after the first, the mistakes of a line are mostly its echo.
    let mut last_line = 0;
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let (line, _) = line_column(text, span.start);
        if line != last_line {
            problems.add(span, error.message().to_owned(), None);
        }
        last_line = line;
    }
    harmless.then_some(tree)
}

/// The blueprints that ship with Faultbed: name and text.
pub const SHIPPED: &[(&str, &str)] = &[
    ("cockroach", include_str!("../../deploy/blueprints/cockroach.toml")),
    ("dcf", include_str!("../../deploy/blueprints/dcf.toml")),
    ("etcd", include_str!("../../deploy/blueprints/etcd.toml")),
    ("gitaly", include_str!("../../deploy/blueprints/gitaly.toml")),
    ("nats", include_str!("../../deploy/blueprints/nats.toml")),
    ("opengauss", include_str!("../../deploy/blueprints/opengauss.toml")),
    ("postgres", include_str!("../../deploy/blueprints/postgres.toml")),
    ("rabbitmq", include_str!("../../deploy/blueprints/rabbitmq.toml")),
    ("redis", include_str!("../../deploy/blueprints/redis.toml")),
    ("redis-cluster", include_str!("../../deploy/blueprints/redis-cluster.toml")),
    ("tidb", include_str!("../../deploy/blueprints/tidb.toml")),
    ("zookeeper", include_str!("../../deploy/blueprints/zookeeper.toml")),
];
