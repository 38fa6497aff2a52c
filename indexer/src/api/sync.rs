//! `POST /v1/vms/{vm}/sync`: wait until every page has been current.

use std::time::Duration;

use axum::{
    Json,
    extract::{Request, State},
};
use memdex_wire::{
    job::{SyncReport, SyncRequest},
    problem::Problem,
};

use super::{
    ApiState,
    extract::{self, TheVm},
    negotiate::{JSON, choose},
    problem::ApiError,
};

const DEFAULT_TIMEOUT_MS: u64 = 30_000;
const MAX_TIMEOUT_MS: u64 = 600_000;
/// Largest body.
const MAX_BODY: usize = 4096;

/// Returns when every page has been current at some moment since the call.
///
/// The body may be empty.
#[utoipa::path(
    post, path = "/v1/vms/{vm}/sync", tag = "VMs", operation_id = "syncVm",
    params(("vm" = String, Path, description = "Id, name or pid of a VM")),
    request_body(content = Option<SyncRequest>, description = "May be left out"),
    responses(
        (status = 200, description = "Done", body = SyncReport),
        (status = 410, description = "`vm_gone`: the VM ended meanwhile", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`timeout`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn post(
    State(state): State<ApiState>,
    TheVm(vm): TheVm,
    request: Request,
) -> Result<Json<SyncReport>, ApiError> {
    choose(request.headers(), &[JSON])?;
    let media = extract::media_type(request.headers());
    let body = extract::body(request, MAX_BODY).await?;
    let wanted = if body.is_empty() {
        SyncRequest::default()
    } else if media.as_deref() == Some(JSON) {
        extract::json(&body)?
    } else {
        return Err(extract::unsupported(media.as_deref(), &[JSON]));
    };
    let timeout = wanted.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS);
    if timeout > MAX_TIMEOUT_MS {
        return Err(ApiError::bad_request(format!(
            "timeout_ms is {timeout}: at most {MAX_TIMEOUT_MS} are waited for"
        )));
    }
    let _place = state.gates.syncs.enter().await?;
    tokio::select! {
        report = vm.sync(Duration::from_millis(timeout)) => {
            report.map(Json).map_err(|error| ApiError::job("sync", vm.id(), error))
        }
        () = state.stop.cancelled() => Err(ApiError::stopping()),
    }
}
