//! Tests of probes against small servers.
