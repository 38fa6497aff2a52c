//! `GET /`: one page for people, complete in itself. Owns its headers; the page asks the other resources.

use axum::{
    http::header,
    response::{IntoResponse, Response},
};

use super::problem::ApiError;

const PAGE: &str = include_str!("dashboard.html");

/// A page for people: VMs and the states of their pages, live. Needs no token; its data does.
#[utoipa::path(
    get, path = "/", tag = "Daemon", operation_id = "getDashboard", security(()),
    responses((status = 200, description = "The page", body = str, content_type = "text/html")),
)]
pub(super) async fn get() -> Result<Response, ApiError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| {
        tracing::error!(%error, "no random numbers");
        ApiError::new(
            memdex_wire::problem::Code::Internal,
            "the system gives no random numbers: see the daemon's log",
        )
    })?;
    // Only the script and style that came with this very answer may run: names of VMs are other people's text.
    let nonce: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, PAGE.replace("{{nonce}}", &nonce)).into_response())
}
