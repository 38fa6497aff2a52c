//! Writes of the kernel on the process's behalf: system calls, vhost, KVM's instruction emulator.

use crate::a_first_write_marks_its_page;

#[test]
fn a_first_write_marks_exactly_its_page() {
    a_first_write_marks_its_page("receive");
}
