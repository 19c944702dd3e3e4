//! TLS between the members of a cluster: what its hosts make certificates from.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The directory of a node's certificates, below its own.
pub const TLS_DIR: &str = "tls";

/// In it: whom to believe.
pub const CA_FILE: &str = "ca.pem";

/// In it: what the node shows.
pub const CERTIFICATE_FILE: &str = "cert.pem";

/// In it: the key of that.
pub const KEY_FILE: &str = "key.pem";

/// The CA of one cluster, and of nothing else: every host with a node of it can sign for all of them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterAuthority {
    /// Its certificate, in PEM.
    pub certificate: String,
    /// Its private key, in PEM.
    pub key: String,
}

/// Without the key.
impl fmt::Debug for ClusterAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterAuthority").finish_non_exhaustive()
    }
}

/// What a host makes a node's certificate from, anew for each start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTls {
    /// Who signs.
    pub authority: ClusterAuthority,
    /// Names and addresses that the node is reached by, its own name first.
    pub names: Vec<String>,
}
