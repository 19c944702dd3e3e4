//! The store: a small ordered map with history, guarded commits, watches and leases.
