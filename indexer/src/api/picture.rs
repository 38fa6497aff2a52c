//! `GET /v1/content/picture`: what this host holds, told to hosts that follow it.
//!
//! Owns the course of one stream: a picture, or the changes since the position that the reader names; then changes as they come; and a new picture
//! for a reader that is too slow for them. What is held for a reader is the picture while it is sent, which all that read at the time share, and one piece.
#![expect(unused_qualifications, reason = "the path macro of utoipa names the query type in full")]

use std::{sync::Weak, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use memdex_wire::{
    bulk::KeyId,
    picture::{self, Frame, Position, SIGN_OF_LIFE},
    problem::{Code, Problem},
};
use serde::Deserialize;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use utoipa::IntoParams;

use super::{ApiState, extract::Params, gate::Place, negotiate::choose, problem::ApiError};
use crate::{
    host::Host,
    picture::{Picture, log::Listening},
};

/// Time between two looks for changes: they are sent together.
const TOGETHER: Duration = Duration::from_millis(250);

/// Where to go on.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct From {
    /// Epoch (16 hex digits), a full stop, and sequence of the last frame that was applied. If what came after is not known any more, or without it, a new
    /// picture is sent.
    since: Option<String>,
}

/// What this host holds, and then what comes and goes, until one side ends.
///
/// A content costs about two bytes. The layout is in the documentation of the crate `memdex-wire`.
#[utoipa::path(
    get, path = "/v1/content/picture", tag = "Content", operation_id = "followContents",
    params(From),
    responses(
        (status = 200, description = "A header, then frames without end", body = Vec<u8>, content_type = "application/vnd.memdex.picture.v1"),
        (status = 400, description = "`bad_request`: `since` is no position", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: too many readers", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get(
    State(state): State<ApiState>,
    Params(from): Params<From>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    choose(&headers, &[picture::PICTURE])?;
    let since = from.since.map(|text| text.parse::<Position>()).transpose();
    let since = since.map_err(|error| ApiError::new(Code::BadRequest, format!("since: {error}")))?;
    let place = state.gates.pictures.enter().await?;
    let listening = state.host.listen();
    let teller = Teller {
        stage: since.map_or(Stage::Picture, Stage::Changes),
        sent: Instant::now(),
        host: state.host.clone(),
        _listening: listening,
        _place: place,
    };
    let header = Bytes::copy_from_slice(&picture::encode_header(KeyId::PLAIN));
    let frames = stream::unfold(teller, |mut teller| async {
        // An end without one: a broken transfer, which the reader makes anew.
        let piece = teller.next().await?;
        Some((Ok::<_, std::io::Error>(piece), teller))
    });
    let stop = state.stop.clone();
    let body = stream::iter([Ok(header)]).chain(frames).take_until(async move { stop.cancelled().await });
    let headers = [(header::CONTENT_TYPE, picture::PICTURE), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// What is told next.
enum Stage {
    /// A new picture.
    Picture,
    /// It is being made.
    Making(JoinHandle<Option<(Weak<Picture>, Position)>>),
    /// The buckets from this one on. It is given up after a while, whoever still reads it.
    Parts(Weak<Picture>, Position, u32),
    /// What comes and goes after this.
    Changes(Position),
}

struct Teller {
    stage: Stage,
    sent: Instant,
    host: Host,
    _listening: Listening,
    _place: Place,
}

impl Teller {
    /// The next piece; `None` if none can be made.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.is_empty() {
            match &mut self.stage {
                Stage::Picture => {
                    // It goes on if this reader goes, for the next one.
                    let host = self.host.clone();
                    self.stage = Stage::Making(tokio::spawn(async move { host.picture().await }));
                }
                Stage::Making(making) => match timeout(SIGN_OF_LIFE, making).await {
                    Err(_) => out.extend_from_slice(&[0; picture::FRAME_HEADER]),
                    Ok(made) => {
                        let (picture, position) = made.ok()??;
                        if let Some(picture) = picture.upgrade() {
                            let (keys, contents) = (picture.keys(), picture.contents());
                            Frame::Begin { position, keys, contents }.encode(&mut out);
                        }
                        self.stage = Stage::Parts(picture, position, 0);
                    }
                },
                Stage::Parts(picture, position, first) => {
                    let Some(picture) = picture.upgrade() else {
                        self.stage = Stage::Picture;
                        continue;
                    };
                    let part = picture.part(*first);
                    *first += part.counts.len() as u32;
                    let (done, position) = (*first == picture.keys().buckets(), *position);
                    Frame::Part(part).encode(&mut out);
                    if done {
                        Frame::Complete.encode(&mut out);
                        self.stage = Stage::Changes(position);
                    }
                }
                Stage::Changes(position) => match self.host.changes_since(*position) {
                    None => self.stage = Stage::Picture,
                    Some((after, changes)) => {
                        if changes.is_empty() && self.sent.elapsed() < SIGN_OF_LIFE - TOGETHER {
                            sleep(TOGETHER).await;
                            continue;
                        }
                        let few = changes.len() < picture::MAX_CHANGES;
                        *position = after;
                        Frame::Changes { position: after, changes }.encode(&mut out);
                        if few {
                            // What comes meanwhile goes with the next frame.
                            sleep(TOGETHER.saturating_sub(self.sent.elapsed())).await;
                        }
                    }
                },
            }
        }
        self.sent = Instant::now();
        Some(out.into())
    }
}
