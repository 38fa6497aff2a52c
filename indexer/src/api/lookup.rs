//! `POST /v1/content/lookup`: which of these contents does this host hold?

use axum::{
    extract::{Request, State},
    http::header,
    response::{IntoResponse, Response},
};
use memdex_wire::{
    bulk::{self, KeyId},
    content::{LookupAnswer, LookupRequest, MAX_JSON_LOOKUP},
    problem::{Code, Problem},
};
use roaring::RoaringBitmap;

use super::{
    ApiState, extract,
    negotiate::{JSON, choose},
    problem::ApiError,
};

/// Largest body in JSON: each fingerprint with quotes, a comma and some room for white space.
const MAX_JSON_BYTES: usize = MAX_JSON_LOOKUP * 80;

/// Which of these contents does a VM of this host have in a current page?
///
/// A list of at most 65,536 fingerprints in binary is answered with a bitmap, JSON with JSON. A false "yes" is possible
/// for content that changes just now; whoever uses content hashes it again.
#[utoipa::path(
    post, path = "/v1/content/lookup", tag = "Content", operation_id = "lookupContent",
    request_body(content(
        (LookupRequest = "application/json"),
        (Vec<u8> = "application/vnd.memdex.fingerprints.v1"),
    )),
    responses(
        (status = 200, description = "In the order asked for", content(
            (LookupAnswer = "application/json"),
            (Vec<u8> = "application/vnd.memdex.bitmap.v1"),
        )),
        (status = 413, description = "`too_large`", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported_media_type`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn post(State(state): State<ApiState>, request: Request) -> Result<Response, ApiError> {
    let media = extract::media_type(request.headers());
    match media.as_deref() {
        Some(bulk::FINGERPRINTS) => {
            choose(request.headers(), &[bulk::BITMAP])?;
            binary(&state, request).await
        }
        Some(JSON) => {
            choose(request.headers(), &[JSON])?;
            json(&state, request).await
        }
        other => Err(extract::unsupported(other, &[bulk::FINGERPRINTS, JSON])),
    }
}

async fn binary(state: &ApiState, request: Request) -> Result<Response, ApiError> {
    let place = state.gates.lookups.enter().await?;
    let body = extract::body(request, bulk::MAX_LOOKUP_BYTES).await?;
    let host = state.host.clone();
    let (asked, held) = tokio::task::spawn_blocking(move || {
        // Kept until the work is done, even if the client goes away meanwhile.
        let _place = place;
        let (key, list) = bulk::decode_fingerprints(&body).map_err(undecodable)?;
        // Unequal keys never match: the same bytes would mean another content.
        let held = if key == KeyId::PLAIN { host.lookup(&list) } else { RoaringBitmap::new() };
        Ok::<_, ApiError>((list.len() as u32, held))
    })
    .await??;
    count(state, u64::from(asked), &held);
    Ok(([(header::CONTENT_TYPE, bulk::BITMAP)], bulk::encode_bitmap(asked, &held)).into_response())
}

async fn json(state: &ApiState, request: Request) -> Result<Response, ApiError> {
    let place = state.gates.lookups.enter().await?;
    let body = extract::body(request, MAX_JSON_BYTES).await?;
    let LookupRequest { fingerprints } = extract::json(&body)?;
    if fingerprints.len() > MAX_JSON_LOOKUP {
        let count = fingerprints.len();
        let detail = format!(
            "{count} fingerprints: at most {MAX_JSON_LOOKUP} are taken in JSON, split them or use {}",
            bulk::FINGERPRINTS
        );
        return Err(ApiError::new(Code::TooLarge, detail));
    }
    let host = state.host.clone();
    let (asked, held) = tokio::task::spawn_blocking(move || {
        let _place = place;
        (fingerprints.len() as u32, host.lookup(&fingerprints))
    })
    .await?;
    count(state, u64::from(asked), &held);
    let answer = LookupAnswer { held: (0..asked).map(|i| held.contains(i)).collect() };
    Ok(axum::Json(answer).into_response())
}

fn count(state: &ApiState, asked: u64, held: &RoaringBitmap) {
    state.figures.looked_up.add(asked);
    state.figures.found.add(held.len());
}

/// A binary body that is not what it claims to be.
pub(super) fn undecodable(error: bulk::DecodeError) -> ApiError {
    match error {
        bulk::DecodeError::TooMany { .. } => {
            ApiError::new(Code::TooLarge, format!("{error}: split the list"))
        }
        other => ApiError::bad_request(format!("{other}: see {} in /docs", bulk::FINGERPRINTS)),
    }
}
