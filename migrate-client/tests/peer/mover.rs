//! The part of a good host that moves VMs: what becomes of a migration is in the name of its destination.

use std::sync::{Arc, Mutex};

use axum::{
    Json, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use memdex_wire::{
    PAGE_SIZE,
    diff::DiffCounts,
    migration::{
        Direction, Migration, MigrationBytes, MigrationCheck, MigrationLogLine, MigrationPages,
        MigrationPlan, MigrationProgress, MigrationRequest, Outcome, Phase,
    },
    problem::Code,
    vm::Tracking,
};

use super::good::{PAGES, no};

/// A sentence that would like to steer the terminal.
pub const HOSTILE: &str = "the guest\u{1b}[2J\u{9b}31m writes\r too \u{202e}fast";

/// A migration, how often somebody looked at it, and since which look it is to end.
struct Moving {
    state: Migration,
    looks: u64,
    aborted_at: Option<u64>,
}

type All = Arc<Mutex<Vec<Moving>>>;

pub fn router() -> Router {
    Router::new()
        .route("/v1/migrations", post(begin).get(list))
        .route("/v1/migrations/plan", post(plan))
        .route("/v1/migrations/{id}", get(look))
        .route("/v1/migrations/{id}/abort", post(abort))
        .with_state(All::default())
}

fn refusal(request: &MigrationRequest) -> Option<Response> {
    let to = &request.to;
    if !["vm1", "id-1", "id-2", "id-3", "id-4"].contains(&request.vm.as_str()) {
        return Some(no(Code::VmNotFound, "there is no such VM on this host"));
    }
    to.contains("unreachable").then(|| no(Code::PeerUnreachable, "the other host cannot be reached"))
}

async fn plan(Json(request): Json<MigrationRequest>) -> Response {
    if let Some(refusal) = refusal(&request) {
        return refusal;
    }
    if request.to.contains("noplan") {
        return no(Code::Internal, "no plan today");
    }
    let scale = if request.to.contains("far") { 2 } else { 1 };
    let missing = 300 * scale;
    let pages = DiffCounts { total: PAGES, zero: 2000, matched: 900 - missing, missing, stale: 100 };
    let possible = !request.to.contains("impossible");
    let check = |name: &str, ok, detail: &str| MigrationCheck {
        name: name.to_owned(),
        ok,
        detail: detail.to_owned(),
    };
    Json(MigrationPlan {
        vm: "id-1".to_owned(),
        name: request.vm.clone(),
        to: request.to,
        dest_vm: request.dest_vm.unwrap_or_else(|| "vm1".to_owned()),
        possible,
        checks: vec![
            check("monitor", true, "QEMU 10.0.2"),
            check("destination", possible, if possible { "waits" } else { HOSTILE }),
        ],
        tracking: if request.vm == "id-4" { Tracking::Advisory } else { Tracking::Exact },
        pages,
        bytes: pages.in_bytes(),
        wire_bytes: missing * 2000,
        rate: request.max_bandwidth.unwrap_or(1 << 30),
        dirty_rate: 25,
        expected_ms: 1500,
        expected_blackout_ms: 42,
    })
    .into_response()
}

async fn begin(State(all): State<All>, Json(request): Json<MigrationRequest>) -> Response {
    if let Some(refusal) = refusal(&request) {
        return refusal;
    }
    if request.to.contains("conflict") {
        return no(Code::Conflict, &format!("the check destination failed: {HOSTILE}"));
    }
    let thinks = request.to.contains("thinks");
    let begun = add(&mut all.lock().unwrap(), request);
    // It is in the list already.
    if thinks {
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    }
    Json(begun).into_response()
}

fn add(all: &mut Vec<Moving>, request: MigrationRequest) -> Migration {
    // What was asked for, for tests to see.
    let asked = serde_json::to_string(&request).unwrap();
    let log = (0..30).map(|n| format!("line {n}")).chain([asked, HOSTILE.to_owned()]);
    let state = Migration {
        id: format!("m/{}?", all.len() + 1),
        direction: Direction::Outgoing,
        vm: "id-1".to_owned(),
        name: "vm1\u{1b}[1m".to_owned(),
        to: request.to,
        dest_vm: request.dest_vm.unwrap_or_else(|| "vm1".to_owned()),
        phase: Phase::Checking,
        outcome: None,
        reason: None,
        total_ms: 0,
        blackout_ms: 0.0,
        rounds: 0,
        pages: MigrationPages { total: PAGES, ..MigrationPages::default() },
        bytes: MigrationBytes { total: PAGES * PAGE_SIZE as u64, ..MigrationBytes::default() },
        progress: MigrationProgress {
            remaining_bytes: PAGES * PAGE_SIZE as u64,
            ..MigrationProgress::default()
        },
        log: log.map(|text| MigrationLogLine { at_ms: 1234, phase: Phase::Copying, text }).collect(),
    };
    all.push(Moving { state: state.clone(), looks: 0, aborted_at: None });
    state
}

async fn list(State(all): State<All>) -> Response {
    Json(all.lock().unwrap().iter().map(|one| one.state.clone()).collect::<Vec<_>>()).into_response()
}

fn with(all: &All, id: &str, answer: impl FnOnce(&mut Moving) -> Response) -> Response {
    match all.lock().unwrap().iter_mut().find(|one| one.state.id == id) {
        Some(one) => answer(one),
        None => no(Code::MigrationNotFound, "no migration has this id: see GET /v1/migrations"),
    }
}

async fn look(State(all): State<All>, Path(id): Path<String>) -> Response {
    with(&all, &id, |one| {
        if !one.state.phase.is_end() {
            one.advance();
        }
        Json(one.state.clone()).into_response()
    })
}

async fn abort(State(all): State<All>, Path(id): Path<String>) -> Response {
    with(&all, &id, |one| {
        if one.state.to.contains("late") {
            return no(Code::Conflict, "the VM is being handed over");
        }
        one.aborted_at = Some(one.looks);
        Json(one.state.clone()).into_response()
    })
}

impl Moving {
    fn advance(&mut self) {
        self.looks += 1;
        let (state, looks) = (&mut self.state, self.looks);
        state.rounds = looks;
        state.total_ms = looks * 1000;
        state.pages = MigrationPages { total: PAGES, zero: 2000, matched: 600, sent: 100 * looks };
        let of = |pages| pages * PAGE_SIZE as u64;
        state.bytes = MigrationBytes {
            total: of(PAGES),
            zero: of(2000),
            matched: of(600),
            sent: of(100 * looks),
            wire: looks << 19,
        };
        state.progress = MigrationProgress {
            remaining_bytes: of(300u64.saturating_sub(100 * looks)),
            rate: 100 << 20,
            dirty_rate: 2560,
            expected_ms: Some(3000),
            throttle_percent: 20,
            compression_level: 1,
        };
        let (phase, outcome) = match self.aborted_at {
            Some(at) if looks >= at + 2 && !state.to.contains("stubborn") => {
                (Phase::Aborted, Some(Outcome::Aborted))
            }
            Some(_) => (Phase::Copying, None),
            None if state.to.contains("endless") => (Phase::Copying, None),
            None if looks < 3 || state.to.contains("late") && looks < 20 => (Phase::Copying, None),
            None if looks < 4 => (Phase::HandingOver, None),
            None if state.to.contains("fails") => (Phase::Failed, Some(Outcome::Failed)),
            None => (Phase::Completed, Some(Outcome::Completed)),
        };
        (state.phase, state.outcome) = (phase, outcome);
        if phase >= Phase::HandingOver {
            state.blackout_ms = 41.25;
        }
        if matches!(phase, Phase::Failed | Phase::Aborted) {
            state.reason = Some(HOSTILE.to_owned());
        }
    }
}
