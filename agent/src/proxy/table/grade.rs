//! Decides which parts of a fault the kernel makes and which are made in user space, or why one cannot be had.

use faultbed_common::{
    effect::{Loss, Ratio},
    fault::Grade,
    proxy_spec::{Cut, Dials, Endings, LinkEffect, LinkFault},
};
use serde::{Deserialize, Serialize};

/// What the host lets this process do; found out by trying.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// The kernel drops by hop count what arrives at a socket. Needs no privilege.
    pub(crate) deafness: bool,
    /// It runs filters on TCP sockets: `CAP_NET_ADMIN` on current kernels.
    pub(crate) filters: bool,
    /// It takes programs that remember (eBPF): `CAP_BPF` where unprivileged ones are forbidden.
    pub(crate) programs: bool,
}

impl Abilities {
    /// The best grade that a cut can have.
    pub(crate) fn best(self) -> Grade {
        if self.deafness { Grade::Packet } else { Grade::Stream }
    }
}

/// What of one fault the kernel makes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kernel {
    /// Segments that it drops when they arrive.
    pub(crate) loss: Vec<Loss>,
    /// It answers SYNs with a RST.
    pub(crate) refuses: bool,
}

/// How a fault is made on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Making {
    /// The best that holds for all its parts.
    pub(crate) grade: Grade,
    /// What is left to do for connections, in the grade it has here.
    pub(crate) effect: LinkEffect,
    pub(crate) kernel: Kernel,
    /// What it does less well than other hosts could.
    pub(crate) note: Option<String>,
}

/// Why a part of a fault is not to be had from the kernel.
#[derive(Debug, Clone, Copy)]
enum Lack {
    /// This host has not what it takes.
    Host(&'static str),
    /// No host has.
    Nature(&'static str),
}

/// How a fault is made where this much is allowed.
///
/// # Errors
/// With the reason, and what would help, where it asks for a grade that cannot be had here.
pub(crate) fn making(fault: &LinkFault, can: Abilities) -> Result<Making, String> {
    let mut judge = Judge { wanted: fault.grade, grade: Grade::Packet, note: None };
    let mut effect = fault.effect.clone();
    let mut kernel = Kernel::default();
    let shared = fault.probability.is_some_and(|share| share < Ratio::ONE);
    if let Some(cut) = effect.cut
        && !judge.by_kernel(cut_lacks(cut, shared, can))?
    {
        // Bytes can be held without the kernel's help, packets cannot.
        effect.cut = Some(Cut::Bytes);
    }
    if !effect.loss.is_empty() && judge.by_kernel(loss_lacks(&effect.loss, can))? {
        kernel.loss = std::mem::take(&mut effect.loss);
    }
    match effect.dials {
        Some(Dials::TimeOut) => {
            if let Some(why) = time_out_lacks(shared, can) {
                return Err(why.to_owned());
            }
            if fault.grade == Some(Grade::Stream) {
                return Err("a connection that is accepted does not time out: dials time out at \
                            grade packet, or can be refused"
                    .to_owned());
            }
        }
        Some(Dials::Refuse) => kernel.refuses = judge.by_kernel(refusal_lacks(shared, can))?,
        None => {}
    }
    if let Some(what) = in_user_space(&effect) {
        judge.by_kernel(Some(Lack::Nature(what)))?;
    }
    let nothing = fault.effect == LinkEffect::default();
    let grade = if nothing { Grade::Stream } else { judge.grade };
    Ok(Making { grade, effect, kernel, note: judge.note })
}

/// What is known of a fault after some of its parts were judged.
struct Judge {
    wanted: Option<Grade>,
    grade: Grade,
    note: Option<String>,
}

impl Judge {
    /// Whether the kernel makes a part of the fault, by what that lacks.
    fn by_kernel(&mut self, lack: Option<Lack>) -> Result<bool, String> {
        match (lack, self.wanted) {
            (None, None | Some(Grade::Packet)) => return Ok(true),
            (Some(Lack::Host(why) | Lack::Nature(why)), Some(Grade::Packet)) => {
                return Err(format!("grade packet cannot be had: {why}"));
            }
            (Some(Lack::Host(why)), None) => {
                self.note.get_or_insert_with(|| format!("at grade stream: {why}"));
            }
            (Some(Lack::Nature(_)), None) | (_, Some(Grade::Stream)) => {}
        }
        self.grade = Grade::Stream;
        Ok(false)
    }
}

fn cut_lacks(cut: Cut, shared: bool, can: Abilities) -> Option<Lack> {
    match cut {
        Cut::Bytes => Some(Lack::Nature("for the bytes of one way: acknowledgements pass")),
        Cut::Packets if shared => Some(Lack::Nature(
            "for a share of the connections: a SYN is of none yet; grade stream holds their bytes",
        )),
        Cut::Packets if !can.deafness => Some(Lack::Host("this kernel does not drop by hop count")),
        Cut::Packets => None,
    }
}

fn loss_lacks(loss: &[Loss], can: Abilities) -> Option<Lack> {
    loss.iter().find_map(|loss| match loss {
        Loss::Bernoulli(_) if !can.filters => Some(Lack::Host(
            "this kernel runs no filters on TCP sockets without CAP_NET_ADMIN; give it to the \
             proxy, or run the lab as root or in a user namespace",
        )),
        Loss::Gilbert { .. } if !(can.filters && can.programs) => Some(Lack::Host(
            "loss with memory takes an eBPF filter: CAP_BPF and CAP_NET_ADMIN; loss in bursts \
             takes no privilege",
        )),
        Loss::Burst { .. } if !can.deafness => {
            Some(Lack::Host("this kernel does not drop by hop count"))
        }
        Loss::Bernoulli(_) | Loss::Gilbert { .. } | Loss::Burst { .. } => None,
    })
}

fn time_out_lacks(shared: bool, can: Abilities) -> Option<&'static str> {
    if shared {
        return Some("a share of the dials cannot time out: a SYN is of no connection yet");
    }
    (!can.deafness).then_some("dials cannot time out: this kernel does not drop by hop count")
}

fn refusal_lacks(shared: bool, can: Abilities) -> Option<Lack> {
    if shared {
        return Some(Lack::Nature("for a share of the dials: a SYN is of no connection yet"));
    }
    (!can.programs).then_some(Lack::Host(
        "dials are accepted and then reset; a RST to the SYN takes an eBPF program: CAP_BPF",
    ))
}

/// The first part of an effect that only user space can make.
fn in_user_space(effect: &LinkEffect) -> Option<&'static str> {
    let LinkEffect {
        cut: _,
        hold,
        delay,
        bandwidth,
        loss: _,
        corrupt,
        slice,
        dials: _,
        accept_delay_us,
        endings,
    } = effect;
    // What resets and closes is real to the peer's kernel.
    let Endings { reset: _, reset_after_us: _, close_after_us: _, limit_bytes, slow_close_us } =
        endings;
    let parts = [
        (hold.is_some(), "for bytes that wait: the kernel would acknowledge or drop them"),
        (delay.is_some(), "for a delay: the kernel cannot hold single packets"),
        (bandwidth.is_some(), "for a bandwidth that connections share"),
        (corrupt.is_some(), "for corruption: a broken packet has a wrong checksum and is lost"),
        (slice.is_some(), "for slices: the kernel makes the segments"),
        (*accept_delay_us > 0, "for late accepts: the kernel has shaken hands by then"),
        (limit_bytes.is_some(), "for a limit of bytes"),
        (*slow_close_us > 0, "for a slow close"),
    ];
    parts.into_iter().find_map(|(present, why)| present.then_some(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Abilities = Abilities { deafness: true, filters: true, programs: true };
    const POOR: Abilities = Abilities { deafness: true, filters: false, programs: false };

    fn fault(effect: LinkEffect, grade: Option<Grade>) -> LinkFault {
        LinkFault { effect, grade, ..super::super::tests::cut(&["x>y"]) }
    }

    fn losing(text: &str) -> LinkEffect {
        LinkEffect { loss: vec![text.parse().unwrap()], ..LinkEffect::default() }
    }

    #[test]
    fn loss_is_the_kernels_where_it_may_be_and_says_so_where_not() {
        for text in ["1%", "p=1% r=20%", "burst=20ms every=2s"] {
            let made = making(&fault(losing(text), None), ALL).unwrap();
            assert_eq!((made.grade, made.kernel.loss.len()), (Grade::Packet, 1), "{text}");
            assert!(made.effect.loss.is_empty() && made.note.is_none(), "not lost twice");
            let made = making(&fault(losing(text), Some(Grade::Stream)), ALL).unwrap();
            assert_eq!((made.grade, made.effect.loss.len()), (Grade::Stream, 1), "{text}");
            assert!(made.kernel.loss.is_empty() && made.note.is_none(), "{text}");
        }
        for text in ["1%", "p=1% r=20%"] {
            let made = making(&fault(losing(text), None), POOR).unwrap();
            assert_eq!((made.grade, made.effect.loss.len()), (Grade::Stream, 1), "{text}");
            assert!(made.note.unwrap().contains("CAP_NET_ADMIN"), "{text}");
            let why = making(&fault(losing(text), Some(Grade::Packet)), POOR).unwrap_err();
            assert!(why.contains("cannot be had") && why.contains("CAP_NET_ADMIN"), "{why}");
        }
        let burst = fault(losing("burst=20ms every=2s"), Some(Grade::Packet));
        assert_eq!(making(&burst, POOR).unwrap().grade, Grade::Packet, "takes no privilege");
    }

    #[test]
    fn a_share_of_connections_is_cut_in_user_space_only() {
        let cut = LinkEffect { cut: Some(Cut::Packets), ..LinkEffect::default() };
        let share = Some(Ratio::from_ppm(300_000));
        let mut some = LinkFault { probability: share, ..fault(cut, None) };
        let made = making(&some, ALL).unwrap();
        assert_eq!((made.grade, made.effect.cut), (Grade::Stream, Some(Cut::Bytes)));
        some.grade = Some(Grade::Packet);
        assert!(making(&some, ALL).unwrap_err().contains("a share of the connections"));
        some.probability = Some(Ratio::ONE);
        assert_eq!(making(&some, ALL).unwrap().grade, Grade::Packet, "all is no share");
        let late = LinkEffect { dials: Some(Dials::TimeOut), ..LinkEffect::default() };
        let some = LinkFault { probability: share, ..fault(late, None) };
        assert!(making(&some, ALL).unwrap_err().contains("a share of the dials"));
    }

    #[test]
    fn the_grade_shown_holds_for_every_part() {
        let mixed = LinkEffect { slice: Some("64B".parse().unwrap()), ..losing("1%") };
        let made = making(&fault(mixed.clone(), None), ALL).unwrap();
        assert_eq!((made.grade, made.kernel.loss.len()), (Grade::Stream, 1));
        let why = making(&fault(mixed, Some(Grade::Packet)), ALL).unwrap_err();
        assert!(why.contains("for slices"), "{why}");
        let reset = Endings { reset: true, ..Endings::default() };
        let reset = LinkEffect { endings: reset, ..LinkEffect::default() };
        assert_eq!(making(&fault(reset, None), POOR).unwrap().grade, Grade::Packet);
    }

    #[test]
    fn refusals_come_from_the_kernel_where_it_takes_programs() {
        let refuse = LinkEffect { dials: Some(Dials::Refuse), ..LinkEffect::default() };
        let made = making(&fault(refuse.clone(), None), ALL).unwrap();
        assert_eq!((made.grade, made.kernel.refuses), (Grade::Packet, true));
        let made = making(&fault(refuse.clone(), None), POOR).unwrap();
        assert_eq!((made.grade, made.kernel.refuses), (Grade::Stream, false));
        assert!(made.note.unwrap().contains("accepted and then reset"));
        assert!(making(&fault(refuse, Some(Grade::Packet)), POOR).is_err());
    }
}
