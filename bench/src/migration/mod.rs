//! Live migration, measured: how long it takes, how long the guest stands still, what crosses the wire.
//!
//! - [`relay`]: what it can do that counts what crosses, at the socket.
//! - [`pair`] and [`qemu_modes`]: QEMU's own migration, the baseline. [`stage`]: that of memdex.
//! - [`warm`]: what makes the first one count as much as the last. [`compare`]: both in one run, and the ratios that are promised. [`report`] and [`chart`]: how they are shown.

mod chart;
mod compare;
mod pair;
mod qemu_modes;
mod relay;
mod report;
mod stage;
mod warm;

use std::{fmt, time::Duration};

use memdex_tests::image::QemuVersion;

pub(crate) use compare::{measure, measure_memdex, measure_qemu};
use qemu_modes::Mode;
use stage::Case;

use crate::figure::median;

/// Most bytes a second on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cap {
    /// A network of 1 Gb/s.
    Gigabit,
    /// As fast as it goes.
    None,
}

impl Cap {
    const ALL: [Self; 2] = [Self::Gigabit, Self::None];

    /// As a number; no machine has a network that is faster than what stands for none.
    pub(crate) const fn bytes_per_second(self) -> u64 {
        match self {
            Self::Gigabit => 125_000_000,
            Self::None => 1 << 40,
        }
    }
}

impl fmt::Display for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gigabit => "1 Gb/s",
            Self::None => "none",
        })
    }
}

/// What moved the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// QEMU alone.
    Qemu(Mode),
    /// memdex.
    Memdex(Case),
}

impl How {
    /// Whether there is a figure for it under this cap.
    pub(crate) fn is_measured(self, cap: Cap) -> bool {
        match self {
            Self::Qemu(_) => true,
            Self::Memdex(case) => case.is_measured(cap),
        }
    }

    /// All that are compared, as they are shown: the baseline first.
    fn all() -> impl Iterator<Item = Self> {
        Mode::ALL.into_iter().map(Self::Qemu).chain(Case::ALL.into_iter().map(Self::Memdex))
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Qemu(mode) => mode.fmt(f),
            Self::Memdex(case) => case.fmt(f),
        }
    }
}

/// A migration that was measured.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) how: How,
    /// The QEMU that runs the guest.
    pub(crate) qemu: QemuVersion,
    /// What the wire was limited to.
    pub(crate) cap: Cap,
    /// Bytes at the sockets, both ways.
    pub(crate) wire_bytes: u64,
    /// Milliseconds from the command until the guest ran at the destination.
    pub(crate) total_ms: f64,
    /// Milliseconds for which it ran nowhere, from the events of the two QEMUs.
    pub(crate) blackout_ms: f64,
    /// What QEMU or memdex itself says the blackout was, in milliseconds.
    pub(crate) reported_ms: f64,
    /// Tries before this one that were called off because the guest could not be stopped for so short a time.
    pub(crate) called_off: u32,
    /// Something else kept this machine busy when it began: its times say little.
    pub(crate) busy: bool,
}

impl Run {
    /// The middle of each figure over runs of the same kind, but all tries that were called off. Only those [that
    /// count](Self::that_count).
    ///
    /// # Panics
    /// If there are none.
    pub(crate) fn middle(runs: &[Self]) -> Self {
        let these = Self::that_count(runs);
        let of = |figure: fn(&Self) -> f64| median(these.iter().map(|run| figure(run)).collect());
        Self {
            wire_bytes: of(|run| run.wire_bytes as f64) as u64,
            total_ms: of(|run| run.total_ms),
            blackout_ms: of(|run| run.blackout_ms),
            reported_ms: of(|run| run.reported_ms),
            called_off: runs.iter().map(|run| run.called_off).sum(),
            ..these[0].clone()
        }
    }

    /// Those that nothing else on this machine disturbed, or all if there is no such.
    pub(crate) fn that_count(runs: &[Self]) -> Vec<&Self> {
        let quiet: Vec<_> = runs.iter().filter(|run| !run.busy).collect();
        if quiet.is_empty() { runs.iter().collect() } else { quiet }
    }

    /// MiB on the wire.
    pub(crate) fn wire_mib(&self) -> f64 {
        self.wire_bytes as f64 / f64::from(1 << 20)
    }
}

/// Milliseconds from one time to a later one.
fn milliseconds(from: Duration, to: Duration) -> f64 {
    to.saturating_sub(from).as_secs_f64() * 1e3
}
