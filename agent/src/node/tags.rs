//! The tags that every process of a run inherits in its environment: whose it is.
//!
//! A process can wipe its tags (Redis does), so their absence proves nothing; what carries them is ours.

use std::fs;

use faultbed_common::name::{LabName, NodeName};

/// The node: `LAB/NODE/INCARNATION`.
pub const NODE_TAG: &str = "FAULTBED_NODE";
/// The run directory.
pub const RUN_TAG: &str = "FAULTBED_RUN";

/// Looks at an empty environment before it is believed.
const EXCHANGE_LOOKS: u32 = 20;

/// The node of `lab`, or of any, that the environment of a process names, whichever host of this machine runs it.
#[must_use]
pub fn node_of(pid: u32, lab: Option<&LabName>) -> Option<NodeName> {
    node_named(&environment(pid)?, lab)
}

fn node_named(environ: &[u8], lab: Option<&LabName>) -> Option<NodeName> {
    let mut parts = std::str::from_utf8(variable(environ, NODE_TAG)?).ok()?.split('/');
    let of = parts.next()?;
    if lab.is_some_and(|lab| lab.as_str() != of) {
        return None;
    }
    parts.next()?.parse().ok()
}

/// The environment of a process, where it may be read. While one exchanges its program its environment is empty
/// for a moment: taken at its word then, it would be nobody's, and its run over.
pub(super) fn environment(pid: u32) -> Option<Vec<u8>> {
    for _ in 0..EXCHANGE_LOOKS {
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        // A kernel thread and a zombie have no program either.
        if !environ.is_empty() || fs::read_link(format!("/proc/{pid}/exe")).is_err() {
            return Some(environ);
        }
        std::thread::yield_now();
    }
    None
}

/// The value of one variable in a `/proc/PID/environ`.
pub(super) fn variable<'a>(environ: &'a [u8], name: &str) -> Option<&'a [u8]> {
    environ.split(|byte| *byte == 0).find_map(|entry| {
        entry.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let environ = b"XFAULTBED_RUN=/no\0FAULTBED_RUNS=/no\0FAULTBED_RUN=/a=b\0";
        assert_eq!(variable(environ, "FAULTBED_RUN"), Some(b"/a=b".as_slice()));
        assert_eq!(variable(environ, "FAULTBED"), None);
    }

    #[test]
    fn an_environment_names_a_node_of_this_lab_only() {
        let environ = b"PATH=/bin\0FAULTBED_NODE=demo/kv-1/3\0HOME=/";
        let of = |lab: &str| node_named(environ, Some(&lab.parse().unwrap()));
        assert_eq!(of("demo"), Some("kv-1".parse().unwrap()));
        assert_eq!(of("other"), None);
        assert_eq!(node_named(environ, None), Some("kv-1".parse().unwrap()));
        assert_eq!(node_named(b"FAULTBED_NODE=x\0", None), None);
        assert_eq!(node_named(b"", None), None);
    }
}
