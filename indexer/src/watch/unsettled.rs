//! Which pages direct I/O may still change unseen, and when they have to be read once more. Pure bookkeeping: it is told the time, and asks no kernel.
//!
//! # In-flight direct I/O
//!
//! A request of direct I/O (`O_DIRECT`: `cache=none` in QEMU's words) pins the pages it reads into when it is *submitted*. The pin goes through the page table: a
//! page that is armed takes a fault then, and is seen as written. A page that is writable already takes none. The device writes *later*, through no page
//! table at all. So a page that is armed, read and hashed between submission and completion has a wrong fingerprint, and nothing ever tells.
//!
//! What helps is time. Once a page is armed, only requests from before can still arrive in it unseen, and no request is under way for longer than the
//! *settle time* (the block layer gives a request up long before that). So a page that was published while direct I/O was possible is *unsettled*; when it has
//! stayed armed and unwritten for the settle time, it is read once more; and what it holds then it holds for good, until it is written again.
//!
//! Or a moment helps at which nothing is under way: a guest that is stopped has had its I/O drained. What was armed before such a moment need not wait.
//!
//! # Direct I/O that appears and disappears
//!
//! Discovery looks at the VMM's open files about once a second. A file that it finds may have been opened right after the look before began, so pages published since then
//! may have been armed with a request under way. They are kept apart as *unproven* until a look that began later has found nothing, and become unsettled if it has found something. Till
//! then they are shown as `current`: for about a second after a VMM has opened its first file for direct I/O. What is opened, used and closed between two looks
//! is not noticed; VMMs keep their disks open for longer than that.
//!
//! When no such file is left, requests may still be under way, so for one more settle time pages are published unsettled. A VM in which the first look finds no such
//! file has none under way: a VMM drains a disk before it closes it.
//!
//! # When the daemon was restarted
//!
//! What an earlier daemon published unsettled stays so, and its time begins anew. What it published as settled is proven by a look that began later and found
//! nothing; which pages lacked that when it died is not known, but when each chunk was last published, and when the last such look began, is written down, and that is enough: pages of chunks
//! published since then are unsettled. Only if the new daemon comes within [`SOON`] and finds no such file are they as good as between two looks. A daemon that
//! ends in good order looks once more when it has published its last page, and leaves nothing unproven. Pages that were
//! settled before, and are still armed and unwritten now, need nothing: whatever a file was opened for meanwhile, a request that pins such a page takes a fault,
//! and the page is seen as written; and requests from before it was armed had come to their end when it was settled.

use std::{
    collections::VecDeque,
    ops::Range,
    time::{Duration, Instant},
};

use roaring::RoaringBitmap;

/// Seconds from the last look of one daemon to the first one of the next that count as two looks one after the other.
pub(super) const SOON: u32 = 5;
/// Buckets in a settle time.
const BUCKETS: u32 = 16;

/// When discovery last began to look at the VMM's open files, by what it found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Looks {
    /// The last time that it found direct I/O.
    pub(crate) found: Option<Instant>,
    /// The last time that it found none.
    pub(crate) none: Option<Instant>,
}

/// Whether a request of direct I/O can be under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Possible {
    No,
    Yes,
    /// No file is open for it any more.
    Until(Instant),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Unsettled {
    /// Longest time that a request is under way; zero: nothing is ever unsettled.
    settle: Duration,
    possible: Possible,
    /// The last finding that has been acted on.
    found: Option<Instant>,
    /// Published unsettled since `opened`.
    open: RoaringBitmap,
    opened: Instant,
    /// Published unsettled earlier, oldest first, each with a time after which none of its pages was published. A page is in one of them at most.
    closed: VecDeque<(Instant, RoaringBitmap)>,
    /// Old enough to be read once more.
    due: RoaringBitmap,
    /// Published as settled, since `turned` and before: no look has confirmed yet that there was no direct I/O.
    unproven: [RoaringBitmap; 2],
    turned: Instant,
}

impl Unsettled {
    pub(super) fn new(settle: Duration, now: Instant) -> Self {
        Self {
            settle,
            possible: Possible::No,
            found: None,
            open: RoaringBitmap::new(),
            opened: now,
            closed: VecDeque::new(),
            due: RoaringBitmap::new(),
            unproven: Default::default(),
            turned: now,
        }
    }

    /// Takes in what discovery found. Returns pages that were published as settled and are not.
    pub(super) fn note(&mut self, looks: Looks, now: Instant) -> RoaringBitmap {
        let mut mistaken = RoaringBitmap::new();
        if self.settle.is_zero() {
            return mistaken;
        }
        if looks.found > self.found {
            self.found = looks.found;
            self.possible = Possible::Yes;
            let [newer, older] = std::mem::take(&mut self.unproven);
            mistaken = newer | older;
            self.open |= &mistaken;
        }
        if looks.none > looks.found {
            match self.possible {
                Possible::Yes => self.possible = Possible::Until(now + self.settle),
                Possible::Until(end) if now >= end => {
                    self.possible = Possible::No;
                    self.turned = now;
                }
                Possible::No if looks.none >= Some(self.turned) => {
                    self.unproven[1] = std::mem::take(&mut self.unproven[0]);
                    self.turned = now;
                }
                Possible::Until(_) | Possible::No => {}
            }
        }
        mistaken
    }

    /// Whether what is published now is settled at once.
    pub(super) fn at_once(&self) -> bool {
        self.possible == Possible::No
    }

    /// These have been published just now, settled or not as [`Self::at_once`] said.
    pub(super) fn published(&mut self, run: Range<u32>) {
        if self.settle.is_zero() {
            return;
        }
        let set = if self.at_once() { &mut self.unproven[0] } else { &mut self.open };
        set.insert_range(run);
    }

    /// These were published unsettled by an earlier daemon, some time ago. Their time begins anew.
    pub(super) fn inherited(&mut self, run: Range<u32>) {
        self.open.insert_range(run);
    }

    /// An earlier daemon knew that direct I/O was possible, lately: it may still be under way, whatever discovery finds now.
    pub(super) fn was_possible(&mut self, now: Instant) {
        if !self.settle.is_zero() {
            self.possible = Possible::Until(now + self.settle);
        }
    }

    /// Moves on in time.
    pub(super) fn advance(&mut self, now: Instant) {
        if self.open.is_empty() {
            self.opened = now;
        } else if now.duration_since(self.opened) >= self.settle / BUCKETS {
            self.close(now);
        }
        let settle = self.settle;
        self.fall_due(|last| now.duration_since(last) >= settle);
    }

    /// Begins a new bucket: everything published so far was published before `now`.
    pub(super) fn close(&mut self, now: Instant) {
        let bucket = std::mem::take(&mut self.open);
        for (_, older) in &mut self.closed {
            *older -= &bucket;
        }
        self.due -= &bucket;
        self.closed.push_back((now, bucket));
        self.opened = now;
    }

    /// At some moment after `mark`, when a bucket was closed, no request was under way: what was published before need not wait any longer.
    pub(super) fn drained(&mut self, mark: Instant) {
        self.fall_due(|last| last <= mark);
    }

    fn fall_due(&mut self, old: impl Fn(Instant) -> bool) {
        while self.closed.front().is_some_and(|(last, _)| old(*last)) {
            let bucket = self.closed.pop_front();
            self.due |= bucket.map(|(_, pages)| pages).unwrap_or_default();
        }
    }

    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Takes up to `most` pages that are to be read once more, lowest first. Some may have been written since, or be settled for another reason.
    pub(super) fn take(&mut self, most: u32) -> RoaringBitmap {
        let mut batch = std::mem::take(&mut self.due);
        if let Some(first_left) = batch.select(most) {
            self.due = batch.clone();
            self.due.remove_range(..first_left);
            batch.remove_range(first_left..);
        }
        // Published anew meanwhile: their time begins again.
        batch - &self.open
    }

    /// Puts back what could not be read now.
    pub(super) fn put_back(&mut self, pages: &RoaringBitmap) {
        self.due |= pages;
    }

    /// Forgets all pages from this one on: they are numbered anew.
    pub(super) fn forget_from(&mut self, page: u32) {
        let closed = self.closed.iter_mut().map(|(_, bucket)| bucket);
        for set in closed.chain(&mut self.unproven).chain([&mut self.open, &mut self.due]) {
            set.remove_range(page..);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(16);

    fn set(pages: Range<u32>) -> RoaringBitmap {
        pages.collect()
    }

    /// A clock that starts at some moment, in seconds.
    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |seconds| start + Duration::from_secs(seconds)
    }

    fn found(at: Instant) -> Looks {
        Looks { found: Some(at), none: None }
    }

    #[test]
    fn a_page_is_due_when_it_has_been_left_alone_for_the_settle_time() {
        let at = clock();
        let mut pages = Unsettled::new(SETTLE, at(0));
        pages.note(found(at(0)), at(0));
        assert!(!pages.at_once());
        pages.published(1..4);
        for second in 1..=40 {
            if second == 10 {
                pages.published(2..3);
            }
            pages.advance(at(second));
            let due = pages.take(100);
            // A bucket is closed after a sixteenth of the settle time, and counts from then on.
            let expected = match second {
                17 => [1, 3].into_iter().collect(),
                26 => set(2..3),
                _ => set(0..0),
            };
            assert_eq!(due, expected, "second {second}");
        }
    }

    #[test]
    fn a_page_that_is_due_and_published_anew_is_not_taken() {
        let at = clock();
        let mut pages = Unsettled::new(SETTLE, at(0));
        pages.note(found(at(0)), at(0));
        pages.published(0..10);
        pages.advance(at(1));
        pages.advance(at(17));
        assert!(pages.has_due());
        pages.published(3..4);
        assert_eq!(pages.take(2), set(0..2));
        assert_eq!(pages.take(2), set(2..3));
        pages.forget_from(8);
        assert_eq!(pages.take(100), set(4..8));
        assert!(!pages.has_due());
    }

    #[test]
    fn what_was_published_since_the_last_look_that_found_nothing_is_not_settled_after_all() {
        let at = clock();
        let mut pages = Unsettled::new(SETTLE, at(0));
        let none = |seconds| Looks { found: None, none: Some(at(seconds)) };
        pages.published(0..1);
        assert!(pages.note(none(0), at(1)).is_empty());
        pages.published(1..2);
        // This look began before page 1 was published; page 0 is proven.
        assert!(pages.note(none(1), at(2)).is_empty());
        pages.published(2..3);
        assert_eq!(pages.note(Looks { found: Some(at(3)), none: Some(at(1)) }, at(4)), set(1..3));
        // They have their time like any other.
        pages.advance(at(5));
        pages.advance(at(5 + 16));
        assert_eq!(pages.take(100), set(1..3));
    }

    #[test]
    fn direct_io_that_came_and_went_between_two_ticks_is_not_overlooked() {
        let at = clock();
        let mut pages = Unsettled::new(SETTLE, at(0));
        pages.published(0..5);
        assert_eq!(pages.note(Looks { found: Some(at(1)), none: Some(at(2)) }, at(3)), set(0..5));
        assert!(!pages.at_once(), "a request may still be under way");
        pages.note(Looks { found: Some(at(1)), none: Some(at(18)) }, at(18));
        assert!(!pages.at_once());
        pages.note(Looks { found: Some(at(1)), none: Some(at(18)) }, at(19));
        assert!(pages.at_once());
    }

    #[test]
    fn what_was_published_before_all_requests_came_to_an_end_is_due_at_once() {
        let at = clock();
        let mut pages = Unsettled::new(SETTLE, at(0));
        pages.note(found(at(0)), at(0));
        pages.published(0..4);
        pages.close(at(3));
        pages.published(3..6);
        pages.drained(at(3));
        assert_eq!(pages.take(100), set(0..3));
        pages.close(at(4));
        assert!(!pages.has_due());
        pages.drained(at(4));
        assert_eq!(pages.take(100), set(3..6));
    }

    #[test]
    fn without_a_settle_time_nothing_is_unsettled() {
        let at = clock();
        let mut pages = Unsettled::new(Duration::ZERO, at(0));
        pages.published(0..5);
        assert!(pages.note(found(at(1)), at(1)).is_empty());
        assert!(pages.at_once());
        pages.published(0..5);
        pages.advance(at(2));
        assert!(!pages.has_due());
    }
}
