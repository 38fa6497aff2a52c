//! What is granted against what a guest can come to pay for it.

use proptest::prelude::*;

use super::*;

const PRICES: Prices = Prices { fault: 1000, arm_run: 500 };

fn at(start: Instant, milliseconds: u64) -> Instant {
    start + Duration::from_millis(milliseconds)
}

fn arm(cost: &mut GuestCost, pages: &RoaringBitmap, now: Instant) {
    let data: Vec<_> = runs(pages).collect();
    cost.armed(&data, now);
}

#[test]
fn arming_memory_for_the_first_time_is_free_and_a_write_is_counted_once() {
    let start = Instant::now();
    let mut cost = GuestCost::new(PRICES, 10_000, start);
    let all: RoaringBitmap = (0..1_000_000).collect();
    assert!(cost.purse(start).free(&all));
    arm(&mut cost, &all, start);
    let written: RoaringBitmap = (10..20).collect();
    assert_eq!(cost.seen_written(&written, start), 10);
    assert_eq!(cost.seen_written(&written, start), 0, "they are writable now");
    assert_eq!(cost.paid_ppm(at(start, 1000)), 10 + PRICES.arm_run / 1000);
    assert!(!cost.purse(start).free(&all));
    assert_eq!(cost.purse(start).first_time(&all).len(), 1_000_000 - 10);
    cost.forget(0..15);
    assert_eq!(cost.purse(start).first_time(&all).len(), 1_000_000 - 5);
}

#[test]
fn a_stop_at_attach_is_shown_and_holds_no_page_back() {
    let start = Instant::now();
    let mut cost = GuestCost::new(PRICES, 10_000, start);
    let pages: RoaringBitmap = (0..4).collect();
    cost.stopped(Duration::from_secs(1), start);
    assert_eq!(cost.paid_ppm(at(start, 1000)), 1_000_000);
    arm(&mut cost, &pages, start);
    cost.seen_written(&pages, start);
    assert_eq!(cost.purse(start).afford(&pages, Kind::Hot), pages);
}

#[test]
fn hot_pages_leave_half_of_the_bucket_to_the_others() {
    let start = Instant::now();
    let mut cost = GuestCost::new(PRICES, 10_000, start);
    let all: RoaringBitmap = (0..200_000).collect();
    arm(&mut cost, &all, start);
    cost.seen_written(&all, start);
    let mut purse = cost.purse(at(start, 1000));
    let hot = purse.afford(&all, Kind::Hot).len();
    let quiet = purse.afford(&(100_000..200_000).collect(), Kind::Quiet).len();
    // Two hundred milliseconds of faults in all.
    assert!((99_000..=100_000).contains(&hot) && (99_000..=100_000).contains(&quiet), "{hot} {quiet}");
}

#[test]
fn a_sync_overdraws_and_pays_back_in_ten_seconds() {
    let start = Instant::now();
    let mut cost = GuestCost::new(PRICES, 10_000, start);
    let all: RoaringBitmap = (0..1_000_000).collect();
    arm(&mut cost, &all, start);
    for _ in 0..5 {
        cost.seen_written(&all, start);
        arm(&mut cost, &all, start);
    }
    cost.seen_written(&all, start);
    assert!(cost.purse(at(start, 9_900)).afford(&all, Kind::Quiet).is_empty());
    assert!(!cost.purse(at(start, 10_100)).afford(&all, Kind::Quiet).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The guest writes whatever it likes whenever it likes, and whoever tracks it arms as much as is granted: in any stretch of time the guest pays
    /// at most its share of it, a burst, and one fault for each page that was armed when it began.
    #[test]
    fn no_guest_pays_more_than_its_budget(
        share_ppm in 100u32..100_000,
        steps in prop::collection::vec((0u64..3_000, 0u32..3000, 1u32..3000, any::<bool>()), 1..60),
    ) {
        let start = Instant::now();
        let mut cost = GuestCost::new(PRICES, share_ppm, start);
        let all: RoaringBitmap = (0..3000).collect();
        arm(&mut cost, &all, start);
        let mut stale = RoaringBitmap::new();
        let mut milliseconds = 0;
        let mut paid: Vec<(u64, u64, u64)> = Vec::new();
        for (wait, first, len, hot) in steps {
            milliseconds += wait;
            let now = at(start, milliseconds);
            let written: RoaringBitmap = (first..first + len).collect();
            let armed_before = cost.armed.len();
            let faults = cost.seen_written(&written, now);
            stale |= &written & &all;
            let granted = cost.purse(now).afford(&stale, if hot { Kind::Hot } else { Kind::Quiet });
            arm(&mut cost, &granted, now);
            stale -= &granted;
            let arming = runs(&granted).count() as u64 * PRICES.arm_run;
            paid.push((milliseconds, armed_before, faults * PRICES.fault + arming));
            // What is writable is not armed, and the other way round.
            prop_assert!(cost.armed.is_disjoint(&stale));
        }
        for (first, (from, armed, _)) in paid.iter().enumerate() {
            let mut sum = 0;
            for (until, _, amount) in &paid[first..] {
                sum += amount;
                let time = (until - from) * 1_000_000 + BURST.as_nanos() as u64;
                let budget = time as u128 * u128::from(share_ppm) / 1_000_000;
                prop_assert!(u128::from(sum) <= budget + u128::from(armed * PRICES.fault) + 1);
            }
        }
    }
}
