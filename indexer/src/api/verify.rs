//! `POST /v1/vms/{vm}/verify`: read every current page again and compare.

use std::time::Duration;

use axum::{
    Json,
    extract::{Request, State},
};
use memdex_wire::{job::VerifyReport, problem::Problem};

use super::{
    ApiState,
    extract::{self, TheVm},
    negotiate::{JSON, choose},
    problem::ApiError,
};

/// Longest time: some terabytes of guest memory.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// Largest body: none is needed, `{}` is taken.
const MAX_BODY: usize = 4096;

/// Reads and hashes every current page again, and counts those that differ from the map.
#[utoipa::path(
    post, path = "/v1/vms/{vm}/verify", tag = "VMs", operation_id = "verifyVm",
    params(("vm" = String, Path, description = "Id, name or pid of a VM")),
    responses(
        (status = 200, description = "Done; `mismatches` must be 0", body = VerifyReport),
        (status = 410, description = "`vm_gone`: the VM ended meanwhile", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn post(
    State(state): State<ApiState>,
    TheVm(vm): TheVm,
    request: Request,
) -> Result<Json<VerifyReport>, ApiError> {
    choose(request.headers(), &[JSON])?;
    let body = extract::body(request, MAX_BODY).await?;
    if !matches!(body.trim_ascii(), b"" | b"{}") {
        return Err(ApiError::bad_request("verify takes no options: leave the body empty"));
    }
    let _place = state.gates.verifies.enter().await?;
    tokio::select! {
        report = vm.verify(TIMEOUT) => report.map(Json).map_err(|error| ApiError::job("verify", vm.id(), error)),
        () = state.stop.cancelled() => Err(ApiError::stopping()),
    }
}
