//! The real hands.
use std::path::{Path, PathBuf};

use faultbed_common::generation::Incarnation;

/// The directory of one incarnation below its node's.
#[must_use]
pub fn run_dir(node_dir: &Path, incarnation: Incarnation) -> PathBuf {
    node_dir.join("runs").join(format!("{:04}", incarnation.0))
}
