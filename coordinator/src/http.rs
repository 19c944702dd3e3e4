//! HTTP beside gRPC on the same port: the same documents, for scripts, pages and Prometheus.

use axum::{
    Extension, Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use faultbed_common::{edit::EditRequest, status::Status, trust::Role};

use crate::{
    editor::EditError,
    service::{access::Caller, operator::OperatorService},
};

/// The HTTP routes.
pub fn routes(operator: OperatorService) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(status))
        .route("/api/v1/events", get(events))
        .route("/api/v1/edit", post(edit))
        .with_state(operator)
}

async fn status(State(operator): State<OperatorService>) -> Json<Status> {
    Json(operator.status_now())
}

async fn events(State(operator): State<OperatorService>) -> Response {
    Json(operator.journal.after(0)).into_response()
}

async fn edit(
    State(operator): State<OperatorService>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<EditRequest>,
) -> Response {
    if !request.plan
        && let Err(why) = caller.must_be(Role::Operator)
    {
        return (StatusCode::FORBIDDEN, format!("{why}\n")).into_response();
    }
    match operator.editor.edit(&request, &caller.user).await {
        Ok(reply) => Json(reply).into_response(),
        Err(error @ EditError::Refused(_)) => {
            (StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n")).into_response()
        }
        Err(error @ EditError::Contended) => {
            (StatusCode::CONFLICT, format!("{error}\n")).into_response()
        }
        Err(error @ EditError::Store(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
        }
    }
}

/// Prometheus' text format, from the status: every number is one that `status` shows too.
async fn metrics(State(operator): State<OperatorService>) -> String {
    render_metrics(&operator.status_now())
}

fn render_metrics(status: &Status) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{text}");
    };
    line(format_args!("# TYPE faultbed_generation gauge"));
    line(format_args!("faultbed_generation {}", status.generation));
    line(format_args!("# TYPE faultbed_converged gauge"));
    line(format_args!("faultbed_converged {}", u8::from(status.converged)));
    line(format_args!("# TYPE faultbed_node_ready gauge"));
    for node in &status.nodes {
        let ready = u8::from(node.observed == faultbed_common::report::NodeState::Ready);
        let (name, cluster) = (&node.name, &node.cluster);
        line(format_args!("faultbed_node_ready{{node=\"{name}\",cluster=\"{cluster}\"}} {ready}"));
    }
    line(format_args!("# TYPE faultbed_node_incarnation counter"));
    for node in &status.nodes {
        line(format_args!(
            "faultbed_node_incarnation{{node=\"{}\"}} {}",
            node.name, node.incarnation
        ));
    }
    line(format_args!("# TYPE faultbed_fault_in_force gauge"));
    for fault in &status.faults {
        let in_force = u8::from(fault.in_force);
        line(format_args!("faultbed_fault_in_force{{fault=\"{}\"}} {in_force}", fault.name));
    }
    line(format_args!("# TYPE faultbed_fault_dropped_segments counter"));
    for fault in &status.faults {
        line(format_args!(
            "faultbed_fault_dropped_segments{{fault=\"{}\"}} {}",
            fault.name, fault.evidence.total.dropped_segments
        ));
    }
    out
}
