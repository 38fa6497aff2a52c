//! How each kind of write is done. Owns the commands to the guest; never looks at the map.

use memdex_tests::{Scratch, Tiny};

/// Guest page at which memory is plugged in.
const PLUGGED: u64 = 8192;
/// Pages of what is plugged in.
pub(crate) const PLUGGED_PAGES: u64 = 300;

/// A kind of write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The guest writes.
    Guest,
    /// The VMM writes, as device emulation does.
    Vmm,
    /// The kernel writes: read(2).
    Read,
    /// The kernel writes: a read by io_uring.
    Uring,
    /// fallocate(PUNCH_HOLE): a balloon.
    PunchHole,
    /// A hole is punched, and then the VMM reads the pages: they are there again, all zero, and as protected as they were.
    Refilled,
    /// A hole is punched, and then the kernel makes a huge page of what is left and the hole, as khugepaged does.
    Collapsed,
    /// The guest writes, and then a neighbour in the same huge page is discarded: the kernel splits the huge page, and takes all of it out
    /// of the page table.
    Split,
    /// madvise(MADV_REMOVE).
    MadviseRemove,
    /// madvise(MADV_DONTNEED).
    MadviseDontneed,
    /// A disk writes: direct I/O.
    DirectIo,
    /// The kernel writes into a buffer that is registered with an io_uring.
    RegisteredBuffer,
    /// The guest writes memory that was plugged in.
    Hotplugged,
    /// The guest writes after the VMM has forked.
    AfterFork,
    /// A fork of the VMM writes.
    ByFork,
    /// Another process that maps the RAM file writes.
    Foreign,
    /// The VMM maps the same file in the same place once more, and writes.
    MappedAgain,
    /// The VMM maps another file in the same place.
    MappedOther,
    /// The VMM moves the memory to other addresses (mremap), and writes.
    Relocated,
    /// The VMM maps fresh anonymous memory in the same place.
    Replaced,
}

/// What a kind needs between its beginning and its end.
#[derive(Default)]
pub(crate) struct Props {
    writer: Option<Tiny>,
}

impl Kind {
    /// Whether it changes more than its own pages, or what is said of the VM, so that nothing can be done beside it.
    pub(crate) fn alone(self) -> bool {
        !matches!(
            self,
            Self::Guest
                | Self::Vmm
                | Self::Read
                | Self::Uring
                | Self::PunchHole
                | Self::Refilled
                | Self::MadviseRemove
                | Self::MadviseDontneed
        )
    }

    /// Whether all of slot 0 changes.
    pub(crate) fn changes_all(self) -> bool {
        matches!(self, Self::MappedOther | Self::Replaced)
    }

    /// Whether the pages are those of the memory that is plugged in, from its start.
    pub(crate) fn plugs(self) -> bool {
        self == Self::Hotplugged
    }

    /// What comes before the write, and must have been noticed by then.
    pub(crate) fn prepare(self, scratch: &Scratch, guest: &mut Tiny, file: &str, pages: (u64, u64)) -> Props {
        let (first, count) = pages;
        let mut props = Props::default();
        match self {
            Self::Uring => drop(guest.run(&format!("uring open {file}"))),
            Self::RegisteredBuffer => {
                guest.run(&format!("uring open {file}"));
                guest.run(&format!("uring register {first} {count}"));
            }
            Self::DirectIo => drop(guest.run(&format!("disk open {file}"))),
            Self::Hotplugged => {
                guest.run(&format!("slot add 1 {PLUGGED} {PLUGGED_PAGES}"));
                guest.run(&format!("poke {PLUGGED} {PLUGGED_PAGES} 77"));
            }
            Self::AfterFork | Self::ByFork => drop(guest.run("fork")),
            Self::Foreign => {
                let mut writer = Tiny::writer_to(scratch, guest);
                writer.run("map");
                props.writer = Some(writer);
            }
            _ => {}
        }
        props
    }

    /// The write. Afterwards every page of `pages` holds something else than before.
    pub(crate) fn write(self, guest: &mut Tiny, props: &mut Props, pages: (u64, u64), seed: u32) {
        let (first, count) = pages;
        let mut run = |command: String| drop(guest.run(&command));
        match self {
            Self::Guest | Self::AfterFork => run(format!("write {first} {count} {seed}")),
            Self::Vmm => run(format!("poke {first} {count} {seed}")),
            Self::Split => {
                run(format!("write {first} {count} {seed}"));
                run(format!("punch 0 {} 4", first + 2 * count));
            }
            Self::Read => run(format!("fill {first} {count}")),
            Self::Uring => run(format!("uring read {first} {count}")),
            Self::PunchHole => run(format!("punch 0 {first} {count}")),
            Self::Refilled => {
                run(format!("punch 0 {first} {count}"));
                run(format!("peek {first} {count}"));
            }
            Self::Collapsed => {
                run(format!("punch 0 {first} {count}"));
                run(format!("collapse 0 {first}"));
            }
            Self::MadviseRemove => run(format!("madvise 0 {first} {count} remove")),
            Self::MadviseDontneed => run(format!("madvise 0 {first} {count} dontneed")),
            Self::DirectIo => {
                run(format!("disk pread {first} {count}"));
                run("disk wait".to_owned());
            }
            Self::RegisteredBuffer => run(format!("uring fixed {first} {count}")),
            Self::Hotplugged => run(format!("write {PLUGGED} {count} {seed}")),
            Self::ByFork => run(format!("child poke {first} {count} {seed}")),
            Self::Foreign => {
                let writer = props.writer.as_mut().expect("made before");
                writer.run(&format!("poke {first} {count} {seed}"));
            }
            Self::MappedAgain => {
                run("remap 0".to_owned());
                run(format!("poke {first} {count} {seed}"));
            }
            Self::MappedOther => run("remap 0 other".to_owned()),
            Self::Relocated => {
                run("relocate 0".to_owned());
                run(format!("poke {first} {count} {seed}"));
            }
            Self::Replaced => run("remap 0".to_owned()),
        }
    }

    /// Undoes what `prepare` did.
    pub(crate) fn end(self, guest: &mut Tiny, props: Props) {
        drop(props);
        match self {
            Self::Uring | Self::RegisteredBuffer => drop(guest.run("uring close")),
            Self::DirectIo => drop(guest.run("disk close")),
            Self::Hotplugged => drop(guest.run("slot del 1")),
            Self::AfterFork | Self::ByFork => drop(guest.run("child end")),
            _ => {}
        }
    }
}
