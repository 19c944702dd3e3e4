//! The gRPC services of a lab, generated from `protos/`; nothing is written by hand here.

/// Version 1 of the services: `operator` for people and tools, `agent` for hosts, `trust` for both.
pub mod v1 {
    #![allow(missing_docs, reason = "documented in the .proto files")]
    tonic::include_proto!("faultbed.v1");
}
