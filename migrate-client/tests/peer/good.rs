//! A peer that answers as the protocol says, about VMs that are made up.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Query, Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::stream;
use memdex_wire::{
    Fingerprint, bulk,
    diff::{Diff, DiffCounts},
    event::Event,
    job::{Mismatch, SyncReport, SyncRequest, VerifyReport},
    page::{PageRecord, PageState},
    problem::{self, Code, Problem},
    vm::{
        CoverageStatus, IndexProgress, PageCounts, RegionCoverage, Tracking, VmInfo, Witness, WitnessStatus,
    },
};
use migrate_client::HostUrl;
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, UnixListener},
    runtime::Runtime,
};

/// Pages of every VM: two regions.
pub const PAGES: u64 = 3000;
const FIRST_REGION: u64 = 1000;
/// A name that has everything a URL could stumble over.
pub const ODD_NAME: &str = "a/b ../ü%2F?x=1#y\u{1b}[2J";

/// A good host on a Unix socket and, with a token, on TCP. Gone when dropped.
pub struct GoodHost {
    pub unix: HostUrl,
    pub tcp: HostUrl,
    pub token: &'static str,
    _folder: TempDir,
    runtime: Option<Runtime>,
}

impl GoodHost {
    /// On a thread of its own, as a test may have a runtime already.
    pub fn new() -> Self {
        std::thread::spawn(Self::start).join().unwrap()
    }

    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memdexd.sock");
        let (unix, tcp) = runtime.block_on(async {
            (UnixListener::bind(&path).unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap())
        });
        let port = tcp.local_addr().unwrap().port();
        let token = "correct-horse";
        runtime.spawn(async { axum::serve(unix, router()).await.unwrap() });
        let guarded = router().layer(middleware::from_fn(move |request, next| guard(token, request, next)));
        runtime.spawn(async { axum::serve(tcp, guarded).await.unwrap() });
        Self {
            unix: HostUrl::Unix(path),
            tcp: format!("tcp://127.0.0.1:{port}").parse().unwrap(),
            token,
            _folder: folder,
            runtime: Some(runtime),
        }
    }
}

impl Drop for GoodHost {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn guard(token: &str, request: Request, next: Next) -> Response {
    let sent = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if sent == Some(&format!("Bearer {token}")) {
        return next.run(request).await;
    }
    no(Code::Unauthorized, "this listener wants a bearer token")
}

pub fn router() -> Router {
    let vms = vec![
        vm("id-1", "vm1", 101),
        vm("id-2", "twin", 102),
        vm("id-3", "twin", 103),
        VmInfo {
            tracking: Tracking::Advisory,
            advisory_reasons: vec!["another process\u{1b}[31m maps the RAM".to_owned()],
            indexed: IndexProgress { done: 1234, total: PAGES, elapsed_ms: 5 },
            ..vm("id-4", ODD_NAME, 104)
        },
    ];
    Router::new()
        .route("/v1/vms", get(async |State(vms): State<Vms>| axum::Json((*vms).clone())))
        .route(
            "/v1/vms/{vm}",
            get(async |State(vms): State<Vms>, Path::<String>(key)| {
                with(&vms, &key, |vm| axum::Json(vm).into_response())
            }),
        )
        .route("/v1/vms/{vm}/pages", get(pages))
        .route("/v1/vms/{vm}/sync", post(sync))
        .route("/v1/vms/{vm}/diff", get(diff))
        .route(
            "/v1/vms/{vm}/verify",
            post(async |State(vms): State<Vms>, Path::<String>(key)| with(&vms, &key, verify)),
        )
        .route("/v1/content/lookup", post(lookup))
        .route("/v1/events", get(events))
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(async || no(Code::Unavailable, "the first sweep is not done: ask again")))
        .with_state(Arc::new(vms))
        .merge(super::mover::router())
}

type Vms = Arc<Vec<VmInfo>>;

fn vm(id: &str, name: &str, pid: u32) -> VmInfo {
    let region = |region: &str, first_page, pages| RegionCoverage {
        region: region.to_owned(),
        first_page,
        pages,
        // The second region begins where the first one ends in the file.
        offset: first_page * 4096,
        status: CoverageStatus::Exact,
        reason: None,
        missing: Vec::new(),
    };
    let counts = PAGES / 4;
    VmInfo {
        id: id.to_owned(),
        name: name.to_owned(),
        uuid: None,
        pid,
        vmm: "qemu-system-x86_64".to_owned(),
        accelerator: "kvm".to_owned(),
        memory_bytes: PAGES * 4096,
        page_size: 4096,
        generation: 4711,
        tracking: Tracking::Exact,
        advisory_reasons: vec![],
        direct_io: None,
        witnesses: vec![Witness {
            name: "write-protect".to_owned(),
            status: WitnessStatus::Active,
            reason: None,
        }],
        coverage: vec![
            region("/dev/shm/ram0", 0, FIRST_REGION),
            region("anonymous", FIRST_REGION, PAGES - FIRST_REGION),
        ],
        pages: PageCounts {
            total: PAGES,
            absent: counts,
            zero: counts,
            current: counts,
            stale: counts,
            unsettled: 0,
        },
        indexed: IndexProgress { done: PAGES, total: PAGES, elapsed_ms: 5 },
        staleness_ms: 40,
        oldest_mark_ms: 0,
        audit_age_ms: 2000,
        missed_by_ebpf: 0,
        missed_by_scan: 0,
        mismatches: 0,
        guest_cost_ppm: 0,
        guest_budget_ppm: 0,
        audit_checked: 1000,
        picked_up: 0,
    }
}

/// Page `n` as every VM here has it; the offset as a reader should see it.
pub fn page(n: u64) -> PageRecord {
    let state = [PageState::Stale, PageState::Absent, PageState::Zero, PageState::Current][n as usize % 4];
    let region = u32::from(n >= FIRST_REGION);
    PageRecord {
        page: n,
        region,
        offset: n * 4096,
        state,
        fingerprint: (state == PageState::Current).then(|| content(n)),
        generation: n,
    }
}

/// Content number `n`; the host holds every third.
pub fn content(n: u64) -> Fingerprint {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    Fingerprint::new(bytes)
}

pub fn no(code: Code, detail: &str) -> Response {
    let problem = Problem::new(code, detail);
    let status = StatusCode::from_u16(problem.status).unwrap();
    (status, [(CONTENT_TYPE, problem::MEDIA_TYPE)], serde_json::to_vec(&problem).unwrap()).into_response()
}

fn with(vms: &[VmInfo], key: &str, answer: impl FnOnce(VmInfo) -> Response) -> Response {
    let fits = |vm: &&VmInfo| vm.id == key || vm.name == key || vm.pid.to_string() == key;
    match vms.iter().filter(fits).collect::<Vec<_>>().as_slice() {
        [] => no(Code::VmNotFound, &format!("there is no VM {key} on this host")),
        [vm] => answer((*vm).clone()),
        _ => no(Code::VmAmbiguous, &format!("several VMs are called {key}: use an id")),
    }
}

#[derive(serde::Deserialize)]
struct Since {
    since: Option<u64>,
}

async fn pages(
    State(vms): State<Vms>,
    Path(key): Path<String>,
    Query(Since { since }): Query<Since>,
) -> Response {
    with(&vms, &key, |vm| {
        let records: Vec<_> = (0..PAGES).filter(|n| since.is_none_or(|since| *n > since)).collect();
        let header =
            bulk::PagesHeader { generation: vm.generation, pages: PAGES, records: records.len() as u64 };
        let mut body = header.encode().to_vec();
        records.into_iter().for_each(|n| bulk::encode_page(&page(n), &mut body));
        // In pieces that fit nothing.
        let pieces: Vec<_> =
            body.chunks(1009).map(|c| Ok::<_, Infallible>(Bytes::copy_from_slice(c))).collect();
        ([(CONTENT_TYPE, bulk::PAGES)], Body::from_stream(stream::iter(pieces))).into_response()
    })
}

async fn sync(State(vms): State<Vms>, Path(key): Path<String>, body: Bytes) -> Response {
    let request: SyncRequest = serde_json::from_slice(&body).unwrap();
    if request.timeout_ms < Some(50) {
        return no(Code::Timeout, "not every page was current in time: give it more time");
    }
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    with(&vms, &key, |vm| {
        axum::Json(SyncReport {
            vm: vm.id,
            generation: vm.generation,
            pages: vm.pages,
            unsettled_read: 0,
            staleness_ms: 0,
            oldest_mark_ms: 0,
            elapsed_ms: 7,
        })
        .into_response()
    })
}

#[derive(serde::Deserialize)]
struct To {
    to: String,
}

async fn diff(State(vms): State<Vms>, Path(key): Path<String>, Query(To { to }): Query<To>) -> Response {
    if to.contains("unreachable") {
        return no(Code::PeerUnreachable, "the other host cannot be reached: see whether it is up");
    }
    with(&vms, &key, |vm| {
        let pages = DiffCounts { total: PAGES, zero: 2000, matched: 600, missing: 300, stale: 100 };
        let (advisory_reasons, coverage) = (vm.advisory_reasons, vm.coverage);
        let (tracking, bytes, generation) = (vm.tracking, pages.in_bytes(), vm.generation);
        let (staleness_ms, oldest_mark_ms, mismatches) = (vm.staleness_ms, vm.oldest_mark_ms, vm.mismatches);
        axum::Json(Diff {
            vm: vm.id,
            to,
            generation,
            tracking,
            advisory_reasons,
            coverage,
            staleness_ms,
            oldest_mark_ms,
            mismatches,
            pages,
            bytes,
            picture_age_ms: None,
            elapsed_us: 1500,
        })
        .into_response()
    })
}

fn verify(vm: VmInfo) -> Response {
    let mismatches = u64::from(vm.id == "id-4");
    let examples = (0..mismatches).map(|page| Mismatch { page, state: PageState::Current }).collect();
    let (checked, skipped, elapsed_ms) = (2000, 10, 5);
    axum::Json(VerifyReport {
        vm: vm.id,
        generation: vm.generation,
        checked,
        skipped,
        mismatches,
        examples,
        staleness_ms: 0,
        oldest_mark_ms: 0,
        elapsed_ms,
    })
    .into_response()
}

async fn lookup(request: Request) -> Response {
    let body = axum::body::to_bytes(request.into_body(), bulk::MAX_LOOKUP_BYTES).await.unwrap();
    let (_, asked) = bulk::decode_fingerprints(&body).unwrap();
    let number = |f: &Fingerprint| u64::from_le_bytes(f.as_bytes()[..8].try_into().unwrap());
    let held = (0u32..).zip(&asked).filter(|(_, f)| number(f).is_multiple_of(3)).map(|(i, _)| i).collect();
    ([(CONTENT_TYPE, bulk::BITMAP)], bulk::encode_bitmap(asked.len() as u32, &held)).into_response()
}

async fn events() -> Response {
    let mut text = String::from(": welcome\n\nevent: vm-painted\ndata: {\"type\":\"vm-painted\"}\n\n");
    let gone = Event::VmGone { vm: "id-1".to_owned(), name: "vm1".to_owned(), reason: "it ended".to_owned() };
    for event in [gone, Event::Lagged { skipped: 3 }] {
        text += &format!("event: x\r\ndata: {}\r\n\r\n", serde_json::to_string(&event).unwrap());
    }
    let pieces: Vec<_> =
        text.into_bytes().chunks(7).map(|c| Ok::<_, Infallible>(Bytes::copy_from_slice(c))).collect();
    ([(CONTENT_TYPE, "text/event-stream; charset=utf-8")], Body::from_stream(stream::iter(pieces)))
        .into_response()
}
