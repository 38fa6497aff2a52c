//! `POST /v1/content/lookup`: which of these contents does this host hold?

use axum::{
    extract::{Request, State},
    http::{HeaderName, header},
    response::{IntoResponse, Response},
};
use memdex_wire::{
    Fingerprint,
    bulk::{self, FingerprintsHeader, KeyId},
    content::{LookupAnswer, LookupRequest, MAX_JSON_LOOKUP},
    problem::{Code, Problem},
};
use roaring::RoaringBitmap;

use super::{
    ApiState, extract,
    negotiate::{JSON, age, choose},
    problem::ApiError,
};
use crate::host::Finder;

/// Largest body in JSON: each fingerprint with quotes, a comma and some room for white space.
const MAX_JSON_BYTES: usize = MAX_JSON_LOOKUP * 80;

/// Which of these contents does a VM of this host have in a current page?
///
/// A list of at most 65,536 fingerprints in binary is answered with a bitmap, JSON with JSON. A false "yes" is possible
/// for content that changes just now; whoever uses content hashes it again.
#[utoipa::path(
    post, path = "/v1/content/lookup", tag = "Content", operation_id = "lookupContent",
    request_body(content(
        (LookupRequest = "application/json"),
        (Vec<u8> = "application/vnd.memdex.fingerprints.v1"),
    )),
    responses(
        (status = 200, description = "In the order asked for", headers(
            ("memdex-staleness-ms" = u64, description = "Milliseconds for which a write can have gone unnoticed, in whatever VM of this host"),
            ("memdex-oldest-mark-ms" = u64, description = "Age of the oldest write mark of them that no scan has answered yet; 0 if there is none"),
        ), content(
            (LookupAnswer = "application/json"),
            (Vec<u8> = "application/vnd.memdex.bitmap.v1"),
        )),
        (status = 413, description = "`too_large`", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported_media_type`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn post(State(state): State<ApiState>, request: Request) -> Result<Response, ApiError> {
    let media = extract::media_type(request.headers());
    match media.as_deref() {
        Some(bulk::FINGERPRINTS) => {
            choose(request.headers(), &[bulk::BITMAP])?;
            binary(&state, request).await
        }
        Some(JSON) => {
            choose(request.headers(), &[JSON])?;
            json(&state, request).await
        }
        other => Err(extract::unsupported(other, &[bulk::FINGERPRINTS, JSON])),
    }
}

async fn binary(state: &ApiState, request: Request) -> Result<Response, ApiError> {
    let place = state.gates.lookups.enter().await?;
    let age = ages(state);
    let mut list = List::new(state.host.finder());
    extract::pieces(request, bulk::MAX_LOOKUP_BYTES, &place, |piece| list.push(piece)).await?;
    let (asked, held) = list.end().map_err(undecodable)?;
    count(state, u64::from(asked), &held);
    Ok(([(header::CONTENT_TYPE, bulk::BITMAP)], age, bulk::encode_bitmap(asked, &held)).into_response())
}

/// Fingerprints looked up at a time.
const TOGETHER: usize = 2048;

/// A list that is looked up while it comes: it is never held as a whole.
struct List {
    finder: Finder,
    head: Vec<u8>,
    header: Option<Result<FingerprintsHeader, bulk::DecodeError>>,
    /// Bytes of the whole body so far.
    length: u64,
    /// The beginning of a fingerprint.
    part: Vec<u8>,
    /// Those that were not looked up yet, and the number of the first of them.
    waiting: Vec<Fingerprint>,
    first: usize,
    /// A bit for each that is held.
    held: Vec<u8>,
}

impl List {
    fn new(finder: Finder) -> Self {
        Self {
            finder,
            head: Vec::new(),
            header: None,
            length: 0,
            part: Vec::new(),
            waiting: Vec::with_capacity(TOGETHER),
            first: 0,
            held: Vec::new(),
        }
    }

    /// Takes the next bytes: some ten microseconds of work, for the task of the connection.
    fn push(&mut self, mut piece: &[u8]) {
        self.length += piece.len() as u64;
        if self.header.is_none() {
            let (head, rest) = piece.split_at(piece.len().min(bulk::LIST_HEADER - self.head.len()));
            self.head.extend_from_slice(head);
            piece = rest;
            let Some(head) = self.head.first_chunk() else { return };
            let header = FingerprintsHeader::decode(head);
            if let Ok(header) = &header {
                self.held.resize((header.count as usize).div_ceil(8), 0);
            }
            self.header = Some(header);
        }
        if !self.part.is_empty() {
            let (rest, more) = piece.split_at(piece.len().min(Fingerprint::LEN - self.part.len()));
            self.part.extend_from_slice(rest);
            piece = more;
            let Some(whole) = self.part.first_chunk() else { return };
            self.waiting.push(Fingerprint::new(*whole));
            self.part.clear();
        }
        let (whole, part) = piece.as_chunks::<{ Fingerprint::LEN }>();
        for some in whole.chunks(TOGETHER) {
            self.waiting.extend(some.iter().map(|bytes| Fingerprint::new(*bytes)));
            if self.waiting.len() >= TOGETHER / 2 {
                self.look_up();
            }
        }
        self.part.extend_from_slice(part);
    }

    /// Looks up those that wait. What is beyond the number announced, or no list, is only counted.
    fn look_up(&mut self) {
        if let Some(Ok(header)) = &self.header {
            let there = (header.count as usize).saturating_sub(self.first).min(self.waiting.len());
            let (first, held) = (self.first, &mut self.held);
            // Unequal keys never match: the same bytes would mean another content.
            if header.key == KeyId::PLAIN {
                self.finder.held(&self.waiting[..there], |number| {
                    let number = first + number;
                    held[number / 8] |= 1 << (number % 8);
                });
            }
            self.first += there;
        }
        self.waiting.clear();
    }

    /// How many were asked for, and which of them are held.
    fn end(mut self) -> Result<(u32, RoaringBitmap), bulk::DecodeError> {
        self.look_up();
        let header = self.header.unwrap_or(Err(bulk::DecodeError::NotThis("fingerprint list")))?;
        header.check_length(self.length)?;
        Ok((header.count, RoaringBitmap::from_lsb0_bytes(0, &self.held)))
    }
}

async fn json(state: &ApiState, request: Request) -> Result<Response, ApiError> {
    let place = state.gates.lookups.enter().await?;
    let mut body = Vec::new();
    extract::pieces(request, MAX_JSON_BYTES, &place, |piece| body.extend_from_slice(piece)).await?;
    let LookupRequest { fingerprints } = extract::json(&body)?;
    if fingerprints.len() > MAX_JSON_LOOKUP {
        let count = fingerprints.len();
        let detail = format!(
            "{count} fingerprints: at most {MAX_JSON_LOOKUP} are taken in JSON, split them or use {}",
            bulk::FINGERPRINTS
        );
        return Err(ApiError::new(Code::TooLarge, detail));
    }
    let age = ages(state);
    let mut finder = state.host.finder();
    let (asked, held) = tokio::task::spawn_blocking(move || {
        // Kept until the work is done, even if the client goes away meanwhile.
        let _place = place;
        let mut held = RoaringBitmap::new();
        for (part, fingerprints) in fingerprints.chunks(TOGETHER).enumerate() {
            finder.held(fingerprints, |number| {
                held.insert((part * TOGETHER + number) as u32);
            });
        }
        (fingerprints.len() as u32, held)
    })
    .await?;
    count(state, u64::from(asked), &held);
    let answer = LookupAnswer { held: (0..asked).map(|i| held.contains(i)).collect() };
    Ok((age, axum::Json(answer)).into_response())
}

/// How old what is known of any VM can be.
fn ages(state: &ApiState) -> [(HeaderName, String); 2] {
    age(state.host.vms().iter().map(|vm| vm.freshness()))
}

fn count(state: &ApiState, asked: u64, held: &RoaringBitmap) {
    state.figures.looked_up.add(asked);
    state.figures.found.add(held.len());
}

/// A binary body that is not what it claims to be.
pub(super) fn undecodable(error: bulk::DecodeError) -> ApiError {
    match error {
        bulk::DecodeError::TooMany { .. } => {
            ApiError::new(Code::TooLarge, format!("{error}: split the list"))
        }
        other => ApiError::bad_request(format!("{other}: see {} in /docs", bulk::FINGERPRINTS)),
    }
}
