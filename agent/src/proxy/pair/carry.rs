//! What another process needs to know of a connection that it takes over.

use std::os::fd::OwnedFd;

use crate::proxy::pair::Pair;

impl Pair {
    pub(crate) fn far_fd(&self) -> Option<&OwnedFd> {
        self.far.as_ref().map(|side| &side.fd)
    }

    /// How many pipes it has.
    pub(crate) fn pipes(&self) -> usize {
        let flows = [&self.forward.flow, &self.backward.flow];
        flows.into_iter().filter(|flow| flow.has_pipe()).count()
    }

    /// Does what changes of rules have still to do: the other process knows only the rules it has now.
    pub(crate) fn settle(&mut self) {
        self.forward.flow.settle();
        self.backward.flow.settle();
    }
}
