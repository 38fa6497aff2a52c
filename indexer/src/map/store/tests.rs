//! The file against a model, as it is after every single step of the daemon.

use std::{cell::RefCell, path::Path, rc::Rc, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::{
    map::{Content, Layout, PageMap, PageView},
    units::Generation,
    vm::descriptor::{ProcessId, Region},
    watch::process::identify,
};
use memdex_wire::{Fingerprint, page::PageState};

/// This process stands for the VMM.
fn vmm() -> ProcessId {
    identify(std::process::id()).unwrap()
}

fn regions(pages: u32) -> Vec<Region> {
    use crate::{units::Hva, vm::descriptor::Backing};
    let region = |start, pages: u32| Region {
        name: "ram".into(),
        start: Hva(start),
        len: u64::from(pages) * 4096,
        backing: Backing::Anonymous,
        mapping_page_size: 4096,
    };
    vec![region(0, pages / 3), region(1 << 40, pages - pages / 3)]
}

fn one(run: crate::units::PageRange) -> [crate::units::PageRange; 1] {
    [run]
}

fn layout(pages: u32) -> Arc<Layout> {
    Arc::new(Layout::of(&regions(pages)))
}

fn sealed(folder: &MapFolder, pages: u32) -> PageMap {
    let map = PageMap::on(Some(folder.create(vmm()).unwrap()), layout(pages));
    map.seal(&Owner::new("vm", vmm(), None, &regions(pages)));
    map
}

fn resume(folder: &MapFolder, pages: u32) -> Result<PageMap, String> {
    let left = folder.find(vmm()).ok_or("nothing is there")??;
    Ok(PageMap::resume(left, layout(pages), |_| false))
}

fn file(folder: &Path) -> PathBuf {
    folder.join(vmm().to_string())
}

/// Copies a file without its holes.
fn copy(from: &Path, to: &Path) {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    let (source, target) = (File::open(from).unwrap(), File::create(to).unwrap());
    target.set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
    let len = source.metadata().unwrap().len();
    target.set_len(len).unwrap();
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(data)).unwrap_or(len);
        let mut bytes = vec![0; (end - data) as usize];
        source.read_exact_at(&mut bytes, data).unwrap();
        target.write_all_at(&bytes, data).unwrap();
        at = end;
    }
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        Just(Content::Absent),
        Just(Content::Zero),
        (1u8..5).prop_map(|n| Content::Fingerprint(Fingerprint::new([n; 32]))),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Stale(u32, u32),
    Publish(u32, bool, Vec<Option<Content>>),
    Fill(Content),
    Settle(u32, u32, bool),
    Compact,
    Snapshot,
    Forget,
}

const PAGES: u32 = 1100;

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..PAGES, 0u32..40).prop_map(|(start, len)| Step::Stale(start, len)),
        6 => (0..PAGES, any::<bool>(), prop::collection::vec(prop::option::weighted(0.9, content()), 1..12))
            .prop_map(|(first, settled, contents)| Step::Publish(first, settled, contents)),
        1 => content().prop_map(Step::Fill),
        2 => (0..PAGES, 0u32..40, any::<bool>()).prop_map(|(start, len, settled)| Step::Settle(start, len, settled)),
        1 => Just(Step::Compact),
        3 => Just(Step::Snapshot),
        1 => Just(Step::Forget),
    ]
}

fn apply(map: &mut PageMap, step: &Step) {
    match step {
        Step::Stale(start, len) => drop(map.mark_stale(&one(*start..(start + len).min(PAGES)))),
        Step::Publish(first, settled, contents) => {
            let len = contents.len().min((PAGES - first) as usize);
            map.publish(map.next_generation(), *settled, *first, &contents[..len], &mut Vec::new());
        }
        Step::Fill(content) => {
            let contents = vec![Some(*content); 600];
            map.publish(map.next_generation(), true, 0, &contents, &mut Vec::new());
        }
        Step::Settle(start, len, settled) => {
            map.set_settled(&one(*start..(start + len).min(PAGES)), *settled);
        }
        Step::Compact => map.compact(),
        Step::Snapshot | Step::Forget => {}
    }
}

fn views(map: &PageMap) -> Vec<PageView> {
    (0..map.pages()).map(|page| map.page(page)).collect()
}

fn known(map: &PageMap, page: u32) -> Option<Option<Fingerprint>> {
    match map.inherited_state(page) {
        PageState::Stale => None,
        _ => Some(map.page(page).fingerprint),
    }
}

/// What the file says, taken up in the middle of a step that leads from one picture of the map to another.
fn check(found: &PageMap, before: &[PageView], after: &[PageView], generation: Generation) {
    assert!(found.generation() > generation);
    for (page, (before, after)) in before.iter().zip(after).enumerate() {
        let page = page as u32;
        let content = |view: &PageView| (view.held != PageState::Stale).then_some(view.fingerprint);
        if let Some(known) = known(found, page) {
            assert!(
                content(before) == Some(known) || content(after) == Some(known),
                "page {page} is known as {known:?}, but was {before:?} and becomes {after:?}"
            );
        }
        // A reader who has seen everything up to `generation` is told of a content that is not what it was then, whenever that is settled: either the
        // generation says so already, or what the page holds will be compared with what it held.
        let view = found.page(page);
        assert_eq!(view.held, PageState::Stale, "nothing is believed before it has been looked at");
        if view.fingerprint != before.fingerprint {
            assert!(
                view.generation > generation,
                "page {page}: {view:?} was {before:?}, seen up to {generation}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn after_every_step_each_page_is_stale_or_right(script in prop::collection::vec(steps(), 1..12)) {
        let (folder, copies) = (tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let mut map = sealed(&MapFolder::new(folder.path().join("maps")), PAGES);
        let source = file(&folder.path().join("maps"));
        let copied = MapFolder::new(copies.path().to_owned());
        std::fs::set_permissions(copies.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let target = file(copies.path());
        let mut kept = Vec::new();
        for step in script {
            match step {
                Step::Snapshot => kept.push(map.snapshot()),
                Step::Forget => kept.clear(),
                _ => {}
            }
            // What it comes to, on a map that is in no file.
            let mut rehearsal = map.clone();
            let before = views(&map);
            apply(&mut rehearsal, &step);
            let after = views(&rehearsal);
            drop(rehearsal);
            let generation = map.generation();
            let seen = Rc::new(RefCell::new(0_u32));
            let look = {
                let (source, target, copied, seen) = (source.clone(), target.clone(), copied.clone(), Rc::clone(&seen));
                let (before, after) = (before.clone(), after.clone());
                move || {
                    *seen.borrow_mut() += 1;
                    // Every one of the first, then fewer and fewer: long steps are alike in the middle.
                    if *seen.borrow() > 24 && !seen.borrow().is_multiple_of(29) {
                        return;
                    }
                    copy(&source, &target);
                    check(&resume(&copied, PAGES).unwrap(), &before, &after, generation);
                }
            };
            watching::every_step(look, || apply(&mut map, &step));
            prop_assert_eq!(views(&map), after.clone());
            copy(&source, &target);
            let found = resume(&copied, PAGES).unwrap();
            check(&found, &after, &after, generation);
            for page in 0..PAGES {
                let view = map.page(page);
                prop_assert_eq!(known(&found, page).is_some(), view.held != PageState::Stale);
            }
        }
    }
}

#[test]
fn the_next_one_finds_what_this_one_knew_and_so_does_the_one_after_it() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let folder = MapFolder::new(folder.path().join("maps"));
    let mut map = sealed(&folder, PAGES);
    let print = |n| Content::Fingerprint(Fingerprint::new([n; 32]));
    map.publish(map.next_generation(), true, 0, &vec![Some(Content::Zero); 1000], &mut Vec::new());
    map.publish(map.next_generation(), true, 3, &[Some(print(1)), Some(Content::Absent)], &mut Vec::new());
    map.publish(map.next_generation(), false, 700, &[Some(print(2))], &mut Vec::new());
    map.mark_stale(&one(20..30));
    let (since, generation) = (map.snapshot(), map.generation());
    drop((map, since));
    for round in 1..4 {
        let mut map = resume(&folder, PAGES).unwrap();
        assert_eq!(map.inherited_pages(), 990 - (round - 1));
        assert!(map.generation() > generation);
        assert_eq!(map.counts().stale, u64::from(PAGES), "nothing is believed before it has been looked at");
        assert_eq!(map.page(3).fingerprint, Some(Fingerprint::new([1; 32])));
        assert_eq!(
            map.snapshot().record_count(Some(generation)),
            map.counts().stale,
            "the numbers are what they were"
        );
        map.confirm(&one(40 + round as u32..41 + round as u32));
        // The next one has to look at it all the same.
        if round == 1 {
            map.confirm(&[3..5, 700..701]);
            assert_eq!((map.page(3).state, map.page(4).state), (PageState::Current, PageState::Absent));
            assert_eq!((map.page(700).state, map.page(700).held), (PageState::Stale, PageState::Current));
            assert_eq!(map.unsettled(0..PAGES).iter().collect::<Vec<_>>(), [700]);
        }
        map.mark_stale(&one(40 + round as u32..41 + round as u32));
        drop(map);
    }
}

#[test]
fn what_direct_io_may_have_changed_is_unsettled_for_the_next_one() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let folder = MapFolder::new(folder.path().join("maps"));
    let mut map = sealed(&folder, PAGES);
    let print = |n| Some(Content::Fingerprint(Fingerprint::new([n; 32])));
    // The first chunk is published as settled, the second one unsettled and settled later, the third one not at all.
    map.publish(
        map.next_generation(),
        true,
        3,
        &[print(1), Some(Content::Absent), Some(Content::Zero)],
        &mut Vec::new(),
    );
    map.publish(map.next_generation(), false, 600, &[print(2), print(3)], &mut Vec::new());
    map.set_settled(&one(600..601), true);
    let asked = RefCell::new(Vec::new());
    drop(map);
    let mut map = PageMap::resume(folder.find(vmm()).unwrap().unwrap(), layout(PAGES), |published| {
        asked.borrow_mut().push(published);
        published > 0
    });
    let now = crate::map::monotonic_seconds();
    assert!((now - 60..=now).contains(&asked.borrow()[0]), "{asked:?} at {now}");
    assert_eq!(asked.borrow()[1..], [0, 0]);
    assert!(map.unsettled(0..PAGES).is_empty(), "they are stale, all of them");
    map.confirm(&one(0..PAGES));
    assert_eq!(map.unsettled(0..PAGES).iter().collect::<Vec<_>>(), [3, 5, 601]);
    assert_eq!((map.page(600).state, map.page(4).state), (PageState::Current, PageState::Absent));
}

#[test]
fn what_is_damaged_foreign_or_half_done_is_not_believed() {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("maps");
    let maps = MapFolder::new(path.clone());
    let file = file(&path);
    let spoil = |what: &str, words: &str, spoil: &dyn Fn(&File)| {
        let mut map = sealed(&maps, PAGES);
        map.publish(
            map.next_generation(),
            true,
            0,
            &[Some(Content::Fingerprint(Fingerprint::new([1; 32])))],
            &mut Vec::new(),
        );
        drop(map);
        spoil(&OpenOptions::new().read(true).write(true).open(&file).unwrap());
        let error = resume(&maps, PAGES).err().unwrap_or_else(|| panic!("{what} was believed"));
        assert!(error.contains(words), "{what}: {error}");
    };
    use std::fs::OpenOptions;
    let word = |at: u64, value: u64| move |file: &File| file.write_all_at(&value.to_le_bytes(), at).unwrap();
    spoil("another format", "another version (format 2", &word(8, 2));
    spoil("garbage", "no map", &word(0, 77));
    spoil("half a layout", "layout was changing", &word(16, 3));
    spoil("a flipped bit in the header", "header is damaged", &word(136, 5));
    spoil("a long header", "header is damaged", &word(72, u64::MAX));
    spoil("other pages", "header is damaged", &word(40, 7));
    spoil("a generation from the future", "generations", &word(24, u64::MAX));
    spoil("a layout from the future", "generations", &word(32, 1 << 60));
    spoil("a slot that is not there", "table is damaged", &word(TABLE as u64, EACH | 4000));
    spoil("one slot twice", "table is damaged", &word(TABLE as u64 + 8, EACH));
    spoil("a chunk of another length", "table is damaged", &word(TABLE as u64, 3 << 10 | 7));
    spoil("cut off", "cut off", &|file| file.set_len(100).unwrap());
    spoil("without slots", "table is damaged", &|file| file.set_len(SLOTS as u64).unwrap());
    spoil("endless", "larger than it can be", &|file| file.set_len(1 << 40).unwrap());
    spoil("open to others", "alone", &|file| {
        file.set_permissions(std::fs::Permissions::from_mode(0o644)).unwrap();
    });
    spoil("another user's", "alone", &|file| {
        rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(1)), None).unwrap();
    });
    spoil("linked", "alone", &|_| drop(std::fs::hard_link(&file, path.join("link"))));
    std::fs::remove_file(path.join("link")).unwrap();
    spoil("a symbolic link", "opened", &|_| {
        std::fs::rename(&file, path.join("other")).unwrap();
        std::os::unix::fs::symlink(path.join("other"), &file).unwrap();
    });
    std::fs::remove_file(path.join("other")).unwrap();
    spoil("a folder that others can write", "only this user", &|_| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    });
    assert!(maps.create(vmm()).is_err(), "a map was put where others can write");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    // Whoever has it open has it alone.
    let map = sealed(&maps, PAGES);
    assert!(resume(&maps, PAGES).is_err());
    drop(map);
    resume(&maps, PAGES).unwrap();
}

#[test]
fn a_half_numbered_map_is_not_believed_and_a_sealed_one_is() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let folder = MapFolder::new(folder.path().join("maps"));
    let mut map = sealed(&folder, PAGES);
    map.publish(map.next_generation(), true, 0, &vec![Some(Content::Zero); PAGES as usize], &mut Vec::new());
    map.relayout(layout(2000), 300);
    drop(map);
    assert!(resume(&folder, 2000).unwrap_err().contains("layout was changing"));
    let mut map = sealed(&folder, PAGES);
    map.publish(map.next_generation(), true, 0, &vec![Some(Content::Zero); PAGES as usize], &mut Vec::new());
    map.relayout(layout(2000), 300);
    map.seal(&Owner::new("vm", vmm(), None, &regions(2000)));
    drop(map);
    assert_eq!(resume(&folder, 2000).unwrap().inherited_pages(), 300);
}

#[test]
fn files_of_processes_that_are_gone_are_swept_and_others_are_left_alone() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("maps");
    let maps = MapFolder::new(path.clone());
    let map = sealed(&maps, PAGES);
    for name in ["vm-4000000-5", ".vm-4000000-5", "vm-x-1", "notes"] {
        std::fs::write(path.join(name), "").unwrap();
    }
    maps.sweep();
    let mut left: Vec<_> = std::fs::read_dir(&path)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["notes".to_owned(), vmm().to_string(), "vm-x-1".to_owned()]);
    map.store().unwrap().remove();
    assert!(!file(&path).exists());
}

#[test]
fn room_that_snapshots_held_is_used_again() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let maps = MapFolder::new(folder.path().join("maps"));
    let mut map = sealed(&maps, 512 * 100);
    let print = |n: u32| Some(Content::Fingerprint(Fingerprint::new([(n % 251) as u8; 32])));
    for round in 0..40_u32 {
        let snapshot = map.snapshot();
        for chunk in 0..100 {
            map.publish(map.next_generation(), true, chunk * 512, &[print(round)], &mut Vec::new());
        }
        drop(snapshot);
    }
    let store = map.store().unwrap();
    let segments = store.room.lock().unwrap().segments.len();
    assert_eq!(segments, 2, "100 blocks and 100 copies");
    assert!((0..100).all(|chunk| map.page(chunk * 512).fingerprint == Some(Fingerprint::new([39; 32]))));
}

#[test]
fn a_map_that_was_only_looked_at_is_as_it_was() {
    const CHUNKS: u32 = 200;
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let maps = MapFolder::new(folder.path().join("maps"));
    let mut map = sealed(&maps, 512 * CHUNKS);
    let print = |n: u32| Some(Content::Fingerprint(Fingerprint::new([(n % 251 + 1) as u8; 32])));
    for chunk in 0..CHUNKS {
        let contents: Vec<_> = (0..512).map(|page| print(chunk + page)).collect();
        map.publish(map.next_generation(), true, chunk * 512, &contents, &mut Vec::new());
    }
    drop(map);
    let bytes = || std::fs::read(file(&folder.path().join("maps"))).unwrap();
    let before = bytes();
    for _ in 0..2 {
        drop(maps.find(vmm()).unwrap().unwrap());
        assert!(
            bytes() == before,
            "more blocks than are kept for the next one: the rest must not be thrown away"
        );
    }
    let map = resume(&maps, 512 * CHUNKS).unwrap();
    for page in 0..512 * CHUNKS {
        let Some(Content::Fingerprint(expected)) = print(page / 512 + page % 512) else { unreachable!() };
        assert_eq!(map.page(page).fingerprint, Some(expected), "page {page}");
    }
}
