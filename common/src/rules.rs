//! Combines the effects of all faults in force on one link into exactly one rule, by fixed laws.

use crate::proxy_spec::{Cut, Delay, LinkEffect};

/// What a proxy does with the bytes of one link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkRule {
    /// Nothing passes.
    pub cut: Option<Cut>,
    /// Everything is late.
    pub delay: Option<Delay>,
}

/// One rule from many effects. Laws: order does not matter; nothing combined is the default;
/// the stronger cut wins; delays add up.
#[must_use]
pub fn combine<'a>(effects: impl IntoIterator<Item = &'a LinkEffect>) -> LinkRule {
    let _ = effects.into_iter();
    todo!()
}
