//! Reading requests: path, query, body. Owns the bounds; every mistake is a sentence.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequestParts, Path, Query, Request},
    http::{HeaderMap, header, request::Parts},
};
use http_body_util::{BodyExt, Collected, LengthLimitError, Limited};
use memdex_wire::problem::Code;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{
    ApiState,
    gate::{Place, UNUSED},
    problem::ApiError,
};
use crate::host::Vm;

/// Time for a whole request body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest id or name of a VM.
const MAX_KEY_BYTES: usize = 4096;

/// The VM that the path names by id, name or pid.
pub(super) struct TheVm(pub(super) Arc<Vm>);

impl FromRequestParts<ApiState> for TheVm {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let Path(key) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| {
            ApiError::bad_request("the VM in the path is not UTF-8: percent-encode its id or name")
        })?;
        if key.len() > MAX_KEY_BYTES {
            return Err(ApiError::bad_request("the VM in the path is longer than 4096 bytes: use its id"));
        }
        state.host.find(&key).map(Self).map_err(|error| ApiError::find(&error))
    }
}

/// The query string.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Query::<T>::try_from_uri(&parts.uri).map(|Query(params)| Self(params)).map_err(|error| {
            let why = migrate_client::printable(&error.body_text());
            ApiError::bad_request(format!("the query cannot be used: {why}; /docs says what this path takes"))
        })
    }
}

/// Reads a body of at most `limit` bytes, within a fixed time. Nothing is allocated on the word of a header.
pub(super) async fn body(request: Request<Body>, limit: usize) -> Result<Bytes, ApiError> {
    check_announced(&request, limit)?;
    within_bounds(limit, Limited::new(request.into_body(), limit).collect()).await.map(Collected::to_bytes)
}

/// The same for who takes the body as it comes, and holds a place meanwhile: who sends nothing gives it up if others wait for it.
pub(super) async fn pieces(
    request: Request<Body>,
    limit: usize,
    place: &Place,
    mut each: impl FnMut(&[u8]),
) -> Result<(), ApiError> {
    check_announced(&request, limit)?;
    let mut body = Limited::new(request.into_body(), limit);
    let all = async {
        let (mut since, mut came) = (Instant::now(), 0);
        loop {
            match timeout(UNUSED, body.frame()).await {
                Ok(None) => return Ok(()),
                Ok(Some(frame)) => {
                    if let Some(piece) = frame?.data_ref() {
                        came += piece.len();
                        each(piece);
                    }
                }
                Err(_) => {}
            }
            if since.elapsed() >= UNUSED {
                if came < LITTLE && place.wanted() {
                    return Err(Idle.into());
                }
                (since, came) = (Instant::now(), 0);
            }
        }
    };
    within_bounds(limit, all).await
}

/// Fewer bytes in that time are nothing.
const LITTLE: usize = 8 << 10;

/// Next to nothing of a body came, and others wait.
#[derive(Debug, thiserror::Error)]
#[error("next to nothing of the body came for {} seconds while others wait", UNUSED.as_secs())]
struct Idle;

fn too_large(limit: usize) -> ApiError {
    ApiError::new(Code::TooLarge, format!("the body is larger than {limit} bytes: split it"))
}

fn check_announced(request: &Request<Body>, limit: usize) -> Result<(), ApiError> {
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) { Err(too_large(limit)) } else { Ok(()) }
}

async fn within_bounds<T>(
    limit: usize,
    read: impl Future<Output = Result<T, Box<dyn std::error::Error + Send + Sync>>>,
) -> Result<T, ApiError> {
    match timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(limit)),
        Ok(Err(error)) if error.is::<Idle>() => {
            Err(ApiError::new(Code::Timeout, format!("{error}: send it in one go")))
        }
        Ok(Err(_)) => Err(ApiError::bad_request("the body ended before it was complete: send it again")),
        Err(_) => Err(ApiError::new(
            Code::Timeout,
            format!("the body was not complete after {} seconds: send it faster", BODY_TIMEOUT.as_secs()),
        )),
    }
}

/// The media type of the body, without parameters; `None` if there is no header.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?;
    let text = String::from_utf8_lossy(value.as_bytes());
    Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// Refuses a media type, naming those that are taken.
pub(super) fn unsupported(found: Option<&str>, taken: &[&str]) -> ApiError {
    let found = migrate_client::printable(found.unwrap_or("none"));
    let taken = taken.join(" or ");
    ApiError::new(Code::UnsupportedMediaType, format!("the body's media type is {found}: send {taken}"))
}

/// Parses a body in JSON.
pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let why = migrate_client::printable(&error.to_string());
        ApiError::bad_request(format!("the body cannot be used: {why}; /docs says what this path takes"))
    })
}
