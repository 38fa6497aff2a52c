//! Measured migrations as a table, for people. Owns the words; the plot is in [`super::chart`].

use std::{fmt, fs, io, path::Path};

use memdex_tests::image::QemuVersion;

use super::{Cap, How, Run, qemu_modes::Mode};
use crate::machine;

/// Rows of a table of runs, each compared with QEMU's pre-copy and with QEMU's fastest mode under the same cap.
pub(super) struct Table<'a>(pub(super) &'a [Run]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| | QEMU | cap | on the wire | of pre-copy's | total | of QEMU's fastest | blackout | its own word |"
        )?;
        writeln!(f, "|---|---|---|--:|--:|--:|--:|--:|--:|")?;
        for run in self.0 {
            let Run { how, qemu, cap, total_ms, blackout_ms, reported_ms, .. } = run;
            let wire_share = run.wire_bytes as f64 / precopy(self.0, *qemu, *cap).wire_bytes as f64;
            let time_share = total_ms / best(self.0, *qemu, *cap).total_ms;
            writeln!(
                f,
                "| {how} | {qemu} | {cap} | {:.1} MiB | {wire_share:.3} | {total_ms:.0} ms | {time_share:.2} | {blackout_ms:.1} ms | {reported_ms:.0} ms |",
                run.wire_mib()
            )?;
        }
        let called_off: u32 = self.0.iter().map(|run| run.called_off).sum();
        if called_off > 0 {
            writeln!(
                f,
                "\nTries that memdex called off because the guest would have stood still too long: {called_off}."
            )?;
        }
        let busy = self.0.iter().filter(|run| run.busy).count();
        if busy > 0 {
            let all = self.0.len();
            writeln!(
                f,
                "\nIn {busy} of these {all} lines something else kept the machine busy in every run: their times are too long."
            )?;
        }
        Ok(())
    }
}

/// QEMU's plain pre-copy under this cap.
fn precopy(runs: &[Run], qemu: QemuVersion, cap: Cap) -> &Run {
    let precopy = |run: &&Run| run.qemu == qemu && run.cap == cap && run.how == How::Qemu(Mode::Precopy);
    runs.iter().find(precopy).expect("pre-copy is always measured")
}

/// QEMU's fastest mode under this cap.
pub(super) fn best(runs: &[Run], qemu: QemuVersion, cap: Cap) -> &Run {
    let modes =
        runs.iter().filter(|run| run.qemu == qemu && run.cap == cap && matches!(run.how, How::Qemu(_)));
    modes.min_by(|a, b| a.total_ms.total_cmp(&b.total_ms)).expect("pre-copy is always measured")
}

/// Writes `migration.md` into a folder.
pub(super) fn write(folder: &Path, runs: &[Run], about: &str, rounds: usize) -> io::Result<()> {
    let text = format!(
        "# Migration, measured

`cargo xtask bench --only migrate --docs docs` writes this page and the plot anew.

![On the wire, total time and blackout at 1 Gb/s](migration.svg)

{about}. Both hosts are this machine ({}); what crosses between them passes a relay that counts it at the
sockets, both ways. *Total* is the time from the command until the guest runs at the destination, *blackout* the time from the event `STOP` of the one
QEMU to the event `RESUME` of the other. All other guests stand still while one moves, the sibling too: it would take processor time that
QEMU's own migration has for itself here (and a few of its pages would just be being written, so that they could not be taken). Before anything is measured all free memory has been
touched and all disks are in sync; the daemons' sockets and journals are on a tmpfs, as `/run` is. Figures: {}; runs that began while something else kept the machine busy count only if there are no others.

{}
*Sibling there*: another guest of the same image is at the destination. *Returns*: the guest came from the destination with memdex, ran
elsewhere under its load for the time named, and goes back (to the host where the sibling is). *Nothing in common*: no VM runs at the destination, and none ever did. *--compression zstd* asks for
fewest bytes; without it, what is faster is done.
After every migration the guest found all of the memory it checks as it should be.
",
        machine::model(),
        how_often(rounds),
        Table(runs)
    );
    fs::write(folder.join("migration.md"), text)
}

/// What each figure is made of.
pub(super) fn how_often(rounds: usize) -> String {
    match rounds {
        1 => "each of one run".to_owned(),
        _ => format!("the middle of {rounds} runs, taken in turns"),
    }
}
