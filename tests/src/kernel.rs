//! Compares what a client sees of a real link with what it sees of ours.
//!
//! Each case runs twice, at the same time: in two network namespaces joined by veth whose packets
//! nftables drops, and in two more where our proxy stands before the server and has the same fault at
//! packet grade. Client, server, socket options and moments are the same; what the client's kernel
//! says (`tcp_info`, the send queue, errors, times) goes into one row each. A row says itself how near
//! the two must be, and where we differ, why.

pub mod ground;
pub mod reading;
pub mod run;
pub mod scene;

mod bytes;
mod dials;
mod ends;
mod one_way;
mod orders;
mod outages;
mod proxy;
mod rates;
mod sys;
mod witness;

use std::{io::Write as _, process::ExitCode};

use crate::bins;

pub use reading::{Like, Reading, Row, Value};
pub use run::{Case, Compared, compare_all};
pub use witness::{Stillness, Witness};

/// Every case, in the order of the table. Quiet ones run side by side; the others alone.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = outages::cases();
    cases.extend(dials::cases());
    cases.extend(ends::cases());
    cases.extend(one_way::cases());
    cases.extend(orders::cases());
    cases.extend(bytes::cases());
    cases.extend(rates::cases());
    cases
}

/// Compares, prints the table and says what is not as it must be. `words` choose cases by their
/// names; none chooses all.
#[must_use]
pub fn main(words: impl Iterator<Item = String>) -> ExitCode {
    // Before namespaces are entered: it may have to be built.
    let _agent = bins::path("faultbed-agent");
    ground::demand_root();
    let words: Vec<String> = words.collect();
    let mut cases = cases();
    cases.retain(|case| words.is_empty() || words.iter().any(|word| case.name.contains(word)));
    let print = |text: &str| {
        let _no_reader = std::io::stdout().write_all(text.as_bytes());
    };
    let results = compare_all(&cases, |line| {
        let _no_reader = writeln!(std::io::stderr(), "{line}");
    });
    print(&run::table(&results));
    let excused: Vec<_> = results.iter().flat_map(Compared::excused).collect();
    if !excused.is_empty() {
        print(&format!(
            "not judged, since the machine stood still meanwhile:\n{}\n",
            excused.join("\n")
        ));
    }
    let failures: Vec<_> = results.iter().flat_map(Compared::failures).collect();
    if failures.is_empty() && !cases.is_empty() {
        return ExitCode::SUCCESS;
    }
    print(&format!("{} cases, not as it must be:\n{}\n", cases.len(), failures.join("\n")));
    ExitCode::FAILURE
}
