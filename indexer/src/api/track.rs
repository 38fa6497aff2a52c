//! Counts and logs every request. Owns the counts by route and status, for `/metrics`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::Method,
    middleware::Next,
    response::Response,
};

use super::ApiState;

/// Requests that have been answered.
#[derive(Debug, Default)]
pub(super) struct Requests(Mutex<BTreeMap<Kind, Tally>>);

/// What requests are counted by. Routes are templates, so there is a fixed number of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) route: String,
    pub(super) method: &'static str,
    pub(super) status: u16,
}

/// How many, and how long until the head of the answer was ready.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    pub(super) count: u64,
    pub(super) time: Duration,
}

impl Requests {
    pub(super) fn read(&self) -> Vec<(Kind, Tally)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(kind, tally)| (kind.clone(), *tally)).collect()
    }

    fn count(&self, kind: Kind, time: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = all.entry(kind).or_default();
        tally.count += 1;
        tally.time += time;
    }
}

pub(super) async fn track(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let method = name(request.method());
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let (status, time) = (response.status().as_u16(), start.elapsed());
    tracing::debug!(method, path, status, ?time, "request");
    state.requests.count(Kind { route, method, status }, time);
    response
}

/// Anybody can invent methods; they are not to fill the table.
fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
