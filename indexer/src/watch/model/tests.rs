//! The protocol as it is, and with each of its rules broken.

use stateright::Checker;

use super::*;

/// Set it to 1, 2, …: so many more events in each of the models. Each step takes some ten times as long.
const SIZE: &str = "MEMDEX_MODEL_SIZE";

const NOTHING: Budget = Budget { writes: 0, zeros: 0, touches: 0, discards: 0, remaps: 0, vague: 0 };

fn more() -> u32 {
    std::env::var(SIZE).ok().and_then(|size| size.parse().ok()).unwrap_or(0)
}

/// Explores all of a model and demands that every promise holds.
fn holds(name: &str, system: System) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let began = std::time::Instant::now();
    let checker = system.checker().threads(threads).spawn_bfs().join();
    println!(
        "{name}: {} states, {} steps, {} deep, {:.1?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        began.elapsed()
    );
    checker.assert_properties();
}

/// Explores a model with a rule broken and demands that each of the `promises` is found not to hold.
fn catches(system: System, promises: &[&'static str]) {
    let broken = system.broken;
    let checker = system.checker().spawn_bfs().join();
    for promise in promises {
        let path = checker.discovery(promise);
        let path = path.unwrap_or_else(|| panic!("{broken:?} goes by unnoticed by \"{promise}\""));
        println!("{broken:?} breaks \"{promise}\":");
        for action in path.into_actions() {
            println!("  {action:?}");
        }
    }
}

#[test]
fn one_writer_and_a_balloon_over_two_pages() {
    let get = |n: &str, d: u32| std::env::var(n).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
    let budget = Budget { writes: get("W", 1), discards: get("D", 0), remaps: get("R", 0), touches: get("T", 0), vague: get("V", 0), zeros: 0 };
    let pages = get("P", 1);
    holds("x", System::new(&vec![pages; get("REG", 1) as usize], get("N", 1) as usize, budget));
}

#[test]
fn one_writer_and_a_region_mapped_anew_while_batches_overlap() {
    let budget = Budget { writes: 2 + more(), remaps: 1, ..NOTHING };
    holds("one writer, remap", System::new(&[2], 1, budget));
}

#[test]
fn two_writers_at_the_same_pages() {
    let budget = Budget { writes: 2 + more(), ..NOTHING };
    holds("two writers", System::new(&[2], 2, budget));
}

#[test]
fn rule_arm_before_read() {
    let budget = Budget { writes: 1, ..NOTHING };
    catches(System { broken: Break::ReadBeforeArm, ..System::new(&[1], 1, budget) }, &["nothing is lost"]);
}
