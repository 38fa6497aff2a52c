//! Protects what is promised of every witness: each kind of write is seen, or the VM says beforehand that it may not be, and a sync is
//! right all the same. `table.rs` says which of the two holds for which witness; the suite fails if it is worse than that, and also if it
//! is better.
//!
//! - [`table`]: kinds of writes × witnesses, and what is expected. The table in `ARCHITECTURE.md` is written from it.
//! - [`kinds`]: how each kind of write is done.
//! - [`stage`]: a guest, a daemon with the witnesses in question, and the judgement by bytes that are read independently.
//!
//! Most of the time passes with waiting, so what does not disturb each other is done at once. Where the processor is emulated (the kernel
//! matrix), each column takes a minute: there it is the first one of each test.

mod host;
mod kinds;
mod sparse;
mod stage;
mod table;

use memdex_tests::wait;
use stage::Stage;
use table::{Ram, Witness};

/// All rows of the table for these witnesses and kinds of RAM, side by side.
fn conform(columns: &[(Witness, Ram)]) {
    if wait::patience() > 1 {
        let (witness, ram) = columns[0];
        return Stage::new(witness, ram).perform();
    }
    std::thread::scope(|scope| {
        for (witness, ram) in columns {
            std::thread::Builder::new()
                .name(format!("{witness:?}, {ram:?}"))
                .spawn_scoped(scope, || Stage::new(*witness, *ram).perform())
                .expect("a thread can be started");
        }
    });
}

#[test]
fn write_protection() {
    conform(&[
        (Witness::All, Ram::Memfd),
        (Witness::All, Ram::Anonymous),
        (Witness::WriteProtect, Ram::Memfd),
    ]);
}

#[test]
#[ignore = "for kernels that have soft-dirty bits and no PAGEMAP_SCAN: cargo xtask vm-test 6.1"]
fn soft_dirty_bits_of_a_file() {
    conform(&[(Witness::SoftDirty, Ram::Memfd)]);
}

#[test]
#[ignore = "for kernels that have soft-dirty bits and no PAGEMAP_SCAN: cargo xtask vm-test 6.1"]
fn soft_dirty_bits_of_private_memory() {
    conform(&[(Witness::SoftDirty, Ram::Anonymous)]);
}

#[test]
fn no_write_protection() {
    conform(&[
        (Witness::DirtyRing, Ram::Memfd),
        (Witness::DirtyRing, Ram::Anonymous),
        (Witness::Rehash, Ram::Memfd),
    ]);
}

#[test]
fn huge_pages() {
    let all = [Witness::All, Witness::WriteProtect, Witness::DirtyRing, Witness::Rehash];
    let _pool = host::HugePages::add(all.len() as u64 * stage::MIB / 2);
    let columns = all.map(|witness| [(witness, Ram::HugeTmpfs), (witness, Ram::Hugetlb)]);
    conform(columns.as_flattened());
}

/// Nobody but KVM knows where anonymous RAM is, if the VMM is no QEMU; and KVM is asked by an eBPF program.
#[test]
fn anonymous_memory_is_not_found_without_ebpf() {
    for witness in [Witness::WriteProtect, Witness::Rehash] {
        Stage::new(witness, Ram::Anonymous).expect_no_memory();
    }
}
