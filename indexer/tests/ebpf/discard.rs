//! System calls that discard memory.

use indexer::watch::ebpf::Taken;

use crate::{All, discarded, hooks, layout, one, take, vmm::Vmm};

#[test]
fn a_punched_hole_marks_its_pages_as_discarded() {
    let mut vmm = Vmm::start(4096);
    let mut marks = hooks().track(vmm.pid(), &layout(&vmm)).unwrap();
    vmm.tell("punch 5 1");
    vmm.tell("punch 100 3");
    assert!(marks.any(102..103) && !marks.any(103..200));
    assert_eq!(take(&mut marks), discarded(&[one(5), 100..103]));
    // Longer than a chunk, beginning and ending in the middle of one.
    vmm.tell("punch 500 2000");
    assert!(marks.any(2000..2001) && !marks.any(2500..3000));
    assert_eq!(take(&mut marks), discarded(&[500..2500]));
    // Whole, and to beyond the end.
    vmm.tell("punch 0 9000");
    assert_eq!(take(&mut marks), discarded(&[0..4096]));
    assert!(marks.discards_quiescent());
}

#[test]
fn advice_that_drops_pages_marks_them() {
    let mut vmm = Vmm::start(1024);
    let mut marks = hooks().track(vmm.pid(), &layout(&vmm)).unwrap();
    vmm.tell("willneed 0 1024");
    assert_eq!(take(&mut marks), All::default());
    vmm.tell("dontneed 10 2");
    vmm.tell("remove 600 1");
    assert_eq!(take(&mut marks), discarded(&[10..12, one(600)]));
}

#[test]
fn another_file_and_plain_allocation_mark_nothing() {
    let mut vmm = Vmm::start(64);
    let mut marks = hooks().track(vmm.pid(), &layout(&vmm)).unwrap();
    vmm.tell("punch-other 0 64");
    vmm.tell("allocate 0 64");
    assert_eq!(take(&mut marks), All::default());
    assert!(marks.discards_quiescent());
}

#[test]
fn a_truncated_file_is_a_discard_of_anything() {
    let mut vmm = Vmm::start(64);
    let mut marks = hooks().track(vmm.pid(), &layout(&vmm)).unwrap();
    vmm.tell("truncate 32");
    let taken = Taken { discards_overflowed: true, ..Taken::default() };
    assert_eq!(take(&mut marks), All { taken, ..All::default() });
    assert!(marks.discards_quiescent());
}

#[test]
fn marks_under_a_storm_of_discards_are_never_lost() {
    let mut vmm = Vmm::start(512);
    let mut marks = hooks().track(vmm.pid(), &layout(&vmm)).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let vmm = &mut vmm;
        let done = &done;
        scope.spawn(move || {
            for _ in 0..20 {
                vmm.tell("many 5120"); // every page ten times
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        let (mut seen, mut takes, mut busy) = (0_u64, 0_u64, 0_u64);
        loop {
            let last = done.load(std::sync::atomic::Ordering::SeqCst);
            let all = take(&mut marks);
            assert_eq!((all.written, all.taken), (Vec::new(), Taken::default()));
            seen += all.discarded.iter().map(|run| run.len() as u64).sum::<u64>();
            takes += 1;
            busy += u64::from(!marks.discards_quiescent());
            if last {
                break;
            }
        }
        assert!(seen > 512, "{seen} pages in {takes} takes, in flight {busy} times");
    });
    assert!(marks.discards_quiescent());
    // Nothing is under way now, so a last pass must be seen whole.
    vmm.tell("many 512");
    assert_eq!(take(&mut marks), discarded(&[0..512]));
}
