//! The protocol as it is, and with each of its rules broken.

use stateright::Checker;

use super::*;

/// Set it to 1, 2, …: so many more writes in each of the models. Each takes some ten times as long as the one before.
const SIZE: &str = "MEMDEX_MODEL_SIZE";

const NOTHING: Budget = Budget {
    writes: 0,
    zeros: 0,
    touches: 0,
    discards: 0,
    remaps: 0,
    refaults: 0,
    vague: 0,
    migrations: 0,
    zaps: 0,
    clears: 0,
};

fn writes(writes: u32) -> Budget {
    let more = std::env::var(SIZE).ok().and_then(|size| size.parse().ok()).unwrap_or(0);
    Budget { writes: writes + more, ..NOTHING }
}

/// Explores all of a model and demands that every promise holds.
fn holds(system: System) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let size = format!("{:?} pages, {} writers, {:?}", system.regions, system.writers, system.budget);
    let checker = system.checker().threads(threads).spawn_bfs().join();
    println!(
        "{size}: {} states, {} steps between them, {} deep",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

/// Explores a model with a rule broken and demands that the broken promise is found.
fn catches(broken: Break, promise: &'static str, system: System) {
    let checker = System { broken, ..system }.checker().spawn_bfs().join();
    let path = checker.discovery(promise);
    let path = path.unwrap_or_else(|| panic!("{broken:?} goes by unnoticed by \"{promise}\""));
    println!("{broken:?} breaks \"{promise}\":");
    for action in path.into_actions() {
        println!("  {action:?}");
    }
}

const LOST: &str = "nothing is lost";
const PROMISED: &str = "doubt is where it is promised";
const CHECKED: &str = "checked";

#[test]
fn one_writer_over_two_pages() {
    holds(System::new(&[2], 1, Budget { zeros: 1, ..writes(2) }));
}

#[test]
fn one_writer_and_a_balloon_over_two_pages() {
    holds(System::new(&[2], 1, Budget { discards: 1, ..writes(1) }));
}

#[test]
fn a_writer_whose_page_is_armed_again_before_its_store() {
    holds(System::new(&[1], 1, Budget { discards: 1, refaults: 1, ..writes(1) }));
}

#[test]
fn a_region_mapped_anew_while_batches_overlap() {
    holds(System::new(&[2], 1, Budget { remaps: 1, ..writes(1) }));
}

#[test]
fn one_of_two_regions_mapped_anew() {
    holds(System::new(&[1, 1], 1, Budget { remaps: 1, ..writes(1) }));
}

#[test]
fn a_balloon_and_a_region_mapped_anew() {
    holds(System::new(&[1], 1, Budget { discards: 1, remaps: 1, ..writes(1) }));
}

#[test]
fn two_writers_over_two_pages() {
    holds(System::new(&[2], 2, writes(2)));
}

#[test]
fn two_writers_at_one_page_that_is_armed_again_before_their_stores() {
    holds(System::new(&[1], 2, Budget { refaults: 1, ..writes(2) }));
}

#[test]
fn pages_that_a_read_brings_in_while_a_write_is_on_its_way() {
    holds(System::new(&[1], 1, Budget { discards: 1, touches: 1, ..writes(1) }));
}

#[test]
fn marks_that_name_no_page() {
    holds(System::new(&[1], 1, Budget { discards: 1, vague: 2, ..writes(2) }));
}

#[test]
fn a_sync_that_does_not_wait_for_writes_on_their_way() {
    holds(System { sync: true, promise: Promise::Scan, ..System::new(&[1], 1, writes(2)) });
}

#[test]
fn faults_that_take_longer_than_anybody_waits() {
    let budget = Budget { discards: 1, ..writes(1) };
    holds(System { stalls: true, audits: true, promise: Promise::Audit, ..System::new(&[1], 2, budget) });
}

#[test]
fn no_marks_at_all() {
    let budget = Budget { discards: 1, touches: 1, ..writes(2) };
    holds(System { marks: false, audits: true, promise: Promise::Audit, ..System::new(&[1], 1, budget) });
}

/// All at once.
#[test]
#[ignore = "takes a minute, and more with a larger size; see CONTRIBUTING.md"]
fn two_pages_a_balloon_and_a_region_mapped_anew() {
    holds(System::new(&[2], 1, Budget { discards: 1, remaps: 1, ..writes(1) }));
}

#[test]
fn reading_before_arming_is_caught() {
    catches(Break::ReadBeforeArm, LOST, System::new(&[1], 1, writes(1)));
}

#[test]
fn clearing_the_mark_after_reading_is_caught() {
    catches(Break::ClearMark, PROMISED, System::new(&[1], 1, writes(1)));
    catches(Break::ClearMark, CHECKED, System::new(&[1], 1, Budget { discards: 1, ..NOTHING }));
}

#[test]
fn publishing_without_a_check_is_caught() {
    catches(Break::PublishUnchecked, CHECKED, System::new(&[1], 1, writes(1)));
}

#[test]
fn a_lost_mark_without_a_scan_is_caught() {
    catches(Break::LoseMark, PROMISED, System::new(&[1], 1, Budget { vague: 1, ..writes(1) }));
}

#[test]
fn scanning_only_once_for_a_mark_without_a_page_is_caught() {
    catches(Break::ScanOnce, PROMISED, System::new(&[1], 1, Budget { vague: 1, ..writes(1) }));
}

#[test]
fn publishing_what_was_read_of_an_earlier_mapping_is_caught() {
    catches(Break::IgnoreEpoch, PROMISED, System::new(&[2], 1, Budget { remaps: 1, ..NOTHING }));
}

#[test]
fn reading_before_a_scan_has_seen_the_write_is_caught() {
    catches(Break::SpendMark, PROMISED, System::new(&[1], 1, writes(1)));
}

#[test]
fn reading_during_a_discard_is_caught() {
    catches(Break::ReadDiscarding, PROMISED, System::new(&[1], 1, Budget { discards: 1, ..NOTHING }));
}

#[test]
fn believing_what_is_protected_where_nobody_tells_of_discards_is_caught() {
    let budget = Budget { discards: 1, touches: 1, ..NOTHING };
    let deaf = System { marks: false, audits: true, promise: Promise::Audit, ..System::new(&[1], 1, budget) };
    catches(Break::TrustProtection, LOST, deaf);
}

/// Soft-dirty bits, of which the mark alone has to tell what was lost.
fn soft_dirty(regions: &[u32], writers: usize, budget: Budget) -> System {
    System { whole: true, promise: Promise::Mark, ..System::new(regions, writers, budget) }
}

#[test]
fn soft_dirty_two_writers_over_two_pages() {
    holds(soft_dirty(&[2], 2, writes(2)));
}

#[test]
fn soft_dirty_a_balloon_and_a_writer_whose_page_is_armed_again_before_its_store() {
    holds(soft_dirty(&[1], 1, Budget { discards: 1, refaults: 1, ..writes(1) }));
}

#[test]
fn soft_dirty_a_region_mapped_anew() {
    holds(soft_dirty(&[1], 1, Budget { remaps: 1, ..writes(1) }));
}

#[test]
fn soft_dirty_entries_that_are_reclaimed_and_read_again() {
    holds(soft_dirty(&[1], 1, Budget { zaps: 1, touches: 1, ..writes(2) }));
}

#[test]
fn soft_dirty_pages_under_migration_and_others_that_clear_bits() {
    holds(soft_dirty(&[1], 1, Budget { migrations: 1, clears: 1, ..writes(2) }));
}

#[test]
fn soft_dirty_bits_without_marks_are_caught() {
    let system = soft_dirty(&[1], 1, writes(2));
    catches(Break::Nothing, LOST, System { marks: false, audits: true, promise: Promise::Audit, ..system });
}

#[test]
fn clearing_while_a_batch_is_read_is_caught() {
    catches(Break::ClearUnderWay, LOST, soft_dirty(&[1], 1, writes(1)));
}

#[test]
fn throwing_away_the_marks_of_a_clearing_is_caught() {
    catches(Break::DropMarks, LOST, soft_dirty(&[1], 1, writes(2)));
}

#[test]
fn arming_a_page_that_is_migrated_is_caught() {
    catches(Break::IgnoreMigrations, LOST, soft_dirty(&[1], 1, Budget { migrations: 1, ..writes(2) }));
}

#[test]
fn reading_what_is_not_armed_is_caught() {
    catches(Break::ReadSpent, LOST, soft_dirty(&[1], 1, Budget { migrations: 1, clears: 1, ..writes(1) }));
}
