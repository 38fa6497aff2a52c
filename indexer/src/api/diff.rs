//! `GET /v1/vms/{vm}/diff?to=`: what another host lacks of a VM.
//!
//! Owns the counting. Each distinct fingerprint crosses the wire once, however many pages have it, and no page is read:
//! the map answers. Memory is bounded: a VM with more current pages than [`PASS`] is done in several passes, each over
//! its own share of all fingerprints.
#![expect(unused_qualifications, reason = "the path macro of utoipa names the query type in full")]

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::Instant,
};

use axum::{Json, extract::State, http::HeaderMap};
use memdex_wire::{
    Fingerprint,
    diff::{Diff, DiffCounts},
    problem::{Code, Problem},
};
use migrate_client::Client;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    ApiState,
    extract::{Params, TheVm},
    negotiate::{JSON, choose},
    problem::ApiError,
};
use crate::{map::MapSnapshot, peer};

/// Current pages in a pass: some hundred MiB of working memory, and 8 GiB of guest memory.
const PASS: u64 = 2 << 20;

/// Which host.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Where {
    /// The other host: the name of a peer, or a URL `unix:/path`, `tls://host:port` or, on this machine,
    /// `tcp://host:port`.
    to: String,
}

/// What another host lacks of this VM. No memory is scanned for it.
///
/// `zero + matched + missing + stale = total`; `absent` pages count as zero.
#[utoipa::path(
    get, path = "/v1/vms/{vm}/diff", tag = "VMs", operation_id = "diffVm",
    params(("vm" = String, Path, description = "Id, name or pid of a VM"), Where),
    responses(
        (status = 200, description = "What would have to be sent", body = Diff),
        (status = 502, description = "`peer_unreachable`, `peer_unauthorized` or `peer_protocol`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: too many diffs at once", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get(
    State(state): State<ApiState>,
    TheVm(vm): TheVm,
    Params(wanted): Params<Where>,
    headers: HeaderMap,
) -> Result<Json<Diff>, ApiError> {
    choose(&headers, &[JSON])?;
    let start = Instant::now();
    let peer = state.peers.client(&wanted.to)?;
    let _place = state.gates.diffs.enter().await?;
    let snapshot = vm.snapshot();
    let counts = snapshot.counts();
    let matched = tokio::select! {
        matched = matched(&peer, &snapshot) => matched?,
        () = state.stop.cancelled() => return Err(ApiError::stopping()),
    };
    let missing = counts.current.checked_sub(matched).ok_or_else(|| {
        ApiError::new(Code::Internal, "the map does not add up: see the daemon's log and report it")
    })?;
    let pages = DiffCounts {
        total: counts.total,
        zero: counts.absent + counts.zero,
        matched,
        missing,
        stale: counts.stale,
    };
    Ok(Json(Diff {
        vm: vm.id().to_owned(),
        to: peer.host().to_string(),
        generation: snapshot.generation().0,
        tracking: vm.tracking(),
        pages,
        bytes: pages.in_bytes(),
        elapsed_us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
    }))
}

/// Counts the current pages whose content the peer holds.
async fn matched(peer: &Client, snapshot: &MapSnapshot) -> Result<u64, ApiError> {
    let passes = snapshot.counts().current.div_ceil(PASS);
    // Random, so that a guest cannot choose contents that all fall into one pass or one bucket.
    let hasher = RandomState::new();
    let mut matched = 0;
    for pass in 0..passes {
        let (snapshot, hasher) = (snapshot.clone(), hasher.clone());
        let (fingerprints, pages) =
            tokio::task::spawn_blocking(move || distinct(&snapshot, hasher, pass, passes)).await?;
        let held = peer.lookup(&fingerprints).await.map_err(|error| ApiError::from(peer::problem(&error)))?;
        matched += held.iter().map(|i| pages.get(i as usize).map_or(0, |n| u64::from(*n))).sum::<u64>();
    }
    Ok(matched)
}

/// The fingerprints of one pass, each once, and how many current pages have each.
fn distinct(
    snapshot: &MapSnapshot,
    hasher: RandomState,
    pass: u64,
    passes: u64,
) -> (Vec<Fingerprint>, Vec<u32>) {
    let share = hasher.clone();
    let most = snapshot.counts().current.div_ceil(passes.max(1)) as usize;
    let mut seen: HashMap<Fingerprint, u32, RandomState> = HashMap::with_capacity_and_hasher(most, hasher);
    for fingerprint in snapshot.current_fingerprints() {
        // The high bits choose the pass, so that the table's use of the low ones is not disturbed.
        if passes == 1 || (share.hash_one(fingerprint) >> 32) % passes == pass {
            *seen.entry(fingerprint).or_default() += 1;
        }
    }
    seen.into_iter().unzip()
}
