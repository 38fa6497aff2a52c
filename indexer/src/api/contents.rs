//! `POST /v1/content/pages`: the bytes of contents that this host holds.

use axum::{
    extract::{Request, State},
    http::header,
    response::{IntoResponse, Response},
};
use memdex_wire::{
    Fingerprint,
    bulk::{self, KeyId},
    problem::{Code, Problem},
};

use super::{
    ApiState, extract, lookup,
    negotiate::choose,
    problem::ApiError,
    stream::{self, Gone, Sink},
};

/// Contents copied and hashed at a time: a piece of the body.
const TOGETHER: usize = 32;

/// The bytes of up to 1,024 contents, as far as they are held here.
///
/// Every page is read and hashed again before it is sent; whoever receives it hashes it once more. The layout of both
/// media types is in the documentation of the crate `memdex-wire`.
#[utoipa::path(
    post, path = "/v1/content/pages", tag = "Content", operation_id = "getContents",
    request_body(content = Vec<u8>, content_type = "application/vnd.memdex.fingerprints.v1"),
    responses(
        (status = 200, description = "Position in the list and 4096 bytes, for each that is held",
         body = Vec<u8>, content_type = "application/vnd.memdex.contents.v1"),
        (status = 413, description = "`too_large`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn post(State(state): State<ApiState>, request: Request) -> Result<Response, ApiError> {
    choose(request.headers(), &[bulk::CONTENTS])?;
    let media = extract::media_type(request.headers());
    if media.as_deref() != Some(bulk::FINGERPRINTS) {
        return Err(extract::unsupported(media.as_deref(), &[bulk::FINGERPRINTS]));
    }
    // A list is small: who is slow to send it holds no place meanwhile.
    let body = extract::body(request, bulk::MAX_CONTENTS_REQUEST_BYTES).await?;
    let place = state.gates.contents.enter().await?;
    let (key, list) = bulk::decode_fingerprints(&body).map_err(lookup::undecodable)?;
    if list.len() > bulk::MAX_CONTENTS {
        let detail = format!(
            "{} contents: at most {} are sent at once, split the list",
            list.len(),
            bulk::MAX_CONTENTS
        );
        return Err(ApiError::new(Code::TooLarge, detail));
    }
    let body = stream::read(place, move |sink| send(sink, &state, key, &list));
    Ok(([(header::CONTENT_TYPE, bulk::CONTENTS)], body).into_response())
}

fn send(sink: &mut Sink, state: &ApiState, key: KeyId, list: &[Fingerprint]) -> Result<(), Gone> {
    sink.buffer().extend_from_slice(&bulk::encode_contents_header(list.len() as u32));
    if key != KeyId::PLAIN {
        return Ok(());
    }
    let mut finder = state.host.finder();
    finder.locate(list);
    for first in (0..list.len()).step_by(TOGETHER) {
        let out = sink.buffer();
        let begin = out.len();
        let copied = finder.copy(list, first..list.len().min(first + TOGETHER), bulk::CONTENT_HEAD, out);
        let records = out[begin..].as_chunks_mut::<{ bulk::CONTENT_RECORD }>().0;
        for (record, position) in records.iter_mut().zip(copied) {
            record[..bulk::CONTENT_HEAD].copy_from_slice(&bulk::encode_content_head(*position));
        }
        state.figures.sent_contents.add(copied.len() as u64);
        sink.flush_if_full()?;
    }
    Ok(())
}
