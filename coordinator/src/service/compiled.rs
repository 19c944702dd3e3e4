//! What all hosts of a lab must make true, compiled once for all who ask: each agent's stream needs its share of every change.

use std::sync::{Arc, Mutex, PoisonError};

use faultbed_common::{
    compile::{Specs, compile, compile_after},
    lab::Lab,
};
use tracing::warn;

/// The newest lab that somebody asked for, with what it compiles to.
#[derive(Debug, Default)]
pub struct Compiled(Mutex<Option<Newest>>);

/// A lab, and each host's share where it compiles.
type Newest = (Arc<Lab>, Option<Arc<Specs>>);

impl Compiled {
    /// Each host's share of a lab; `None` where it does not compile, which is logged once.
    #[must_use]
    pub fn of(&self, lab: &Arc<Lab>) -> Option<Arc<Specs>> {
        // Whoever else asks meanwhile wants the same, and waits for it here.
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((held, specs)) = &*newest
            && Arc::ptr_eq(held, lab)
        {
            return specs.clone();
        }
        let compiled = match &*newest {
            Some((held, Some(specs))) => compile_after((held, specs), lab),
            Some((_, None)) | None => compile(lab),
        };
        let specs = match compiled {
            Ok(specs) => Some(Arc::new(specs)),
            Err(error) => {
                warn!(%error, "compile lab");
                None
            }
        };
        // A stream that is behind must not take away what the others are about to ask for.
        let is_newer = newest.as_ref().is_none_or(|(held, _)| held.generation <= lab.generation);
        if is_newer {
            *newest = Some((Arc::clone(lab), specs.clone()));
        }
        specs
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
        let first = compiled.of(&newer).unwrap();
        compiled.of(&older).unwrap();
        assert!(Arc::ptr_eq(&first, &compiled.of(&newer).unwrap()));
        compiled.of(&lab(3)).unwrap();
        assert!(!Arc::ptr_eq(&first, &compiled.of(&newer).unwrap()), "only the newest is kept");
    }
}
