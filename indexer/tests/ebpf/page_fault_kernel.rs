//! Writes of the kernel on the process's behalf: system calls, vhost, KVM's instruction emulator.

use crate::{All, hooks, layout, one, take, vmm::Vmm, written};

#[test]
fn a_first_write_marks_exactly_its_page() {
    let mut vmm = Vmm::start(2000);
    let mut marks = hooks().track(vmm.pid(), &layout(&vmm)).unwrap();
    assert_eq!(take(&mut marks), All::default());
    for page in [7, 8, 1023, 1999] {
        vmm.tell(&format!("receive {page}"));
    }
    assert!(marks.any(1999..2000) && marks.any(0..8) && !marks.any(9..1023));
    assert_eq!(take(&mut marks), written(&[7..9, one(1023), one(1999)]));
    assert_eq!(take(&mut marks), All::default(), "a mark is taken once");
    assert!(!marks.any(0..2000));

    // The pages are writable now: no fault, no mark. Reads make none either.
    for page in [7, 8] {
        vmm.tell(&format!("receive {page}"));
    }
    vmm.tell("read 100");
    assert_eq!(take(&mut marks), All::default());
}
