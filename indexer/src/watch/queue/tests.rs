use proptest::prelude::*;

use super::*;

fn set(pages: &[u32]) -> RoaringBitmap {
    pages.iter().copied().collect()
}

#[test]
fn a_marked_page_is_not_read_before_its_write_was_seen() {
    let mut queue = Queue::new();
    queue.marked(7..8);
    queue.tick();
    assert!(!queue.has_ready());
    queue.written(&set(&[7]));
    assert_eq!(queue.take(10), set(&[7]));
}

#[test]
fn a_postponed_page_has_its_turn_with_the_next_tick_unless_it_was_marked() {
    let mut queue = Queue::new();
    queue.postpone(&set(&[7, 8]));
    assert!(!queue.has_ready());
    queue.tick();
    queue.marked(8..9);
    assert_eq!(queue.take(10), set(&[7]));
    assert_eq!(queue.all(), set(&[8]));
}

#[test]
fn a_mark_without_a_write_is_looked_at_in_the_end() {
    let mut queue = Queue::new();
    queue.marked(7..8);
    assert!(queue.rotate().is_empty());
    assert!(!queue.has_ready());
    assert_eq!(queue.rotate(), set(&[7]));
    assert_eq!(queue.take(10), set(&[7]));
}

#[test]
fn a_page_that_was_written_and_thrown_away_is_looked_at_too_but_no_scan_missed_it() {
    for (before, between) in [(true, 0), (false, 0), (false, 1)] {
        let mut queue = Queue::new();
        if before {
            queue.discarding(7..8);
        }
        queue.marked(7..9);
        for _ in 0..between {
            assert!(queue.rotate().is_empty());
        }
        queue.discarding(7..8);
        queue.discards_done();
        for _ in between..1 {
            assert!(queue.rotate().is_empty());
        }
        assert_eq!(queue.rotate(), set(&[8]));
        assert_eq!(queue.take(10), set(&[7, 8]));
        // Only for as long as it is awaited.
        queue.marked(7..8);
        queue.rotate();
        assert_eq!(queue.rotate(), set(&[7]));
    }
}

#[test]
fn a_page_is_not_read_while_it_is_being_discarded() {
    let mut queue = Queue::new();
    queue.discarding(3..5);
    queue.ready_run(0..10);
    assert_eq!(queue.take(10), set(&[0, 1, 2, 5, 6, 7, 8, 9]));
    queue.discards_done();
    assert_eq!(queue.take(10), set(&[3, 4]));
}

#[test]
fn hot_pages_are_read_ever_less_often_and_quiet_ones_at_once() {
    let mut queue = Queue::new();
    let mut waits = Vec::new();
    for _ in 0..12 {
        queue.written(&set(&[1]));
        let mut ticks = 0;
        while !queue.has_ready() {
            queue.tick();
            ticks += 1;
        }
        assert_eq!(queue.take(10), set(&[1]));
        queue.published(1..2);
        waits.push(ticks);
    }
    assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 64, 64, 64, 64]);
    queue.rotate();
    queue.rotate();
    queue.written(&set(&[1]));
    assert!(queue.has_ready(), "a page that was quiet for long is read at once");
}

#[test]
fn what_is_in_flight_stays_so_when_other_pages_are_numbered_anew() {
    let mut queue = Queue::new();
    queue.marked(1..2);
    queue.discarding(2..4);
    queue.ready_run(0..10);
    queue.forget_from(3);
    assert_eq!(queue.take(10), set(&[0]));
    assert_eq!(queue.all(), set(&[1, 2]));
    queue.written(&set(&[1]));
    queue.discards_done();
    assert_eq!(queue.take(10), set(&[1, 2]));
}

proptest! {
    #[test]
    fn no_page_is_ever_forgotten(steps in prop::collection::vec((0..9u8, 0..40u32, 1..8u32), 1..120)) {
        let mut queue = Queue::new();
        let mut stale = RoaringBitmap::new();
        for (step, page, len) in steps {
            let run = page..page + len;
            match step {
                0 => { queue.marked(run.clone()); stale.insert_range(run); }
                1 => { queue.discarding(run.clone()); stale.insert_range(run); }
                2 => { let pages: RoaringBitmap = run.collect(); queue.written(&pages); stale |= pages; }
                3 => queue.tick(),
                4 => drop(queue.rotate()),
                7 => { let pages: RoaringBitmap = run.collect(); queue.until_armed(&pages); stale |= pages; }
                8 => queue.all_armed(),
                6 => { let pages: RoaringBitmap = run.collect(); queue.postpone(&pages); stale |= pages; }
                _ => {
                    let batch = queue.take(len);
                    prop_assert!((&batch & queue.in_discard()).is_empty());
                    for run in runs(&batch) { queue.published(run); }
                    stale -= batch;
                }
            }
            let lost = &stale - queue.all();
            prop_assert!(lost.is_empty(), "{lost:?}");
        }
    }

    #[test]
    fn runs_cover_the_set(pages in prop::collection::btree_set(0..300u32, 0..100), gap in 0..9u32) {
        let pages: RoaringBitmap = pages.into_iter().collect();
        prop_assert_eq!(&runs(&pages).flatten().collect::<RoaringBitmap>(), &pages);
        let wide: RoaringBitmap = bridged(&pages, gap).into_iter().flatten().collect();
        prop_assert!(wide.is_superset(&pages));
    }
}
