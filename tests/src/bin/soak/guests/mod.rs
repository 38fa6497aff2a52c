//! The kinds of guests, and what can be done to one of each.

mod qemu;
mod tiny;

use std::ops::Range;

use crate::{random::Random, world::World};

/// A running guest. Its process dies with the thread that started it.
pub(crate) trait Guest {
    /// Process of the VMM.
    fn pid(&self) -> u32;
    /// Bytes of RAM it has now.
    fn memory_bytes(&self) -> u64;
    /// Does one thing to it or has it done, while it runs.
    fn act(&mut self, random: &mut Random);
    /// Stops it: nothing is written from now on.
    fn pause(&mut self);
    /// Lets it go on.
    ///
    /// # Errors
    /// If KVM has given up on it: it can't, and what the VMM says of that.
    fn resume(&mut self) -> Result<(), String>;
}

/// The kinds; one keeper has each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A large KVM guest that writes fast, with each kind of RAM and of KVM's own dirty log.
    Large,
    /// Another one, with other choices.
    Other,
    /// A small one whose memory slots come, move and go.
    Slots,
    /// Linux in QEMU: boots, writes files, reads and writes a disk, has a balloon that moves.
    Linux,
    /// Firmware in QEMU: is reset, has memory plugged in, does not live long.
    Firmware,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Large, Self::Other, Self::Slots, Self::Linux, Self::Firmware];

    /// How often a guest is paused and judged before the next one comes.
    pub(crate) const fn rounds(self) -> Range<u64> {
        match self {
            Self::Large | Self::Other => 20..120,
            Self::Slots => 10..60,
            Self::Linux => 60..240,
            Self::Firmware => 3..20,
        }
    }

    /// Starts a guest; `number` tells it from the others of its kind.
    pub(crate) fn start(self, world: &World<'_>, number: u64, random: &mut Random) -> Box<dyn Guest> {
        let prefix = format!("{}{}", ["a", "b", "s", "l", "f"][self as usize], number % 1000);
        match self {
            Self::Large | Self::Other | Self::Slots => {
                Box::new(tiny::TinyGuest::start(world, &prefix, self == Self::Slots, random))
            }
            Self::Linux | Self::Firmware => {
                Box::new(qemu::QemuGuest::start(world, &prefix, self == Self::Linux, random))
            }
        }
    }
}
