//! Writes of the process itself.

use crate::{All, a_first_write_marks_its_page, hooks, layout, one, take, vmm::Vmm, written};

#[test]
fn a_first_write_marks_exactly_its_page() {
    a_first_write_marks_its_page("write");
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
