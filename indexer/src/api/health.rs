//! `/healthz` and `/readyz`: open to everybody, and saying nothing but yes or no.

use axum::extract::State;
use memdex_wire::problem::{Code, Problem};

use super::{ApiState, problem::ApiError};

/// Whether the daemon answers at all. Needs no token.
#[utoipa::path(
    get, path = "/healthz", tag = "Daemon", operation_id = "isAlive", security(()),
    responses((status = 200, description = "It does", body = str, content_type = "text/plain")),
)]
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// Whether the daemon has looked for VMs once, so that its lists are complete. Needs no token.
#[utoipa::path(
    get, path = "/readyz", tag = "Daemon", operation_id = "isReady", security(()),
    responses(
        (status = 200, description = "It has", body = str, content_type = "text/plain"),
        (status = 503, description = "`unavailable`: not yet, or the daemon is stopping", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn ready(State(state): State<ApiState>) -> Result<&'static str, ApiError> {
    if state.stop.is_cancelled() {
        return Err(ApiError::stopping());
    }
    if state.host.ready() {
        return Ok("ready\n");
    }
    Err(ApiError::new(Code::Unavailable, "the first look for VMs is not done yet: try again in a moment"))
}
