//! The map against a model that is too simple to be wrong.

use proptest::prelude::*;

use memdex_wire::page::PageState;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ModelPage {
    content: Option<Content>,
    stale: bool,
    unsettled: bool,
    generation: u64,
}

const UNKNOWN: ModelPage = ModelPage { content: None, stale: true, unsettled: false, generation: 0 };

#[derive(Debug, Clone)]
enum Step {
    Stale(u32, u32),
    Publish(u32, bool, Vec<Option<Content>>),
    Fill(bool, Content),
    Settle(u32, u32, bool),
    Compact,
    Relayout(u32, u32),
}

impl ModelPage {
    fn may_unsettle(&self) -> bool {
        !self.stale && self.content != Some(Content::Absent)
    }
}

fn layout(pages: u32) -> Arc<Layout> {
    use crate::{
        units::Hva,
        vm::descriptor::{Backing, Region},
    };
    let region = |start, pages: u32| Region {
        name: "ram".into(),
        start: Hva(start),
        len: u64::from(pages) * 4096,
        backing: Backing::Anonymous,
        mapping_page_size: 4096,
    };
    Arc::new(Layout::of(&[region(0, pages / 3), region(1 << 40, pages - pages / 3)]))
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        Just(Content::Absent),
        Just(Content::Zero),
        (0u8..5).prop_map(|n| Content::Fingerprint(Fingerprint::new([n; 32]))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u32..1400, 0u32..600).prop_map(|(start, len)| Step::Stale(start, len)),
        8 => (0u32..1400, any::<bool>(), prop::collection::vec(prop::option::weighted(0.9, content()), 1..40))
            .prop_map(|(first, settled, contents)| Step::Publish(first, settled, contents)),
        1 => (any::<bool>(), content()).prop_map(|(settled, content)| Step::Fill(settled, content)),
        2 => (0u32..1400, 0u32..600, any::<bool>()).prop_map(|(start, len, settled)| Step::Settle(start, len, settled)),
        1 => Just(Step::Compact),
        1 => (1u32..1500, 0u32..1500).prop_map(|(pages, keep)| Step::Relayout(pages, keep)),
    ]
}

fn check(map: &PageMap, model: &[ModelPage]) -> Result<(), TestCaseError> {
    let mut counts = PageCounts { total: model.len() as u64, ..PageCounts::default() };
    let mut held_counts = counts;
    for (page, expected) in model.iter().enumerate() {
        let view = map.page(page as u32);
        let held = match (expected.stale, expected.content) {
            (true, _) | (_, None) => PageState::Stale,
            (false, Some(Content::Absent)) => PageState::Absent,
            (false, Some(Content::Zero)) => PageState::Zero,
            (false, Some(Content::Fingerprint(_))) => PageState::Current,
        };
        let state = if expected.unsettled { PageState::Stale } else { held };
        for (state, counts) in [(state, &mut counts), (held, &mut held_counts)] {
            match state {
                PageState::Stale => counts.stale += 1,
                PageState::Absent => counts.absent += 1,
                PageState::Zero => counts.zero += 1,
                PageState::Current => counts.current += 1,
            }
        }
        counts.unsettled += u64::from(expected.unsettled);
        let fingerprint = match expected.content {
            Some(Content::Fingerprint(fingerprint)) => Some(fingerprint),
            _ => None,
        };
        prop_assert_eq!(view.state, state, "page {}", page);
        prop_assert_eq!(view.held, held, "page {}", page);
        prop_assert_eq!(view.fingerprint, fingerprint, "page {}", page);
        // Compacting may make a generation later, never earlier: a reader looks once too often at most.
        prop_assert!(view.generation.0 >= expected.generation, "page {}", page);
        prop_assert!(view.generation <= map.generation());
    }
    prop_assert_eq!(map.counts(), counts);
    prop_assert_eq!(map.held_counts(), held_counts);
    let unsettled: RoaringBitmap =
        (0..model.len() as u32).filter(|page| model[*page as usize].unsettled).collect();
    prop_assert_eq!(map.unsettled(0..u32::MAX), unsettled);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_map_agrees_with_the_model_and_snapshots_never_move(steps in prop::collection::vec(step(), 1..40)) {
        let mut map = PageMap::new(layout(1300));
        let mut model = vec![UNKNOWN; 1300];
        let mut kept = Vec::new();
        for step in steps {
            let before = map.generation();
            kept.push((map.snapshot(), map.clone(), model.clone()));
            match step {
                Step::Stale(start, len) => {
                    let run = start..start + len;
                    let marked = map.mark_stale(std::slice::from_ref(&run));
                    let mut expected = 0;
                    for page in model.iter_mut().skip(start as usize).take(len as usize) {
                        expected += u64::from(!page.stale);
                        page.stale = true;
                        page.unsettled = false;
                    }
                    prop_assert_eq!(marked, expected);
                    prop_assert_eq!(map.generation() > before, expected > 0);
                }
                Step::Publish(first, settled, mut contents) => {
                    contents.truncate(model.len().saturating_sub(first as usize));
                    let mut changes = Vec::new();
                    map.publish(map.next_generation(), settled, first, &contents, &mut changes);
                    apply(&mut model, settled, first, &contents, map.generation(), &changes)?;
                }
                Step::Fill(settled, content) => {
                    let contents = vec![Some(content); model.len()];
                    let mut changes = Vec::new();
                    map.publish(map.next_generation(), settled, 0, &contents, &mut changes);
                    apply(&mut model, settled, 0, &contents, map.generation(), &changes)?;
                }
                Step::Settle(start, len, settled) => {
                    map.set_settled(std::slice::from_ref(&(start..start + len)), settled);
                    for page in model.iter_mut().skip(start as usize).take(len as usize) {
                        page.unsettled = !settled && page.may_unsettle();
                    }
                }
                Step::Compact => map.compact(),
                Step::Relayout(pages, keep) => {
                    let gone = map.relayout(layout(pages), keep);
                    let keep = (keep as usize).min(model.len()).min(pages as usize);
                    let lost = model[keep..]
                        .iter()
                        .filter(|page| matches!(page.content, Some(Content::Fingerprint(_))));
                    prop_assert_eq!(gone.len(), lost.count());
                    model.truncate(keep);
                    model.resize(pages as usize, UNKNOWN);
                    prop_assert_eq!(map.snapshot().record_count(Some(before)), u64::from(pages));
                }
            }
            check(&map, &model)?;
        }
        for (snapshot, at, model) in kept {
            check(&at, &model)?;
            let records: Vec<_> = snapshot.records(None).collect();
            prop_assert_eq!(records.len(), model.len());
            prop_assert_eq!(snapshot.counts(), at.counts());
            for record in records {
                let view = at.page(record.page as u32);
                prop_assert_eq!(record.state, view.state);
                prop_assert_eq!(record.fingerprint, view.fingerprint);
            }
            let stale = snapshot.in_state(0..snapshot.pages(), &[PageState::Stale]);
            prop_assert_eq!(stale.len(), snapshot.held_counts().stale);
        }
    }
}

fn apply(
    model: &mut [ModelPage],
    settled: bool,
    first: u32,
    contents: &[Option<Content>],
    generation: Generation,
    changes: &[Change],
) -> Result<(), TestCaseError> {
    let print = |content| match content {
        Some(Content::Fingerprint(fingerprint)) => Some(fingerprint),
        _ => None,
    };
    let mut expected = Vec::new();
    for (page, content) in model.iter_mut().enumerate().skip(first as usize).zip(contents) {
        let ((number, page), Some(content)) = (page, content) else { continue };
        page.stale = false;
        if page.content != Some(*content) {
            let (before, after) = (print(page.content), print(Some(*content)));
            if before != after {
                expected.push(Change { page: number as u32, before, after });
            }
            page.content = Some(*content);
            page.generation = generation.0;
        }
        page.unsettled = !settled && page.may_unsettle();
    }
    prop_assert_eq!(changes, &expected[..]);
    Ok(())
}

#[test]
fn changed_since_names_exactly_what_changed_and_what_is_in_doubt() {
    let mut map = PageMap::new(layout(2000));
    let mut changes = Vec::new();
    let content = |n| Some(Content::Fingerprint(Fingerprint::new([n; 32])));
    map.publish(map.next_generation(), true, 0, &vec![Some(Content::Zero); 2000], &mut changes);
    map.publish(map.next_generation(), true, 10, &[content(1), content(2)], &mut changes);
    let since = map.generation();
    map.mark_stale(&[10..12, 100..101]);
    map.publish(map.next_generation(), true, 10, &[content(1), content(3)], &mut changes);
    let pages: Vec<_> =
        map.snapshot().records(Some(since)).map(|record| (record.page, record.state)).collect();
    assert_eq!(pages, [(11, PageState::Current), (100, PageState::Stale)]);
    assert_eq!(map.snapshot().changed_since(since).iter().collect::<Vec<_>>(), [11]);
}

#[test]
fn a_future_generation_gets_the_whole_map() {
    let map = PageMap::new(layout(600));
    assert_eq!(map.snapshot().record_count(Some(Generation(99))), 600);
}

#[test]
fn an_all_zero_vm_takes_next_to_no_memory() {
    let mut map = PageMap::new(layout(1 << 20));
    map.publish(map.next_generation(), true, 0, &vec![Some(Content::Zero); 1 << 20], &mut Vec::new());
    assert!(map.chunks.iter().all(|chunk| chunk.uniform_state() == Some(PageState::Zero)));
}
