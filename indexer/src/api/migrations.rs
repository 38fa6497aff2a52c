//! `/v1/migrations`: moving VMs, and the connections between two hosts on which they move.
//!
//! Owns the requests. What a migration is and does is [`crate::migrate`]'s.

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper_util::rt::TokioIo;
use memdex_wire::{
    migration::{Migration, MigrationPlan, MigrationRequest},
    problem::{Code, Problem},
    transfer::PROTOCOL,
};

use super::{
    ApiState, extract,
    negotiate::{JSON, choose},
    problem::ApiError,
};
use crate::migrate::is_id;

/// Largest body.
const MAX_BODY: usize = 64 << 10;

async fn request(headers: &HeaderMap, request: Request) -> Result<MigrationRequest, ApiError> {
    choose(headers, &[JSON])?;
    let media = extract::media_type(request.headers());
    if media.as_deref() != Some(JSON) {
        return Err(extract::unsupported(media.as_deref(), &[JSON]));
    }
    extract::json(&extract::body(request, MAX_BODY).await?)
}

/// Begins to move a VM to another host.
///
/// Returns at once: the migration goes on whether anybody looks or not. Look at it under its id. The VM at the destination has to wait
/// with `-incoming defer`.
#[utoipa::path(
    post, path = "/v1/migrations", tag = "Migrations", operation_id = "startMigration",
    request_body = MigrationRequest,
    responses(
        (status = 200, description = "It has begun, or waits for its turn", body = Migration),
        (status = 409, description = "`conflict`: the VM is on its way already", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn start(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Request,
) -> Result<Json<Migration>, ApiError> {
    let request = request(&headers, body).await?;
    Ok(Json(state.migrations.start(request)?))
}

/// What a migration would cost, and whether it could begin now. Nothing moves.
#[utoipa::path(
    post, path = "/v1/migrations/plan", tag = "Migrations", operation_id = "planMigration",
    request_body = MigrationRequest,
    responses(
        (status = 200, description = "What stands in its way is in `checks`", body = MigrationPlan),
        (status = 502, description = "`peer_unreachable`, `peer_unauthorized` or `peer_protocol`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn plan(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Request,
) -> Result<Json<MigrationPlan>, ApiError> {
    let request = request(&headers, body).await?;
    let _place = state.gates.diffs.enter().await?;
    tokio::select! {
        plan = state.migrations.plan(&request) => Ok(Json(plan?)),
        () = state.stop.cancelled() => Err(ApiError::stopping()),
    }
}

/// All migrations of this host, both ways: those under way, and those that ended within the last hour.
#[utoipa::path(
    get, path = "/v1/migrations", tag = "Migrations", operation_id = "listMigrations",
    responses(
        (status = 200, description = "Oldest first", body = Vec<Migration>),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    headers: HeaderMap,
) -> Result<Json<Vec<Migration>>, ApiError> {
    choose(&headers, &[JSON])?;
    Ok(Json(state.migrations.list()))
}

/// A migration: where it is, how it goes, what happened.
#[utoipa::path(
    get, path = "/v1/migrations/{id}", tag = "Migrations", operation_id = "getMigration",
    params(("id" = String, Path, description = "Id of a migration; the same on both hosts")),
    responses(
        (status = 200, description = "As of now", body = Migration),
        (status = 404, description = "`migration_not_found`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Migration>, ApiError> {
    choose(&headers, &[JSON])?;
    state.migrations.get(&id).map(Json).ok_or_else(|| unknown(&id))
}

/// Calls a migration off. The guest runs on at the source.
///
/// At the source this only asks: look at the migration for its end. At the destination it decides: unless the guest has been handed
/// over, it will never run there.
#[utoipa::path(
    post, path = "/v1/migrations/{id}/abort", tag = "Migrations", operation_id = "abortMigration",
    params(("id" = String, Path, description = "Id of a migration")),
    responses(
        (status = 200, description = "It is called off, or had ended without success before", body = Migration),
        (status = 404, description = "`migration_not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: it is too late", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn abort(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Migration>, ApiError> {
    choose(&headers, &[JSON])?;
    let answer = state.migrations.abort(&id).await.ok_or_else(|| unknown(&id))?;
    Ok(Json(answer?))
}

/// The control connection of a migration, from the source's daemon to the destination's.
///
/// An upgrade to the protocol `memdex-migration/2`, which is described byte by byte in the crate `memdex-wire`, module `transfer`.
#[utoipa::path(
    post, path = "/v1/migrations/{id}/receive", tag = "Migrations", operation_id = "receiveMigration",
    params(("id" = String, Path, description = "Id that the source has chosen: 8 to 64 hexadecimal digits")),
    responses(
        (status = 101, description = "The connection speaks `memdex-migration/2` from here on"),
        (status = 503, description = "`unavailable`: too many at once", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn receive(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    if !is_id(&id) {
        return Err(ApiError::bad_request("an id of a migration is 8 to 64 hexadecimal digits"));
    }
    let place = state.migrations.place_to_talk().ok_or_else(|| {
        ApiError::new(
            Code::Unavailable,
            "too many migrations to this host are beginning or under way: try again in a moment",
        )
    })?;
    upgrade(request, move |io| state.migrations.receive(&id, io, place))
}

/// A data connection of a migration, from the source's daemon to the destination's.
#[utoipa::path(
    post, path = "/v1/migrations/{id}/stream", tag = "Migrations", operation_id = "streamMigration",
    params(("id" = String, Path, description = "Id of an incoming migration")),
    responses(
        (status = 101, description = "The connection speaks `memdex-migration/2` from here on"),
        (status = 404, description = "`migration_not_found`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn stream(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    if !state.migrations.takes_data(&id) {
        return Err(unknown(&id));
    }
    upgrade(request, move |io| state.migrations.stream(&id, io))
}

fn unknown(id: &str) -> ApiError {
    let id = migrate_client::printable(&id.chars().take(64).collect::<String>());
    ApiError::new(
        Code::MigrationNotFound,
        format!(
            "no migration {id:?} is known on this host: they are forgotten an hour after their end, and when the daemon is started anew"
        ),
    )
}

/// Answers with 101 and hands the connection over.
fn upgrade(
    mut request: Request,
    serve: impl FnOnce(Box<dyn migrate_client::Channel>) + Send + 'static,
) -> Result<Response, ApiError> {
    let wanted = request.headers().get(header::UPGRADE);
    if wanted.is_none_or(|protocol| protocol.as_bytes() != PROTOCOL.as_bytes()) {
        return Err(ApiError::bad_request(format!(
            "this path takes an upgrade to {PROTOCOL} only: it is for daemons, start a migration with POST /v1/migrations"
        )));
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(io) => serve(Box::new(TokioIo::new(io))),
            Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}
