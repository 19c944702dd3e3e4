//! The data plane: one process for each host, whose listeners own the advertised addresses.
