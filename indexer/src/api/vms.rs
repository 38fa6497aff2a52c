//! `GET /v1/vms` and `GET /v1/vms/{vm}`.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
    response::IntoResponse,
};
use memdex_wire::{problem::Problem, vm::VmInfo};

use super::{
    ApiState,
    extract::TheVm,
    negotiate::{JSON, choose},
    problem::ApiError,
};

/// The VMs of this host.
#[utoipa::path(
    get, path = "/v1/vms", tag = "VMs", operation_id = "listVms",
    responses(
        (status = 200, description = "All VMs that are indexed, by name", body = Vec<VmInfo>),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    headers: HeaderMap,
) -> Result<Json<Vec<VmInfo>>, ApiError> {
    choose(&headers, &[JSON])?;
    let mut vms: Vec<VmInfo> = state.host.vms().iter().map(|vm| vm.info()).collect();
    vms.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(Json(vms))
}

/// One VM.
#[utoipa::path(
    get, path = "/v1/vms/{vm}", tag = "VMs", operation_id = "getVm",
    params(("vm" = String, Path, description = "Id, name or pid of a VM")),
    responses(
        (status = 200, description = "What is known of the VM", body = VmInfo,
         headers(("ETag" = String, description = "The map's generation; counters may differ at the same generation"))),
        (status = 404, description = "`vm_not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`vm_ambiguous`: several VMs have this name", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get(TheVm(vm): TheVm, headers: HeaderMap) -> Result<impl IntoResponse, ApiError> {
    choose(&headers, &[JSON])?;
    let info = vm.info();
    // Always the whole answer: witnesses and counters change without the map.
    Ok(([(header::ETAG, format!("\"{}\"", info.generation))], Json(info)))
}
