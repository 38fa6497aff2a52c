//! The HTTP interface: one file per resource.
//!
//! Owns the translation between requests and what [`Host`] knows, and nothing else: no state of VMs is kept here. The
//! description of the interface is generated from the handlers and kept in git as `openapi.json`.
//!
//! A request passes, from outside in: [`track`](mod@track) (counting, logging), [`problem`] (whatever fails becomes
//! `application/problem+json`, panics too), [`auth`] (the token), then its resource.

mod auth;
mod contents;
mod dashboard;
mod diff;
mod docs;
mod events;
mod extract;
mod gate;
mod health;
mod lookup;
mod metrics;
mod migrations;
mod negotiate;
mod pages;
mod picture;
mod problem;
mod stream;
mod sync;
mod track;
mod verify;
mod vms;

use std::sync::Arc;

use axum::{Router, middleware};
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{host::Host, listen::AccessToken, metrics::HttpCounters, migrate::Migrations, peer::Peers};
use gate::Gates;
use track::Requests;

/// What the resources work with. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    host: Host,
    peers: Arc<Peers>,
    migrations: Migrations,
    token: Option<AccessToken>,
    stop: CancellationToken,
    figures: Arc<HttpCounters>,
    requests: Arc<Requests>,
    gates: Gates,
}

impl std::fmt::Debug for ApiState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiState").field("peers", &self.peers).finish_non_exhaustive()
    }
}

impl ApiState {
    /// `token` opens TCP listeners; without one nothing but the Unix socket is open. `stop` ends streams and long work.
    #[must_use]
    pub fn new(
        host: Host,
        peers: Arc<Peers>,
        migrations: Migrations,
        token: Option<AccessToken>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            host,
            peers,
            migrations,
            token,
            stop,
            figures: Arc::default(),
            requests: Arc::default(),
            gates: Gates::default(),
        }
    }

    /// The counters of the HTTP interface, for whoever serves it.
    #[must_use]
    pub fn figures(&self) -> Arc<HttpCounters> {
        Arc::clone(&self.figures)
    }
}

/// The interface, and its description as in `openapi.json`.
pub fn router(state: ApiState) -> (Router, OpenApi) {
    let (routes, openapi) = OpenApiRouter::with_openapi(docs::base())
        .routes(routes!(vms::list))
        .routes(routes!(vms::get))
        .routes(routes!(pages::get))
        .routes(routes!(sync::post))
        .routes(routes!(diff::get))
        .routes(routes!(verify::post))
        .routes(routes!(lookup::post))
        .routes(routes!(contents::post))
        .routes(routes!(picture::get))
        .routes(routes!(migrations::list, migrations::start))
        .routes(routes!(migrations::plan))
        .routes(routes!(migrations::get))
        .routes(routes!(migrations::abort))
        .routes(routes!(migrations::receive))
        .routes(routes!(migrations::stream))
        .routes(routes!(events::get))
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .routes(routes!(metrics::get))
        .routes(routes!(dashboard::get))
        .split_for_parts();
    let router = routes
        .merge(docs::routes(&openapi))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), auth::check))
        .layer(middleware::from_fn(problem::normalize))
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(problem::Panics(state.figures())))
        .layer(middleware::from_fn_with_state(state.clone(), track::track))
        .with_state(state);
    (router, openapi)
}
