//! A VM's memory as a picture of some rows of signs, each for a stretch of pages. Owns what a sign stands for.

use std::collections::HashSet;

use memdex_tests::{PAGE, contract::State};

use crate::{
    figures,
    page_map::{Fingerprint, Page},
    stage::{Ink, Stage},
};

/// Signs in a row.
const COLUMNS: u64 = 96;
/// The sign of pages that were read again a moment ago.
const FRESH: (char, Ink) = ('▪', Ink::Good);

/// What a page is, for somebody who thinks of moving the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Absent,
    Zero,
    Shared,
    Own,
    Stale,
}

const KINDS: [Kind; 5] = [Kind::Absent, Kind::Zero, Kind::Shared, Kind::Own, Kind::Stale];

impl Kind {
    /// What a page is, seen from a host that holds the contents `theirs`.
    pub(crate) fn of(page: &Page, theirs: &HashSet<Fingerprint>) -> Self {
        match (page.state, page.fingerprint) {
            (State::Stale, _) => Self::Stale,
            (State::Absent, _) => Self::Absent,
            (State::Zero, _) => Self::Zero,
            (State::Current, Some(fingerprint)) if theirs.contains(&fingerprint) => Self::Shared,
            (State::Current, _) => Self::Own,
        }
    }

    const fn sign(self) -> (char, Ink) {
        match self {
            Self::Absent => (' ', Ink::Quiet),
            Self::Zero => ('·', Ink::Quiet),
            Self::Shared => ('▒', Ink::Shared),
            Self::Own => ('█', Ink::Own),
            Self::Stale => ('×', Ink::Bad),
        }
    }
}

/// The kinds of all pages of a VM, and how they are drawn.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    kinds: Vec<Kind>,
    rows: u64,
}

impl Picture {
    /// A picture of at most `rows` rows.
    pub(crate) const fn new(kinds: Vec<Kind>, rows: u64) -> Self {
        Self { kinds, rows }
    }

    /// What a page is.
    pub(crate) fn get(&self, page: u64) -> Kind {
        usize::try_from(page).ok().and_then(|page| self.kinds.get(page)).copied().unwrap_or(Kind::Absent)
    }

    /// Notes what a page is now; returns what it was.
    pub(crate) fn replace(&mut self, page: u64, kind: Kind) -> Kind {
        let held = usize::try_from(page).ok().and_then(|page| self.kinds.get_mut(page));
        held.map_or(Kind::Absent, |held| std::mem::replace(held, kind))
    }

    /// Pages that a sign stands for.
    fn scale(&self) -> u64 {
        (self.kinds.len() as u64).div_ceil(COLUMNS * self.rows).max(1)
    }

    /// The rows. A sign is what most of its pages are.
    pub(crate) fn draw(&self, stage: &Stage) -> Vec<String> {
        self.rows(stage, |_, pages| most(pages).sign())
    }

    /// The rows, for a picture that changes: a sign with any stale page says so, and so does one with any of `fresh`,
    /// pages that were read again a moment ago.
    pub(crate) fn draw_live(&self, stage: &Stage, fresh: impl Iterator<Item = u64>) -> Vec<String> {
        let scale = self.scale();
        let fresh: HashSet<u64> = fresh.map(|page| page / scale).collect();
        self.rows(stage, |index, pages| {
            if pages.contains(&Kind::Stale) {
                Kind::Stale.sign()
            } else if fresh.contains(&index) {
                FRESH
            } else {
                most(pages).sign()
            }
        })
    }

    fn rows(&self, stage: &Stage, sign: impl Fn(u64, &[Kind]) -> (char, Ink)) -> Vec<String> {
        let stretches = (0..).zip(self.kinds.chunks(self.scale() as usize));
        let signs: Vec<(char, Ink)> = stretches.map(|(index, pages)| sign(index, pages)).collect();
        let edge = stage.paint(Ink::Quiet, "│");
        let row = |row: &[(char, Ink)]| {
            let rest = " ".repeat(COLUMNS as usize - row.len());
            format!("{edge}{}{rest}{edge}", paint(stage, row))
        };
        signs.chunks(COLUMNS as usize).map(row).collect()
    }

    /// What the signs mean, for those that are there.
    pub(crate) fn legend(&self, stage: &Stage, other: &str) -> String {
        let size = figures::size(self.scale() * PAGE);
        format!(
            "{} only on this host   {} also on {other}   {} zero   blank: never touched   a sign is {size}",
            paint(stage, &[Kind::Own.sign()]),
            paint(stage, &[Kind::Shared.sign()]),
            paint(stage, &[Kind::Zero.sign()]),
        )
    }

    /// What the signs of a picture that changes mean.
    pub(crate) fn live_legend(stage: &Stage) -> String {
        format!(
            "{} written, not read again yet (stale)   {} read again within the last second",
            paint(stage, &[Kind::Stale.sign()]),
            paint(stage, &[FRESH]),
        )
    }
}

/// The kind of most of these pages.
fn most(pages: &[Kind]) -> Kind {
    let count = |kind: &Kind| pages.iter().filter(|page| *page == kind).count();
    KINDS.into_iter().max_by_key(count).unwrap_or(Kind::Absent)
}

/// Signs as text; neighbours of one colour in one go.
fn paint(stage: &Stage, signs: &[(char, Ink)]) -> String {
    signs
        .chunk_by(|a, b| a.1 == b.1)
        .map(|run| stage.paint(run[0].1, &run.iter().map(|(sign, _)| sign).collect::<String>()))
        .collect()
}

/// A bar of parts in proportion, each at least a sign wide if it is not nothing.
pub(crate) fn bar(stage: &Stage, parts: &[(Kind, u64)], width: u64) -> String {
    let total: u64 = parts.iter().map(|(_, size)| size).sum();
    let mut signs = Vec::new();
    for (kind, size) in parts.iter().filter(|(_, size)| *size > 0) {
        let signs_of_it = (size * width + total / 2) / total;
        signs.extend(std::iter::repeat_n(kind.sign(), signs_of_it.max(1) as usize));
    }
    signs.truncate(width as usize);
    paint(stage, &signs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_is_what_most_pages_are() {
        use Kind::{Own, Shared, Zero};
        assert_eq!(most(&[Zero, Own, Own, Shared]), Own);
        assert_eq!(most(&[Zero, Zero, Own]), Zero);
    }

    #[test]
    fn the_kind_tells_what_a_move_would_do() {
        let page = |state, fingerprint| Page { page: 0, state, fingerprint };
        let theirs = HashSet::from([[1; 32]]);
        assert_eq!(Kind::of(&page(State::Current, Some([1; 32])), &theirs), Kind::Shared);
        assert_eq!(Kind::of(&page(State::Current, Some([2; 32])), &theirs), Kind::Own);
        assert_eq!(Kind::of(&page(State::Stale, Some([1; 32])), &theirs), Kind::Stale);
        assert_eq!(Kind::of(&page(State::Zero, None), &theirs), Kind::Zero);
    }
}
