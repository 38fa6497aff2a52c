//! `GET /v1/events`: what happens on this host, as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, header},
    response::{
        IntoResponse,
        sse::{self, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt, stream};
use memdex_wire::{event::Event, problem::Problem};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{ApiState, negotiate::choose, problem::ApiError};
use crate::metrics::HttpCounters;

const EVENT_STREAM: &str = "text/event-stream";
/// Time between two comments when nothing happens, so that both sides see a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What happens on this host from now on (server-sent events).
///
/// The name of each event is the `type` of its document. A reader that is too slow gets `lagged` with the number
/// of events left out.
#[utoipa::path(
    get, path = "/v1/events", tag = "Events", operation_id = "getEvents",
    responses(
        (status = 200, description = "Events, until one side ends", body = Event, content_type = "text/event-stream"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get(
    State(state): State<ApiState>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, ApiError> {
    choose(&headers, &[EVENT_STREAM])?;
    let place = state.gates.events.enter().await?;
    let open = Open::new(&state.figures);
    let events = stream::unfold((state.host.events(), place, open), |(mut receiver, place, open)| async {
        let event = next(&mut receiver).await?;
        Some((Ok(encode(&event)), (receiver, place, open)))
    });
    let stop = state.stop.clone();
    let events = events.take_until(async move { stop.cancelled().await });
    let no_proxy_buffer = (HeaderName::from_static("x-accel-buffering"), "no");
    Ok(([(header::CACHE_CONTROL, "no-store"), no_proxy_buffer], sse(events)))
}

fn sse<S>(events: S) -> impl IntoResponse
where
    S: Stream<Item = Result<sse::Event, Infallible>> + Send + 'static,
{
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

async fn next(receiver: &mut Receiver<Event>) -> Option<Event> {
    match receiver.recv().await {
        Ok(event) => Some(event),
        Err(RecvError::Lagged(skipped)) => Some(Event::Lagged { skipped }),
        Err(RecvError::Closed) => None,
    }
}

fn encode(event: &Event) -> sse::Event {
    let document = serde_json::to_value(event).unwrap_or_default();
    let name = document.get("type").and_then(serde_json::Value::as_str).unwrap_or("message").to_owned();
    // One line: serde_json escapes line breaks inside strings.
    sse::Event::default().event(name).data(document.to_string())
}

/// Counts a stream for as long as it is open.
struct Open(Arc<HttpCounters>);

impl Open {
    fn new(figures: &Arc<HttpCounters>) -> Self {
        figures.event_streams.add(1);
        Self(Arc::clone(figures))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.event_streams.sub(1);
    }
}
