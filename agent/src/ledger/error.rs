//! Why a ledger cannot be used, and why orders are not followed.

use std::{io, path::PathBuf};

use faultbed_common::{
    generation::Generation,
    name::{HostName, LabName},
};

/// Why orders are not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// They are of another lab or host.
    #[error("refuse orders for {lab}/{host}: this is {own_lab}/{own_host}")]
    NotOurs {
        /// The lab they name.
        lab: Box<LabName>,
        /// The host they name.
        host: HostName,
        /// This lab.
        own_lab: Box<LabName>,
        /// This host.
        own_host: HostName,
    },
    /// The host would go back in time.
    #[error("refuse orders of generation {offered}: generation {held} was accepted before")]
    Older {
        /// What was accepted.
        held: Generation,
        /// What was offered.
        offered: Generation,
    },
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The disk does not let us.
    #[error("{verb} {}", path.display())]
    Disk {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It is not a ledger of this release.
    #[error("read {}: {why}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}
