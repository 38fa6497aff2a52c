//! Protects what is promised of every witness: each kind of write is seen, or the VM says beforehand that it may not be, and a sync is
//! right all the same. `table.rs` says which of the two holds for which witness; the suite fails if it is worse than that, and also if it
//! is better.
//!
//! - [`table`]: kinds of writes × witnesses, and what is expected. The table in `ARCHITECTURE.md` is written from it.
//! - [`kinds`]: how each kind of write is done.
//! - [`stage`]: a guest, a daemon with the witnesses in question, and the judgement by bytes that are read independently.

mod host;
mod kinds;
mod sparse;
mod stage;
mod table;

use stage::Stage;
use table::{Ram, Witness};

/// All rows of the table for one witness.
fn conform(witness: Witness, rams: &[Ram]) {
    for ram in rams {
        let begun = std::time::Instant::now();
        let mut stage = Stage::new(witness, *ram);
        stage.perform();
        println!("{witness:?}, {ram:?}: {:?}", begun.elapsed());
    }
}

#[test]
fn write_protection_with_ebpf_marks() {
    conform(Witness::All, &[Ram::Memfd, Ram::Anonymous]);
}

#[test]
fn write_protection_alone() {
    conform(Witness::WriteProtect, &[Ram::Memfd, Ram::Anonymous]);
}

#[test]
fn kvm_dirty_ring() {
    conform(Witness::DirtyRing, &[Ram::Memfd, Ram::Anonymous]);
}

#[test]
fn reading_again() {
    conform(Witness::Rehash, &[Ram::Memfd, Ram::Anonymous]);
}

#[test]
fn huge_pages_of_tmpfs() {
    conform(Witness::All, &[Ram::HugeTmpfs]);
    conform(Witness::WriteProtect, &[Ram::HugeTmpfs]);
}

#[test]
fn huge_pages_of_hugetlbfs() {
    conform(Witness::All, &[Ram::Hugetlb]);
    conform(Witness::Rehash, &[Ram::Hugetlb]);
}
