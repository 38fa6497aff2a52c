//! `GET /metrics`: the text format of Prometheus, version 0.0.4.
//!
//! Owns the rendering. Written by hand, because all figures live elsewhere and are only printed here: a client library
//! would want to own them, and the format is three kinds of lines.

use std::{fmt::Write as _, sync::Arc};

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::IntoResponse,
};
use memdex_wire::{
    migration::Direction,
    problem::Problem,
    vm::{CoverageStatus, Tracking, VmInfo, WitnessStatus},
};

use super::{ApiState, negotiate::choose, problem::ApiError};
use crate::{
    host::Vm,
    metrics::{AuditCounters, Description, HttpCounters, Kind, MigrationCounters, VmCounters},
    picture::peers::PeerFigures,
    units,
};

/// Counters and gauges for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "Daemon", operation_id = "getMetrics",
    responses(
        (status = 200, description = "Text format 0.0.4, all names with the prefix `memdex_`", body = str, content_type = "text/plain"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get(
    State(state): State<ApiState>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, ApiError> {
    choose(&headers, &["text/plain"])?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render(&state)))
}

fn render(state: &ApiState) -> String {
    let mut out = Text::default();
    out.family("memdex_build_info", "gauge", "The version of this daemon.");
    out.sample("memdex_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    vms(&mut out, state);
    hooks(&mut out, state);
    host(&mut out, state);
    peers(&mut out, state);
    migrations(&mut out, state);
    set(&mut out, HttpCounters::descriptions(), &[(Vec::new(), &*state.figures)]);
    requests(&mut out, state);
    process(&mut out);
    out.0
}

/// One figure of a VM.
type Value = fn(&VmInfo) -> f64;

fn vms(out: &mut Text, state: &ApiState) {
    let all = state.host.vms();
    let vms: Vec<_> = all.iter().map(|vm| (vm.info(), vm)).collect();
    let families: [(&str, &str, Value); 10] = [
        ("memdex_vm_memory_bytes", "Bytes of guest RAM.", |vm| vm.memory_bytes as f64),
        ("memdex_vm_generation", "Generation of the VM's map.", |vm| vm.generation as f64),
        ("memdex_vm_exact", "1 if tracking is exact, 0 if it is advisory.", |vm| {
            f64::from(u8::from(vm.tracking == Tracking::Exact))
        }),
        (
            "memdex_vm_oldest_mark_seconds",
            "Age of the oldest write mark that no scan has answered yet.",
            |vm| vm.oldest_mark_ms as f64 / 1e3,
        ),
        (
            "memdex_vm_staleness_seconds",
            "How long a write to the VM's memory can have gone unnoticed at most.",
            |vm| vm.staleness_ms as f64 / 1e3,
        ),
        (
            "memdex_vm_audit_age_seconds",
            "Time since the page table was last held against the whole map, which finds writes without a mark.",
            |vm| vm.audit_age_ms as f64 / 1e3,
        ),
        (
            "memdex_vm_unsettled_pages",
            "Those of the stale pages that only direct I/O from before they were read may have changed.",
            |vm| vm.pages.unsettled as f64,
        ),
        (
            "memdex_vm_guest_cost_ratio",
            "Share of one vCPU that the guest has paid for being watched over the last ten seconds, as estimated.",
            |vm| vm.guest_cost_ppm as f64 / 1e6,
        ),
        (
            "memdex_vm_guest_budget_ratio",
            "Share of one vCPU that the guest may pay for being watched in the long run.",
            |vm| vm.guest_budget_ppm as f64 / 1e6,
        ),
        ("memdex_vm_indexed_pages", "Pages looked at in the first pass.", |vm| vm.indexed.done as f64),
    ];
    for (name, help, value) in families {
        out.family(name, "gauge", help);
        for (vm, _) in &vms {
            out.sample(name, &[("vm", &vm.id), ("name", &vm.name)], value(vm));
        }
    }
    out.family("memdex_vm_pages", "gauge", "Pages of a VM by state.");
    for (vm, _) in &vms {
        let pages = &vm.pages;
        for (state, count) in [
            ("absent", pages.absent),
            ("zero", pages.zero),
            ("current", pages.current),
            ("stale", pages.stale),
        ] {
            out.sample(
                "memdex_vm_pages",
                &[("vm", &vm.id), ("name", &vm.name), ("state", state)],
                count as f64,
            );
        }
    }
    coverage(out, &vms);
    let counters: Vec<_> = vms.iter().map(|(info, vm)| (labels(info), &vm.counters)).collect();
    set(out, VmCounters::descriptions(), &counters);
    let audits: Vec<_> = vms.iter().map(|(info, vm)| (labels(info), &vm.audit)).collect();
    set(out, AuditCounters::descriptions(), &audits);
}

/// Pages of each region, with how they are watched and why not better.
fn coverage(out: &mut Text, vms: &[(VmInfo, &Arc<Vm>)]) {
    out.family(
        "memdex_vm_region_pages",
        "gauge",
        "Pages of a region of guest RAM, by how it is watched and why not exactly.",
    );
    for (vm, _) in vms {
        for region in &vm.coverage {
            let status = match region.status {
                CoverageStatus::Exact => "exact",
                CoverageStatus::Advisory => "advisory",
                CoverageStatus::Unreadable => "unreadable",
            };
            let first = region.first_page.to_string();
            let labels = [
                ("vm", vm.id.as_str()),
                ("name", vm.name.as_str()),
                ("region", region.region.as_str()),
                ("first_page", first.as_str()),
                ("status", status),
                ("reason", region.reason.as_deref().unwrap_or_default()),
            ];
            out.sample("memdex_vm_region_pages", &labels, region.pages as f64);
        }
    }
    out.family(
        "memdex_vm_witness",
        "gauge",
        "1 if a witness is at work for the VM, 0 if it could not be attached.",
    );
    for (vm, _) in vms {
        for witness in &vm.witnesses {
            let active = witness.status == WitnessStatus::Active;
            let labels =
                [("vm", vm.id.as_str()), ("name", vm.name.as_str()), ("witness", witness.name.as_str())];
            out.sample("memdex_vm_witness", &labels, f64::from(u8::from(active)));
        }
    }
}

fn labels(vm: &VmInfo) -> Vec<(&str, &str)> {
    vec![("vm", vm.id.as_str()), ("name", vm.name.as_str())]
}

fn host(out: &mut Text, state: &ApiState) {
    let host = state.host.metrics();
    for (name, kind, help, value) in [
        ("memdex_vms", "gauge", "VMs indexed.", host.vms),
        ("memdex_vms_gone_total", "counter", "VMs that have ended or are no longer indexed.", host.vms_gone),
        ("memdex_hash_threads", "gauge", "Threads that hash.", host.hash_threads),
        ("memdex_index_entries", "gauge", "Places in the index from content to places.", host.index.entries),
        ("memdex_index_bytes", "gauge", "Memory the index takes.", host.index.bytes),
        (
            "memdex_index_left_out",
            "gauge",
            "Places left out of the index because too many pages have the same content.",
            host.index.left_out,
        ),
        ("memdex_kept_vms", "gauge", "VMs that moved away and left content behind.", host.kept.vms),
        ("memdex_kept_bytes", "gauge", "Content that VMs which moved away left behind.", host.kept.bytes),
    ] {
        out.family(name, kind, help);
        out.sample(name, &[], value as f64);
    }
}

/// One figure of a peer; `None` as long as it has told nothing.
type OfPeer = fn(&PeerFigures) -> Option<f64>;

fn peers(out: &mut Text, state: &ApiState) {
    let peers: Vec<_> =
        state.peers.pictures().iter().map(|(name, peer)| (name.to_owned(), peer.figures())).collect();
    let families: [(&str, &str, &str, OfPeer); 5] = [
        ("memdex_peer_contents", "gauge", "Contents in the picture of a peer that is followed.", |peer| {
            Some(peer.contents as f64)
        }),
        (
            "memdex_peer_picture_bytes",
            "gauge",
            "Memory for the picture of a peer, and for which pages of this host's VMs it holds.",
            |peer| Some(peer.bytes as f64),
        ),
        (
            "memdex_peer_silence_seconds",
            "gauge",
            "Time since a peer last said that its picture is up to date.",
            |peer| Some(peer.age?.as_secs_f64()),
        ),
        ("memdex_peer_pictures_total", "counter", "Whole pictures received of a peer.", |peer| {
            Some(peer.pictures as f64)
        }),
        (
            "memdex_peer_changes_total",
            "counter",
            "Contents that came to a peer or went, as it told.",
            |peer| Some(peer.changes as f64),
        ),
    ];
    for (name, kind, help, value) in families {
        out.family(name, kind, help);
        for (peer, figures) in &peers {
            if let Some(value) = value(figures) {
                out.sample(name, &[("peer", peer)], value);
            }
        }
    }
}

fn migrations(out: &mut Text, state: &ApiState) {
    out.family("memdex_migrations", "gauge", "Migrations under way or ended within the last hour, by phase.");
    for (direction, phase, count) in state.migrations.phases() {
        let direction = match direction {
            Direction::Outgoing => "outgoing",
            Direction::Incoming => "incoming",
        };
        let labels = [("direction", direction), ("phase", phase.name())];
        out.sample("memdex_migrations", &labels, count as f64);
    }
    set(out, MigrationCounters::descriptions(), &[(Vec::new(), state.migrations.figures())]);
}

fn hooks(out: &mut Text, state: &ApiState) {
    let hooks = state.host.hooks();
    out.family("memdex_hook_attached", "gauge", "1 if the eBPF hook is attached.");
    for hook in hooks.status() {
        out.sample("memdex_hook_attached", &[("hook", hook.name)], f64::from(u8::from(hook.attached)));
    }
    let programs = hooks.statistics();
    out.family("memdex_ebpf_runs_total", "counter", "Runs of an eBPF program.");
    for program in &programs {
        out.sample("memdex_ebpf_runs_total", &[("program", program.name.as_ref())], program.runs as f64);
    }
    out.family("memdex_ebpf_seconds_total", "counter", "Time spent in an eBPF program.");
    for program in &programs {
        let seconds = program.nanoseconds as f64 / 1e9;
        out.sample("memdex_ebpf_seconds_total", &[("program", program.name.as_ref())], seconds);
    }
}

fn requests(out: &mut Text, state: &ApiState) {
    let requests = state.requests.read();
    let label =
        |kind: &super::track::Kind| [kind.route.clone(), kind.method.to_owned(), kind.status.to_string()];
    out.family("memdex_http_requests_total", "counter", "Requests answered.");
    for (kind, tally) in &requests {
        let [route, method, status] = label(kind);
        let labels = [("route", route.as_str()), ("method", method.as_str()), ("status", status.as_str())];
        out.sample("memdex_http_requests_total", &labels, tally.count as f64);
    }
    out.family(
        "memdex_http_request_seconds_total",
        "counter",
        "Time from a request to the head of its answer.",
    );
    for (kind, tally) in &requests {
        let [route, method, status] = label(kind);
        let labels = [("route", route.as_str()), ("method", method.as_str()), ("status", status.as_str())];
        out.sample("memdex_http_request_seconds_total", &labels, tally.time.as_secs_f64());
    }
}

/// What the daemon itself takes.
fn process(out: &mut Text) {
    if let Some(pages) = std::fs::read_to_string("/proc/self/statm").ok().and_then(|statm| resident(&statm)) {
        out.family("memdex_process_resident_bytes", "gauge", "Memory the daemon takes.");
        out.sample("memdex_process_resident_bytes", &[], units::bytes(pages) as f64);
    }
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    out.family("memdex_process_cpu_seconds_total", "counter", "Processor time the daemon has taken.");
    out.sample("memdex_process_cpu_seconds_total", &[], time.tv_sec as f64 + time.tv_nsec as f64 / 1e9);
}

fn resident(statm: &str) -> Option<u64> {
    statm.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Renders a set of figures for each holder.
fn set<T>(out: &mut Text, figures: &[Description<T>], holders: &[(Vec<(&str, &str)>, &T)]) {
    for figure in figures {
        let kind = match figure.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        out.family(figure.name, kind, figure.help.trim());
        for (labels, values) in holders {
            out.sample(figure.name, labels, (figure.value)(values) as f64);
        }
    }
}

/// The text as it grows.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            // Names of VMs come from command lines: anything may be in them.
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if i == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_break_out_of_their_line() {
        let mut out = Text::default();
        out.sample("memdex_x", &[("name", "a\"} 1\nmemdex_y{b=\"\\")], 2.5);
        assert_eq!(out.0, "memdex_x{name=\"a\\\"} 1\\nmemdex_y{b=\\\"\\\\\"} 2.5\n");
        assert_eq!(resident("100 25 3 1 0 9 0\n"), Some(25));
    }
}
