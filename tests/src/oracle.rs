//! The independent judge: reads every page of a guest's RAM itself, hashes it with plain BLAKE3, and compares with what
//! memdex says. Owns the comparison; uses no code of memdex.

use std::fmt;

use crate::{
    Daemon, PAGE,
    address_space::{Mapping, Source, mappings, private_of_size},
    contract::{Coverage, Page, State, Vm},
};

/// Differences kept in a report.
const EXAMPLES: usize = 16;

/// What a comparison found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Pages compared.
    pub checked: u64,
    /// Pages in each state as the map showed them: absent, zero, current, stale.
    pub states: [u64; 4],
    /// Pages that differ.
    pub differing: u64,
    /// The first of them, in words.
    pub examples: Vec<String>,
}

impl Report {
    /// Fails the test unless every page was right and none stale.
    ///
    /// # Panics
    /// If a page differs.
    pub fn expect_exact(&self, context: &str) {
        assert!(self.differing == 0 && self.checked > 0, "{context}: {self}");
    }

    fn add(&mut self, page: &Page, problem: Option<String>) {
        self.checked += 1;
        self.states[page.state as usize] += 1;
        if let Some(problem) = problem {
            self.differing += 1;
            if self.examples.len() < EXAMPLES {
                let Page { page: number, region, offset, .. } = page;
                self.examples.push(format!("page {number} (region {region}, offset {offset:#x}): {problem}"));
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [absent, zero, current, stale] = self.states;
        write!(
            f,
            "{} of {} pages differ (map: {absent} absent, {zero} zero, {current} current, {stale} stale)",
            self.differing, self.checked
        )?;
        self.examples.iter().try_for_each(|example| write!(f, "\n  {example}"))
    }
}

/// Compares every page of a VM's map with its RAM. The guest must be paused and the map synced: a stale page counts as
/// a difference.
///
/// # Panics
/// If the map has not the shape of the contract, or the RAM can't be found.
#[must_use]
pub fn compare(daemon: &Daemon, vm: &Vm) -> Report {
    let vm = daemon.vm_of(vm.pid).unwrap_or_else(|| panic!("{} has vanished from the daemon", vm.name));
    compare_pages(&vm, &daemon.pages(&vm.id), false)
}

/// As [`compare`] for a map that nobody synced: stale pages are no difference, anything else the map claims must hold.
/// The guest must be paused.
///
/// # Panics
/// If the map has not the shape of the contract, or the RAM can't be found.
#[must_use]
pub fn compare_claims(daemon: &Daemon, vm: &Vm) -> Report {
    let vm = daemon.vm_of(vm.pid).unwrap_or_else(|| panic!("{} has vanished from the daemon", vm.name));
    compare_pages(&vm, &daemon.pages(&vm.id), true)
}

fn compare_pages(vm: &Vm, pages: &[Page], stale_is_fine: bool) -> Report {
    check_shape(vm, pages);
    let mut report = Report::default();
    for (page, truth) in pages.iter().zip(content(vm, pages)) {
        let problem = judge(page, truth.as_deref());
        report.add(page, problem.filter(|_| page.state != State::Stale || !stale_is_fine));
    }
    report
}

/// The content of every page of a paused VM, in the map's order: its hash in hex, None for zeros.
///
/// # Panics
/// If the RAM can't be found.
#[must_use]
pub fn content(vm: &Vm, pages: &[Page]) -> Vec<Option<String>> {
    let all = mappings(vm.pid);
    let source = |region: &Coverage| {
        Source::of(vm.pid, &mapping_of(region, pages[region.first_page as usize].offset, &all))
    };
    let sources: Vec<Source> = vm.coverage.iter().map(source).collect();
    pages.iter().map(|page| truth(page, &sources[page.region as usize])).collect()
}

/// Where the pages of a region can be read, by its coverage's own offset.
///
/// # Panics
/// If the RAM can't be found.
#[must_use]
pub fn source(vm: &Vm, region: &Coverage) -> Source {
    Source::of(vm.pid, &mapping_of(region, region.offset, &mappings(vm.pid)))
}

/// What a page holds: its hash in hex, None for zeros.
#[must_use]
pub fn truth(page: &Page, source: &Source) -> Option<String> {
    let mut bytes = [0; PAGE as usize];
    source.read(page.offset, &mut bytes)?;
    bytes.iter().any(|byte| *byte != 0).then(|| blake3::hash(&bytes).to_hex().to_string())
}

/// What a page's state claims, held against its bytes.
fn judge(page: &Page, truth: Option<&str>) -> Option<String> {
    match (page.state, &page.fingerprint, truth) {
        (State::Stale, ..) => Some("stale after sync".to_owned()),
        (State::Absent | State::Zero, None, None) => None,
        (State::Current, Some(shown), Some(truth)) if shown == truth => None,
        (state, shown, truth) => Some(format!(
            "map says {state:?} {} in generation {}, memory holds {}",
            shown.as_deref().unwrap_or("-"),
            page.generation,
            truth.unwrap_or("zeros")
        )),
    }
}

/// The promises of the contract that need no look at memory.
fn check_shape(vm: &Vm, pages: &[Page]) {
    let covered: u64 = vm.coverage.iter().map(|region| region.pages).sum();
    assert_eq!(vm.page_size, PAGE);
    assert_eq!(vm.memory_bytes, covered * PAGE, "memory_bytes and coverage disagree: {vm:?}");
    assert_eq!(pages.len() as u64, covered, "`pages` has not a line for each page: {vm:?}");
    let mut expected =
        vm.coverage.iter().enumerate().flat_map(|(index, region)| {
            (0..region.pages).map(move |i| (region.first_page + i, index as u32))
        });
    for page in pages {
        assert_eq!(expected.next(), Some((page.page, page.region)), "wrong order in `pages`");
        assert!(page.offset.is_multiple_of(PAGE));
    }
}

/// The mapping a region stands for: its file by name, anonymous memory by size. `first` is the offset of its first page.
///
/// # Panics
/// If there is none, or several could be it.
#[must_use]
pub fn mapping_of(region: &Coverage, first: u64, mappings: &[Mapping]) -> Mapping {
    let end = first + region.pages * PAGE;
    let name = region.region.trim_end_matches(" (deleted)").trim_start_matches('/');
    let of_file = |mapping: &&Mapping| {
        let path = mapping.path.trim_end_matches(" (deleted)").trim_start_matches('/');
        let covers = mapping.offset <= first && end <= mapping.offset + (mapping.end - mapping.start);
        mapping.shared && !path.is_empty() && path == name && covers
    };
    let by_name: Vec<&Mapping> = mappings.iter().filter(of_file).collect();
    if by_name.is_empty() {
        return private_of_size(mappings, region.pages)
            .unwrap_or_else(|| panic!("no private memory, or too many, for {region:?}: {mappings:#?}"));
    }
    // Memfds of one name are told apart by their size.
    let exact = by_name.iter().copied().filter(|mapping| mapping.pages() == region.pages);
    let exact: Vec<&Mapping> = exact.collect();
    let candidates = if exact.is_empty() { by_name } else { exact };
    // The same file mapped twice is still the same RAM.
    let same = candidates.windows(2).all(|two| two[0].same_file(two[1]));
    assert!(same, "several mappings could be region {region:?}: {candidates:#?}");
    candidates[0].clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(state: State, fingerprint: Option<&str>) -> Page {
        let fingerprint = fingerprint.map(str::to_owned);
        Page { page: 0, region: 0, offset: 0, state, fingerprint, generation: 1 }
    }

    #[test]
    fn only_the_truth_passes() {
        assert_eq!(judge(&page(State::Current, Some("ab")), Some("ab")), None);
        assert_eq!(judge(&page(State::Zero, None), None), None);
        assert_eq!(judge(&page(State::Absent, None), None), None);
        for (state, shown, truth) in [
            (State::Current, Some("ab"), Some("cd")),
            (State::Current, Some("ab"), None),
            (State::Current, None, None),
            (State::Current, None, Some("ab")),
            (State::Zero, None, Some("ab")),
            (State::Zero, Some("ab"), None),
            (State::Absent, None, Some("ab")),
            (State::Stale, Some("ab"), Some("ab")),
            (State::Stale, None, None),
        ] {
            assert!(judge(&page(state, shown), truth).is_some(), "{state:?} {shown:?} {truth:?}");
        }
    }
}
