//! What becomes of huge pages: when they are armed, and when they are written.

use memdex_tests::Scratch;

use super::{
    watch,
    writer::{HUGE, PAGE, Ram, Writer},
};
use crate::figure::{Bound, Figures};

const MIB: usize = 256;
/// One huge page in so many is written.
const WRITTEN: usize = 8;
const PAGES: usize = HUGE / PAGE;

pub(super) fn measure(figures: &mut Figures, scratch: &Scratch) {
    eprintln!("huge pages, armed and written");
    let all = MIB << 8;
    let huge_pages = all / PAGES;
    let mut cold_kept = Vec::new();
    let mut texts = Vec::new();
    for ram in [Ram::Anonymous, Ram::HugeFile] {
        let mut writer = Writer::start(scratch, ram, MIB);
        let before = writer.huge();
        let witness = watch(&writer);
        let attached = writer.huge();
        witness.arm(0..all);
        let armed = writer.huge();
        let after_arming = writer.once(1, huge_pages / WRITTEN, PAGES * WRITTEN);
        let written = writer.huge();
        let reading = writer.ask(&format!("read 0 {all} 1"))[0] as f64 / all as f64;
        let read = writer.huge();
        let again = writer.once(1, huge_pages / WRITTEN, PAGES * WRITTEN);
        let share = |kib: f64| kib / before.max(1.0) * 100.0;
        let expected = 1.0 - 1.0 / WRITTEN as f64;
        cold_kept.push(if before > 0.0 { written / (before * expected) * 100.0 } else { 0.0 });
        texts.push(format!(
            "{:.0} of {MIB} MiB huge; registered {:.0} %, armed {:.0} %, one in {WRITTEN} written {:.0} %, all read {:.0} %; the write \
             that splits takes {after_arming:.0} ns (afterwards {again:.0}), a read {reading:.1} ns",
            before / 1024.0,
            share(attached),
            share(armed),
            share(written),
            share(read)
        ));
    }
    let [anonymous, file] = &texts[..] else { unreachable!("two kinds were measured") };
    let name = "guest_cost_huge_cold_kept_percent";
    let how = format!("private memory, of those not written: {anonymous}");
    figures.add(name, cold_kept[0], "%", Bound::AtLeast(99.0), how);
    let how = format!("a file in huge pages, of those not written: {file}");
    figures.add("guest_cost_huge_file_kept_percent", cold_kept[1], "%", Bound::AtLeast(0.0), how);
}
