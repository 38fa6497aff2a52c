//! `GET /v1/vms/{vm}/pages`: the page map, in three forms.
//!
//! Streams one snapshot, so an answer is consistent however long it takes, and holds two pieces of it at most.
#![expect(unused_qualifications, reason = "the path macro of utoipa names the query type in full")]

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use memdex_wire::{
    bulk::{self, PagesHeader},
    page::PageRecord,
    problem::Problem,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    ApiState,
    extract::{Params, TheVm},
    negotiate::{JSON, choose, has_already},
    problem::ApiError,
    stream::{self, Gone, Sink},
};
use crate::{map::MapSnapshot, units::Generation};

/// One JSON document a line.
const NDJSON: &str = "application/x-ndjson";

/// Which pages.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only pages whose content changed after this generation, and all that are stale now. All pages if the VM's
    /// layout changed meanwhile.
    since: Option<u64>,
}

/// The page map of a VM, in page order.
///
/// One consistent moment, streamed. `Accept` chooses an array, a JSON document a line, or the binary form
/// (`application/vnd.memdex.pages.v1`).
#[utoipa::path(
    get, path = "/v1/vms/{vm}/pages", tag = "VMs", operation_id = "getPages",
    params(("vm" = String, Path, description = "Id, name or pid of a VM"), Which),
    responses(
        (status = 200, description = "The pages", headers(("ETag" = String, description = "The map's generation")),
         content(
            (Vec<PageRecord> = "application/json"),
            (PageRecord = "application/x-ndjson"),
            (Vec<u8> = "application/vnd.memdex.pages.v1"),
         )),
        (status = 304, description = "The map is still at the generation of `If-None-Match`"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get(
    axum::extract::State(state): axum::extract::State<ApiState>,
    TheVm(vm): TheVm,
    Params(which): Params<Which>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let media = choose(&headers, &[JSON, NDJSON, bulk::PAGES])?;
    let unchanged = |generation: Generation| {
        let etag = format!("\"{generation}\"");
        has_already(&headers, &etag).then(|| {
            (StatusCode::NOT_MODIFIED, [(header::ETAG, etag), (header::VARY, "accept".into())])
                .into_response()
        })
    };
    if let Some(answer) = unchanged(vm.generation()) {
        return Ok(answer);
    }
    let place = state.gates.maps.enter().await?;
    let snapshot = vm.snapshot();
    let etag = format!("\"{}\"", snapshot.generation());
    let since = which.since.map(Generation);
    let body: Body = stream::body(place, move |sink| match media {
        bulk::PAGES => binary(sink, &snapshot, since),
        NDJSON => lines(sink, &snapshot, since),
        _ => array(sink, &snapshot, since),
    });
    let headers =
        [(header::CONTENT_TYPE, media.to_owned()), (header::ETAG, etag), (header::VARY, "accept".into())];
    Ok((headers, body).into_response())
}

fn binary(sink: &mut Sink, snapshot: &MapSnapshot, since: Option<Generation>) -> Result<(), Gone> {
    let head = PagesHeader {
        generation: snapshot.generation().0,
        pages: u64::from(snapshot.pages()),
        records: snapshot.record_count(since),
    };
    sink.buffer().extend_from_slice(&head.encode());
    for record in snapshot.records(since) {
        bulk::encode_page(&record, sink.buffer());
        sink.flush_if_full()?;
    }
    Ok(())
}

fn lines(sink: &mut Sink, snapshot: &MapSnapshot, since: Option<Generation>) -> Result<(), Gone> {
    for record in snapshot.records(since) {
        document(sink, &record)?;
        sink.buffer().push(b'\n');
        sink.flush_if_full()?;
    }
    Ok(())
}

fn array(sink: &mut Sink, snapshot: &MapSnapshot, since: Option<Generation>) -> Result<(), Gone> {
    for (i, record) in snapshot.records(since).enumerate() {
        sink.buffer().extend_from_slice(if i == 0 { b"[\n" } else { b",\n" });
        document(sink, &record)?;
        sink.flush_if_full()?;
    }
    let open = snapshot.record_count(since) == 0;
    sink.buffer().extend_from_slice(if open { b"[]\n" } else { b"\n]\n" });
    Ok(())
}

fn document(sink: &mut Sink, record: &PageRecord) -> Result<(), Gone> {
    serde_json::to_writer(sink.buffer(), record).map_err(|error| {
        tracing::error!(%error, "a page record cannot be written as JSON");
        Gone
    })
}
