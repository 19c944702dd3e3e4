//! What all hosts of a lab must make true, compiled once for all who ask: each agent's stream needs its share of every change.

use std::sync::{Arc, Mutex, PoisonError};

use faultbed_common::{
    compile::{Specs, compile, compile_after, has_same_nodes},
    lab::Lab,
};
use tracing::warn;

/// The newest lab that somebody asked for, with what it compiles to.
#[derive(Debug, Default)]
pub struct Compiled(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    newest: Option<Newest>,
    last: Nodes,
}

/// A lab, and each host's share where it compiles.
type Newest = (Arc<Lab>, Nodes, Option<Arc<Specs>>);

/// Tells labs with other nodes apart: in all of the same number, hosts are told the same of the rest of
/// the lab.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nodes(u64);

impl Compiled {
    /// Each host's share of a lab; `None` where it does not compile, which is logged once.
    #[must_use]
    pub fn of(&self, lab: &Arc<Lab>) -> Option<(Arc<Specs>, Nodes)> {
        // Whoever else asks meanwhile wants the same, and waits for it here.
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { newest, last } = &mut *inner;
        if let Some((held, nodes, specs)) = &*newest
            && Arc::ptr_eq(held, lab)
        {
            return specs.clone().map(|specs| (specs, *nodes));
        }
        let nodes = match &*newest {
            Some((held, nodes, Some(_))) if has_same_nodes(held, lab) => *nodes,
            Some(_) | None => {
                last.0 += 1;
                *last
            }
        };
        let compiled = match &*newest {
            Some((held, _, Some(specs))) => compile_after((held, specs), lab),
            Some((_, _, None)) | None => compile(lab),
        };
        let specs = match compiled {
            Ok(specs) => Some(Arc::new(specs)),
            Err(error) => {
                warn!(%error, "compile lab");
                None
            }
        };
        // A stream that is behind must not take away what the others are about to ask for.
        let is_newer = newest.as_ref().is_none_or(|(held, ..)| held.generation <= lab.generation);
        if is_newer {
            *newest = Some((Arc::clone(lab), nodes, specs.clone()));
        }
        specs.map(|specs| (specs, nodes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_compiled_once_and_an_older_one_takes_no_place() {
        let lab = |generation| {
            let mut lab = Lab::new("dev".parse().unwrap(), 5);
            lab.generation.0 = generation;
            Arc::new(lab)
        };
        let (older, newer) = (lab(1), lab(2));
        let compiled = Compiled::default();
        let (first, nodes) = compiled.of(&newer).unwrap();
        compiled.of(&older).unwrap();
        assert!(Arc::ptr_eq(&first, &compiled.of(&newer).unwrap().0));
        assert_eq!(compiled.of(&lab(3)).unwrap().1, nodes);
        let (again, _) = compiled.of(&newer).unwrap();
        assert!(!Arc::ptr_eq(&first, &again), "only the newest is kept");
        let mut more = Lab::clone(&lab(4));
        more.hosts.insert(
            "h1".parse().unwrap(),
            faultbed_common::lab::Host::new([10, 0, 0, 1].into(), "/d".into()),
        );
        assert_ne!(compiled.of(&Arc::new(more)).unwrap().1, nodes);
    }
}
