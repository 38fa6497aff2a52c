//! Errors on their way out: everything that fails is `application/problem+json`.
//!
//! Owns the mapping from errors of the daemon to problems, and the net under it: an answer of the HTTP library that is
//! not a problem yet is made one.

use std::{any::Any, sync::Arc};

use axum::{
    extract::Request,
    http::{HeaderValue, Method, Response, StatusCode, Uri, header},
    middleware::Next,
    response::IntoResponse,
};
use memdex_wire::problem::{Code, MEDIA_TYPE, Problem};

use crate::{
    host::{FindError, JobError},
    metrics::HttpCounters,
};

/// An error answer.
#[derive(Debug)]
pub(super) struct ApiError(Box<Problem>);

impl ApiError {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(code, detail)))
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, detail)
    }

    /// The daemon is going down.
    pub(super) fn stopping() -> Self {
        Self::new(Code::Unavailable, "this memdexd is stopping: try again when it is back")
    }

    /// No VM is called that, or more than one.
    pub(super) fn find(error: &FindError) -> Self {
        let code = match error {
            FindError::NotFound(_) => Code::VmNotFound,
            FindError::Ambiguous { .. } => Code::VmAmbiguous,
        };
        Self::new(code, migrate_client::printable(&error.to_string()))
    }

    /// Work on a VM was not done.
    pub(super) fn job(what: &str, vm: &str, error: JobError) -> Self {
        match error {
            JobError::Gone => Self::new(
                Code::VmGone,
                format!("the VM {vm} ended during the {what}: its map is gone with it"),
            ),
            JobError::Timeout => Self::new(
                Code::Timeout,
                format!(
                    "the {what} of {vm} was not done in time: try again, with a larger timeout_ms if it can take one"
                ),
            ),
            JobError::Busy => Self::new(
                Code::Unavailable,
                format!("too many others wait for a {what} of {vm} already: try again in a moment"),
            ),
            JobError::Receiving => Self::new(Code::Unavailable, format!("no {what} of {vm} now: {error}")),
            JobError::Changed => Self::new(
                Code::Unavailable,
                format!("the memory layout of {vm} changed during the {what} (a hotplug): try again"),
            ),
        }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<tokio::task::JoinError> for ApiError {
    fn from(error: tokio::task::JoinError) -> Self {
        if error.is_cancelled() {
            return Self::stopping();
        }
        tracing::error!(%error, "background work for a request failed");
        Self::new(Code::Internal, INTERNAL)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> axum::response::Response {
        let problem = *self.0;
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if problem.code == Code::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"memdex\""));
        }
        if problem.code == Code::Unavailable {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

const INTERNAL: &str = "something in this daemon is broken: its log says what; please report it";

pub(super) async fn not_found(uri: Uri) -> ApiError {
    let path = migrate_client::printable(uri.path());
    ApiError::new(Code::NotFound, format!("nothing is at {path}: /docs lists what there is"))
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let path = migrate_client::printable(uri.path());
    ApiError::new(
        Code::MethodNotAllowed,
        format!("{path} does not take {method}: the Allow header says what it takes"),
    )
}

/// Makes a problem of every error answer that is none yet.
pub(super) async fn normalize(request: Request, next: Next) -> axum::response::Response {
    let response = next.run(request).await;
    let status = response.status();
    let is_problem = || {
        response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes() == MEDIA_TYPE.as_bytes())
    };
    if !(status.is_client_error() || status.is_server_error()) || is_problem() {
        return response;
    }
    let (code, detail) = match status.as_u16() {
        404 => (Code::NotFound, "nothing is here: /docs lists what there is"),
        405 => (Code::MethodNotAllowed, "this method is not taken here: the Allow header says which are"),
        406 => (Code::NotAcceptable, "none of the media types in Accept can be made: leave Accept out"),
        408 | 504 => (Code::Timeout, "it was not done in time: try again"),
        413 => (Code::TooLarge, "the body is too large: split it"),
        415 => (Code::UnsupportedMediaType, "the body's media type is not taken here: /docs says which are"),
        503 => (Code::Unavailable, "too much is going on: try again in a moment"),
        400..500 => (Code::BadRequest, "the request does not have the shape it should: see /docs"),
        _ => (Code::Internal, INTERNAL),
    };
    let allow = response.headers().get(header::ALLOW).cloned();
    let mut problem = ApiError::new(code, detail).into_response();
    if let Some(allow) = allow {
        problem.headers_mut().insert(header::ALLOW, allow);
    }
    problem
}

/// Turns a panic in a handler into a problem: one broken request must not take the daemon along.
#[derive(Clone)]
pub(super) struct Panics(pub(super) Arc<HttpCounters>);

impl tower_http::catch_panic::ResponseForPanic for Panics {
    type ResponseBody = axum::body::Body;

    fn response_for_panic(&mut self, panic: Box<dyn Any + Send + 'static>) -> Response<Self::ResponseBody> {
        self.0.panics.add(1);
        let what = panic.downcast_ref::<String>().map(String::as_str);
        let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
        tracing::error!(panic = what, "a request handler panicked");
        ApiError::new(Code::Internal, INTERNAL).into_response()
    }
}
