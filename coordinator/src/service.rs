//! The gRPC services: decode, call, encode. Decisions are in `decide`, effects in `editor` and `mirror`.

pub mod access;
pub mod agent;
pub mod compiled;
pub mod content;
pub mod exec;
pub mod operator;
pub mod trust;

use faultbed_proto::v1::Document;
use serde::{Serialize, de::DeserializeOwned};
use tonic::Status;

use self::access::Caller;
use crate::{decide::edit::Refusal, editor::EditError, store::StoreError};

/// Largest document taken from outside.
pub const DOCUMENT_BYTES_MAX: usize = 4 << 20;

/// Reads a document.
///
/// # Errors
/// INVALID_ARGUMENT with the place in the text.
pub fn decode<T: DeserializeOwned>(what: &str, json: &str) -> Result<T, Status> {
    serde_json::from_str(json)
        .map_err(|error| Status::invalid_argument(format!("read {what}: {error}")))
}

/// Writes a document.
///
/// # Errors
/// INTERNAL where the value has no JSON form, which is a bug.
pub fn encode<T: Serialize>(value: &T) -> Result<Document, Status> {
    let json = serde_json::to_string(value)
        .map_err(|error| Status::internal(format!("write document: {error}")))?;
    Ok(Document { json })
}

/// Who called.
///
/// # Errors
/// INTERNAL where no listener said so, which is a bug.
pub(crate) fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::internal("the listener did not say who called"))
}

/// The one table from our errors to gRPC's.
impl From<EditError> for Status {
    fn from(error: EditError) -> Self {
        match error {
            EditError::Refused(Refusal::Invalid(why)) => Self::invalid_argument(why),
            EditError::Refused(moved @ Refusal::Moved(_)) => {
                Self::failed_precondition(moved.to_string())
            }
            EditError::Store(error) => error.into(),
            EditError::Contended => Self::aborted(error.to_string()),
        }
    }
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        Self::unavailable(format!(
            "the lab's store does not answer ({error}); nodes and faults stay as they are; \
             see what was accepted with `faultbed history`"
        ))
    }
}
