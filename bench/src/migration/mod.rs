//! Live migration, measured: how long it takes, how long the guest stands still, what crosses the wire.
//!
//! - [`relay`]: what it can do that counts what crosses. [`pair`]: a guest and where it goes next.
//! - [`qemu_modes`]: QEMU's own migration, the baseline.

mod pair;
mod qemu_modes;
mod relay;

use std::fmt;

use pair::Pair;
use qemu_modes::Mode;

use crate::figure::median;

/// How often each is measured; what is shown is the middle one of each figure.
const ROUNDS: usize = 3;

/// Most bytes a second on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cap {
    /// A network of 1 Gb/s.
    Gigabit,
    /// As fast as it goes.
    None,
}

impl Cap {
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

/// A migration that was measured.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// How it was done.
    pub(crate) mode: String,
    /// What the wire was limited to.
    pub(crate) cap: Cap,
    /// Bytes at the sockets, both ways.
    pub(crate) wire_bytes: u64,
    /// Milliseconds from the command until the guest ran at the destination.
    pub(crate) total_ms: f64,
    /// Milliseconds for which it ran nowhere, from the events of the two QEMUs.
    pub(crate) blackout_ms: f64,
    /// What QEMU itself says the blackout was, in milliseconds.
    pub(crate) reported_downtime_ms: Option<u64>,
}

impl Run {
    /// The middle of each figure over runs of the same kind.
    ///
    /// # Panics
    /// If there are none.
    pub(crate) fn middle(runs: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(runs.iter().map(figure).collect());
        Self {
            mode: runs[0].mode.clone(),
            cap: runs[0].cap,
            wire_bytes: of(|run| run.wire_bytes as f64) as u64,
            total_ms: of(|run| run.total_ms),
            blackout_ms: of(|run| run.blackout_ms),
            reported_downtime_ms: runs[0]
                .reported_downtime_ms
                .map(|_| of(|run| run.reported_downtime_ms.unwrap_or(0) as f64) as u64),
        }
    }
}

/// Rows of a table of runs, for people.
pub(crate) struct Table<'a>(pub(crate) &'a [Run]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| mode | cap | on the wire | total | blackout | QEMU says |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for Run { mode, cap, wire_bytes, total_ms, blackout_ms, reported_downtime_ms } in self.0 {
            let wire = *wire_bytes as f64 / f64::from(1 << 20);
            let reported = reported_downtime_ms.map_or_else(|| "–".to_owned(), |ms| format!("{ms} ms"));
            writeln!(
                f,
                "| {mode} | {cap} | {wire:.1} MiB | {total_ms:.0} ms | {blackout_ms:.1} ms | {reported} |"
            )?;
        }
        Ok(())
    }
}

/// QEMU's own migration in each of its modes, with and without a cap, of one Debian guest that goes on from place to place.
pub(crate) fn measure_qemu() {
    eprintln!("the relay that counts passes {:.1} GB/s on by itself", relay::rate() / 1e9);
    let mut pair = Pair::debian();
    let mut runs = Vec::new();
    for cap in [Cap::Gigabit, Cap::None] {
        for mode in Mode::ALL {
            let rounds: Vec<Run> = (0..ROUNDS)
                .map(|_| qemu_modes::run(mode, cap, &mut pair))
                .inspect(|run| eprintln!("  {run:?}"))
                .collect();
            runs.push(Run::middle(&rounds));
        }
    }
    println!("QEMU {}, {}; middle of {ROUNDS} runs", pair.version(), pair.about());
    print!("{}", Table(&runs));
}
