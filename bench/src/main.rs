//! Measures the figures that SPECIFICATION.md promises: ratios against a named baseline, both sides in this run.
//!
//! Owns measuring and printing. Real parts only: the release build of the daemon, a process that holds a KVM VM, a guest
//! under QEMU. What it prints is what it saw; a figure out of bounds is printed as such, and `--check` makes it an error.

mod bulk;
mod churn;
mod compare;
mod cpu_clock;
mod curves;
mod daemon;
mod diff;
mod diff_known;
mod figure;
mod first_index;
mod freshness;
mod guest_cost;
mod hashing;
mod hot_pages;
mod http_bulk;
mod idle;
mod large_host;
mod machine;
mod migration;
mod plain;
mod svg;
mod vmm;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use compare::Before;
use figure::Figures;

#[derive(Debug, Parser)]
#[command(about = "Measures what SPECIFICATION.md promises")]
struct Arguments {
    /// Write the figures to this file, as [{"name","value","unit"}]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show the figures beside those of an earlier run, which `--json` wrote: old, new, and new over old
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Exit with 1 if a figure is out of bounds
    #[arg(long)]
    check: bool,
    /// Measure only figures whose name contains this; `curves` is the cost curves, `migrate_qemu` is QEMU's own migration alone, `migrate_memdex` that of memdex alone
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// How often each kind of migration is measured; the middle one counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=99))]
    rounds: usize,
    /// Write what was seen into this folder: migration.md and .svg of migrations, curves.md and .svg of cost curves, large-host.md of large hosts, hot-pages.md of the rule for hot pages
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What prints tables and plots, but has no figures.
const NO_FIGURES: [&str; 3] = ["migrate_qemu", "migrate_memdex", curves::NAME];

#[derive(Debug, Subcommand)]
enum Role {
    /// Be a VMM: a process that holds a KVM VM with memory that is written on command (used by the bench itself)
    #[command(hide = true)]
    Vmm(vmm::Arguments),
    /// Be a process that measures its own writes (used by the bench itself)
    #[command(hide = true)]
    Writer(guest_cost::WriterArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.role {
        Some(Role::Vmm(arguments)) => {
            vmm::run(arguments);
            return ExitCode::SUCCESS;
        }
        Some(Role::Writer(arguments)) => {
            guest_cost::run_writer(arguments);
            return ExitCode::SUCCESS;
        }
        None => {}
    }
    // Before anything is measured: that takes long.
    let before = match arguments.compare.as_deref().map(Before::read).transpose() {
        Ok(before) => before,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let wanted = |names: &[&str]| {
        arguments.only.as_deref().is_none_or(|only| names.iter().any(|name| name.contains(only)))
    };
    let mut figures = Figures::default();
    if wanted(&hashing::NAMES) {
        hashing::measure(&mut figures);
        hashing::measure_odd(&mut figures);
    }
    if wanted(&["first_index_over_hash", "first_index_over_file_hash", "daemon_bytes_per_page"]) {
        first_index::measure(&mut figures);
    }
    if wanted(&["freshness_1k_p99_ms", "freshness_p99_ms"]) {
        freshness::measure(&mut figures, |name| wanted(&[name]));
    }
    if wanted(&[bulk::NAME]) {
        bulk::measure(&mut figures);
    }
    if wanted(&[churn::NAME]) {
        churn::measure(&mut figures);
    }
    if wanted(&["diff_cold_1gib_ms"]) {
        diff::measure(&mut figures);
    }
    if wanted(&diff_known::NAMES) {
        diff_known::measure(&mut figures);
    }
    if wanted(&large_host::NAMES) {
        large_host::measure(&mut figures, arguments.docs.as_deref());
    }
    if wanted(&http_bulk::NAMES) {
        http_bulk::measure(&mut figures, |name| wanted(&[name]));
    }
    if wanted(&idle::NAMES) {
        idle::measure(&mut figures, |name| wanted(&[name]));
    }
    if wanted(&guest_cost::NAMES) {
        guest_cost::measure(&mut figures);
    }
    if wanted(&[hot_pages::NAME]) {
        hot_pages::measure(&mut figures, arguments.docs.as_deref());
    }
    // They are no figures: measured when somebody wants to have them.
    if wanted(&[curves::NAME]) && (arguments.only.is_some() || arguments.docs.is_some()) {
        curves::measure(arguments.docs.as_deref());
    }
    if arguments.only.as_deref() == Some("migrate_qemu") {
        migration::measure_qemu(arguments.rounds);
    } else if arguments.only.as_deref() == Some("migrate_memdex") {
        migration::measure_memdex(arguments.rounds);
    } else if wanted(&[
        "migrate_sibling_wire_over_qemu_uncapped",
        "migrate_sibling_wire_over_zstd",
        "migrate_returning_wire_over_qemu_uncapped",
        "migrate_nothing_wire_over_zstd_uncapped",
        "migrate_sibling_time_over_qemu",
        "migrate_worst_time_over_qemu",
        "blackout_over_qemu",
    ]) {
        migration::measure(&mut figures, arguments.rounds, arguments.docs.as_deref());
    }
    if figures.is_empty() && !arguments.only.as_deref().is_some_and(|only| NO_FIGURES.contains(&only)) {
        eprintln!("nothing was measured: no figure has {:?} in its name", arguments.only.unwrap_or_default());
        return ExitCode::FAILURE;
    }
    if !figures.is_empty() {
        print!("{figures}");
    }
    if let Some(before) = &before {
        print!("\n{}", before.table(figures.shown()));
    }
    if let Some(file) = &arguments.json
        && let Err(error) = figures.write(file)
    {
        eprintln!("cannot write {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    if arguments.check && !figures.all_within_bounds() {
        eprintln!("a figure is out of bounds");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
