//! Decides what a cut does to the two sockets of a connection. Pure; `pair` does it.
//!
//! A connection that X dialled to Y has a *near* socket, which faces X, and a *far* one, which faces
//! Y. `forward` is the link X→Y, `backward` the link Y→X. A deaf socket drops every arriving segment
//! before TCP sees it: nothing is acknowledged, nothing is lost, the peer's kernel retransmits.
//!
//! | cut of packets | near (packets of X) | far (packets of Y) | X→Y bytes | Y→X bytes | new dials of X |
//! |---|---|---|---|---|---|
//! | both ways | deaf | deaf | stop | stop | SYN dropped |
//! | X→Y only | deaf | hears until the allowance is spent | stop | an allowance, then stop | SYN dropped |
//! | Y→X only | hears until the allowance is spent | deaf | an allowance, then stop | stop | SYN dropped |
//!
//! The allowance stands for what a real network does when only acknowledgements die: some ten
//! segments arrive until the sender's first retransmission time-out, then nothing new. From then on
//! that side is deaf too, so that its peer sees no acknowledgement that could not have come.
//!
//! A cut of bytes only closes the gate of its direction: the source is not read, nothing is written.
//! Its kernel goes on acknowledging until the buffers are full. Dials succeed.

use faultbed_common::proxy_spec::Cut;
use serde::{Deserialize, Serialize};

/// Chunks, of at most a segment each, that pass against a one-way cut of packets before their sender's window is used up.
pub(crate) const ALLOWANCE_CHUNKS: u32 = 10;
/// From the first such chunk to the sender's first retransmission time-out.
pub(crate) const ALLOWANCE_NS: u64 = 200_000_000;

/// Whether the bytes of one direction pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Gate {
    #[default]
    Open,
    /// Until the allowance is spent.
    Ajar,
    /// Nothing is read and nothing is written.
    Shut,
}

/// What becomes of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) forward: Gate,
    pub(crate) backward: Gate,
    pub(crate) near_deaf: bool,
    pub(crate) far_deaf: bool,
    /// Whether a connection that has no far socket yet may get one.
    pub(crate) dial: bool,
}

impl Verdict {
    /// No fault.
    pub(crate) const PASS: Self = Self {
        forward: Gate::Open,
        backward: Gate::Open,
        near_deaf: false,
        far_deaf: false,
        dial: true,
    };

    /// It is not known whose connection this is, and that matters: nothing passes, nothing is lost.
    pub(crate) const HOLD: Self =
        Self { forward: Gate::Shut, backward: Gate::Shut, dial: false, ..Self::PASS };

    /// Whether neither direction is stopped.
    pub(crate) fn passes(&self) -> bool {
        self.forward == Gate::Open && self.backward == Gate::Open
    }
}

/// The verdict on a connection, from the cuts of its two links. `spent` says that the allowance of
/// a one-way cut has been used up on this connection.
pub(crate) fn verdict(forward: Option<Cut>, backward: Option<Cut>, spent: bool) -> Verdict {
    let packets = |cut| cut == Some(Cut::Packets);
    let one_way = packets(forward) != packets(backward);
    let gate = |own: Option<Cut>| match own {
        Some(Cut::Bytes | Cut::Packets) => Gate::Shut,
        None if one_way && spent => Gate::Shut,
        None if one_way => Gate::Ajar,
        None => Gate::Open,
    };
    let (forward_gate, backward_gate) = (gate(forward), gate(backward));
    Verdict {
        forward: forward_gate,
        backward: backward_gate,
        near_deaf: packets(forward) || (packets(backward) && forward_gate == Gate::Shut),
        far_deaf: packets(backward) || (packets(forward) && backward_gate == Gate::Shut),
        dial: !packets(forward) && !packets(backward),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: Option<Cut> = Some(Cut::Bytes);
    const P: Option<Cut> = Some(Cut::Packets);

    fn check(
        forward: Option<Cut>,
        backward: Option<Cut>,
        spent: bool,
    ) -> (Gate, Gate, &'static str) {
        let verdict = verdict(forward, backward, spent);
        let deaf = match (verdict.near_deaf, verdict.far_deaf) {
            (false, false) => "none",
            (true, false) => "near",
            (false, true) => "far",
            (true, true) => "both",
        };
        assert_eq!(verdict.dial, forward != P && backward != P, "packets of a handshake die too");
        (verdict.forward, verdict.backward, deaf)
    }

    #[test]
    fn without_a_cut_everything_passes() {
        assert_eq!(verdict(None, None, true), Verdict::PASS);
    }

    #[test]
    fn a_cut_both_ways_makes_both_sockets_deaf() {
        assert_eq!(check(P, P, false), (Gate::Shut, Gate::Shut, "both"));
    }

    #[test]
    fn a_one_way_cut_of_packets_ends_the_other_way_after_an_allowance() {
        assert_eq!(check(P, None, false), (Gate::Shut, Gate::Ajar, "near"));
        assert_eq!(check(P, None, true), (Gate::Shut, Gate::Shut, "both"));
        assert_eq!(check(None, P, false), (Gate::Ajar, Gate::Shut, "far"));
        assert_eq!(check(None, P, true), (Gate::Shut, Gate::Shut, "both"));
    }

    #[test]
    fn a_cut_of_bytes_leaves_packets_and_the_other_way_alone() {
        assert_eq!(check(B, None, false), (Gate::Shut, Gate::Open, "none"));
        assert_eq!(check(None, B, true), (Gate::Open, Gate::Shut, "none"));
        assert_eq!(check(B, B, false), (Gate::Shut, Gate::Shut, "none"));
    }

    #[test]
    fn packets_one_way_and_bytes_the_other_leave_nothing_to_acknowledge() {
        assert_eq!(check(P, B, false), (Gate::Shut, Gate::Shut, "both"));
        assert_eq!(check(B, P, false), (Gate::Shut, Gate::Shut, "both"));
    }
}
