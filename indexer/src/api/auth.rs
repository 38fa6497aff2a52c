//! Who may ask. Owns the check of the bearer token, and a guard against web pages that use somebody's browser.
//!
//! The Unix socket is guarded by its file mode. Still, people forward it to a local port to open the dashboard
//! (`ssh -L 8080:/run/memdex/memdexd.sock HOST`), and then any web page they visit could point a name of its own at
//! `127.0.0.1:8080` and ask (DNS rebinding). Such a name has a dot and is no loopback address, so it is refused; so is a
//! request that a page of another origin made.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use memdex_wire::problem::Code;

use super::{ApiState, problem::ApiError};
use crate::listen::Access;

/// What may be seen without a token: that the daemon is there, and the page that asks for the token.
const OPEN: [&str; 3] = ["/", "/healthz", "/readyz"];

pub(super) async fn check(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    // A connection of unknown kind is treated like one from the network.
    let access = request.extensions().get::<Access>().copied().unwrap_or(Access::Token);
    let verdict = match access {
        Access::FileMode => from_this_machine(request.headers()),
        Access::Token if is_open(&request) => Ok(()),
        Access::Token => has_token(&state, request.headers()),
    };
    match verdict {
        Ok(()) => next.run(request).await,
        Err(error) => {
            Arc::clone(&state.figures).unauthorized.add(1);
            error.into_response()
        }
    }
}

fn is_open(request: &Request) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD) && OPEN.contains(&request.uri().path())
}

fn has_token(state: &ApiState, headers: &HeaderMap) -> Result<(), ApiError> {
    let refuse = |why: &str| {
        let how =
            "send `Authorization: Bearer TOKEN` with the token of this host, by default in /etc/memdex/token";
        Err(ApiError::new(Code::Unauthorized, format!("{why}: {how}")))
    };
    let mut sent = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (sent.next(), sent.next()) else {
        return refuse("one token is needed here");
    };
    let (scheme, token) = match value.as_bytes().iter().position(|byte| *byte == b' ') {
        Some(space) => value.as_bytes().split_at(space),
        None => (value.as_bytes(), &b""[..]),
    };
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return refuse("only bearer tokens open this host");
    }
    match &state.token {
        Some(expected) if expected.is(token.trim_ascii()) => Ok(()),
        _ => refuse("the token is not the one of this host"),
    }
}

/// Refuses what only a browser on somebody else's behalf would send.
fn from_this_machine(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    if !is_local_name(host) {
        return Err(ApiError::new(
            Code::Unauthorized,
            "on the Unix socket the host in the URL must be localhost or any word without a dot: use http://localhost/",
        ));
    }
    if let Some(origin) = text(header::ORIGIN)
        && origin.split_once("://").map(|(_, authority)| authority) != Some(host)
    {
        return Err(ApiError::new(
            Code::Unauthorized,
            "a web page of another origin may not ask on the Unix socket: open the dashboard of this host instead",
        ));
    }
    Ok(())
}

fn is_local_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or(!name.contains('.'), |ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_somebody_else_could_own_are_told_from_local_ones() {
        for local in ["", "localhost", "localhost:8080", "memdex", "127.0.0.1:1", "[::1]:80", "[::1]", "_"] {
            assert!(is_local_name(local), "{local}");
        }
        for foreign in
            ["evil.example", "evil.example:8080", "10.0.0.1:80", "localhost.", "127.0.0.1.nip.io:1"]
        {
            assert!(!is_local_name(foreign), "{foreign}");
        }
    }
}
