//! `GET /v1/vms/{vm}/diff?to=`: what another host lacks of a VM.
//!
//! Owns the document. The counting is [`crate::compare`]'s.
#![expect(unused_qualifications, reason = "the path macro of utoipa names the query type in full")]

use std::{sync::Arc, time::Instant};

use axum::{Json, extract::State, http::HeaderMap};
use memdex_wire::{diff::Diff, problem::Problem};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    ApiState,
    extract::{Params, TheVm},
    negotiate::{JSON, choose},
    problem::ApiError,
};
use crate::{
    compare::compare,
    host::{Vm, status::Status},
    map::MapSnapshot,
};

/// Which host.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Where {
    /// The other host: the name of a peer, or a URL `unix:/path`, `tls://host:port` or, on this machine,
    /// `tcp://host:port`.
    to: String,
    /// Ask the other host now, even if what it holds is followed and known within a second.
    #[serde(default)]
    ask: bool,
}

/// What another host lacks of this VM. No memory is scanned for it.
///
/// What a peer named in the configuration holds is followed, so that the answer is known already: `picture_age_ms` says how old that knowledge is, and `matched` may be
/// too high by a few ten-thousandths of `missing`, and by what the peer's VMs have just written over: a content goes when a page is seen to hold another one. Any other host is asked, and a peer too that has not been heard for ten seconds.
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
    let followed = state.peers.pictures().get(&wanted.to).filter(|_| !wanted.ask);
    // What is worked on is kept, with the place for it, until that is done, even if the client goes away meanwhile.
    let known = match followed {
        Some(picture) => {
            let place = state.gates.known_diffs.enter().await?;
            let seen = Seen::of(&vm);
            let (picture, map, snapshot) = (Arc::clone(picture), vm.map_id(), seen.snapshot.clone());
            // The first look at a VM takes a while.
            let look = move || (picture.diff(map, &snapshot), place);
            let known = tokio::task::spawn_blocking(look).await.ok().and_then(|(known, _)| known);
            known.map(|known| (seen, known))
        }
        None => None,
    };
    let (seen, pages, age) = match known {
        Some((seen, known)) => (seen, known.pages, Some(known.age)),
        None => {
            let place = Arc::new(state.gates.diffs.enter().await?);
            let seen = Seen::of(&vm);
            let pages = tokio::select! {
                pages = compare(&peer, &seen.snapshot, &place) => pages?,
                () = state.stop.cancelled() => return Err(ApiError::stopping()),
            };
            (seen, pages, None)
        }
    };
    let Seen { staleness_ms, oldest_mark_ms, status, snapshot } = seen;
    Ok(Json(Diff {
        vm: vm.id().to_owned(),
        to: peer.host().to_string(),
        generation: snapshot.generation().0,
        tracking: status.tracking,
        advisory_reasons: status.reasons,
        coverage: status.coverage,
        staleness_ms,
        oldest_mark_ms,
        mismatches: vm.counters.mismatches.get(),
        pages,
        bytes: pages.in_bytes(),
        picture_age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        elapsed_us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
    }))
}

/// A VM as it is looked at.
struct Seen {
    staleness_ms: u64,
    oldest_mark_ms: u64,
    status: Status,
    snapshot: MapSnapshot,
}

impl Seen {
    fn of(vm: &Vm) -> Self {
        // Before the snapshot: the bound holds for what the snapshot shows.
        let freshness = vm.freshness();
        Self {
            staleness_ms: freshness.staleness_ms(),
            oldest_mark_ms: freshness.oldest_mark_ms(),
            status: vm.status(),
            snapshot: vm.snapshot(),
        }
    }
}
