//! `GET /v1/vms/{vm}/pages`: the page map, in three forms.
//!
//! Streams one snapshot, so an answer is consistent however long it takes, and holds a piece of it or two.
#![expect(unused_qualifications, reason = "the path macro of utoipa names the query type in full")]

use axum::{
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
    negotiate::{JSON, age, choose, has_already},
    problem::ApiError,
    stream::{self, Gone, Maker, PIECE},
};
use crate::{map::Records, units::Generation};

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
        (status = 200, description = "The pages", headers(
            ("ETag" = String, description = "The map's generation"),
            ("memdex-staleness-ms" = u64, description = "Milliseconds for which a write can have gone unnoticed"),
            ("memdex-oldest-mark-ms" = u64, description = "Age of the oldest write mark that no scan has answered yet; 0 if there is none"),
         ),
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
    let mut place = state.gates.maps.enter().await?;
    // Before the snapshot: the bound holds for what the snapshot shows.
    let age = age(Some(vm.freshness()));
    let snapshot = vm.snapshot();
    let etag = format!("\"{}\"", snapshot.generation());
    let since = which.since.map(Generation);
    let (form, length) = match media {
        bulk::PAGES => {
            let counted = snapshot.clone();
            // Those since a generation have to be looked for in the whole map.
            let records = match since {
                None => counted.record_count(None),
                since => {
                    // The place is kept until that is done, even if the client goes away meanwhile.
                    let count = move || (counted.record_count(since), place);
                    let (records, back) = tokio::task::spawn_blocking(count).await?;
                    place = back;
                    records
                }
            };
            let pages = u64::from(snapshot.pages());
            let header = PagesHeader { generation: snapshot.generation().0, pages, records };
            let length = bulk::PAGES_HEADER as u64 + records * bulk::PAGE_RECORD as u64;
            (Form::Binary(header), Some(length))
        }
        NDJSON => (Form::Lines, None),
        _ => (Form::Array, None),
    };
    let map = Map { form, records: snapshot.records(since), begun: false, empty: true };
    let body = stream::made(&state.gates.maps, place, length, map);
    let headers =
        [(header::CONTENT_TYPE, media.to_owned()), (header::ETAG, etag), (header::VARY, "accept".into())];
    Ok((headers, age, body).into_response())
}

/// How a map is written.
enum Form {
    Binary(PagesHeader),
    Lines,
    Array,
}

/// Writes a map piece by piece.
struct Map {
    form: Form,
    records: Records,
    begun: bool,
    /// No record has been written yet.
    empty: bool,
}

/// Pages looked at in one go, and at most for one piece: where little is to be sent, much is looked at.
const STEP: u32 = 256;
const AT_ONCE: u32 = 32 * 1024;
/// Bytes of JSON in a piece: it takes longer to write.
const JSON_PIECE: usize = 32 << 10;

impl Maker for Map {
    fn make(&mut self, out: &mut Vec<u8>) -> Result<bool, Gone> {
        if !std::mem::replace(&mut self.begun, true) {
            match &self.form {
                Form::Binary(header) => out.extend_from_slice(&header.encode()),
                Form::Lines => {}
                Form::Array => out.push(b'['),
            }
        }
        let mut looked_at = 0;
        while looked_at < AT_ONCE && !self.records.done() {
            let full = match self.form {
                Form::Binary(_) => {
                    self.records.some(STEP, |record| bulk::encode_page(&record, out));
                    PIECE
                }
                Form::Lines | Form::Array => {
                    self.documents(out)?;
                    JSON_PIECE
                }
            };
            looked_at += STEP;
            if out.len() >= full {
                break;
            }
        }
        if self.records.done() && matches!(self.form, Form::Array) {
            out.extend_from_slice(if self.empty { b"]\n" } else { b"\n]\n" });
        }
        Ok(!self.records.done())
    }
}

impl Map {
    fn documents(&mut self, out: &mut Vec<u8>) -> Result<(), Gone> {
        let Self { form, records, empty, .. } = self;
        let array = matches!(form, Form::Array);
        let mut written = Ok(());
        records.some(STEP, |record| {
            if array {
                out.extend_from_slice(if *empty { b"\n" } else { b",\n" });
            }
            *empty = false;
            written = std::mem::replace(&mut written, Ok(()))
                .and_then(|()| serde_json::to_writer(&mut *out, &record));
            if !array {
                out.push(b'\n');
            }
        });
        written.map_err(|error| {
            tracing::error!(%error, "a page record cannot be written as JSON");
            Gone
        })
    }
}
