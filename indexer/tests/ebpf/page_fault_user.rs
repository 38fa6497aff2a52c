//! Writes of the process itself.

use crate::{All, hooks, layout, one, take, vmm::Vmm, written};

#[test]
fn a_first_write_marks_exactly_its_page() {
    let mut vmm = Vmm::start(2000);
    let mut marks = hooks().track(vmm.pid(), &layout(&vmm)).unwrap();
    assert_eq!(take(&mut marks), All::default());
    for page in [7, 8, 1023, 1999] {
        vmm.tell(&format!("write {page}"));
    }
    assert!(marks.any(1999..2000) && marks.any(0..8) && !marks.any(9..1023));
    assert_eq!(take(&mut marks), written(&[7..9, one(1023), one(1999)]));
    assert_eq!(take(&mut marks), All::default(), "a mark is taken once");
    assert!(!marks.any(0..2000));

    // The pages are writable now: no fault, no mark. Reads make none either.
    for page in [7, 8] {
        vmm.tell(&format!("write {page}"));
    }
    vmm.tell("read 100");
    assert_eq!(take(&mut marks), All::default());
}

#[test]
fn an_untracked_process_leaves_no_mark() {
    let mut tracked = Vmm::start(16);
    let mut other = Vmm::start(16);
    let mut marks = hooks().track(tracked.pid(), &layout(&tracked)).unwrap();
    other.tell("write 3");
    other.tell("punch 3 1");
    assert_eq!(take(&mut marks), All::default());
    tracked.tell("write 3");
    assert_eq!(take(&mut marks), written(&[one(3)]));
    drop(marks);
    tracked.tell("write 4");
    let mut again = hooks().track(tracked.pid(), &layout(&tracked)).unwrap();
    assert_eq!(take(&mut again), All::default(), "nothing is marked while nobody tracks");
}
