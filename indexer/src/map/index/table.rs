//! One shard's table: from tags to the numbers of places.
//!
//! Owns the buckets, and how many of them there are. What is in a bucket's cell is [`super::cell`]'s, where cells stand [`super::cells`]'.
//!
//! # Linear hashing
//!
//! There are always as many buckets as give each [`AVERAGE`] entries: when there are more entries, *one* bucket is split into two by the next bit of its tags, in turn; when there are far fewer, the last two are merged.
//! So the table grows and shrinks with what is in it, a bucket at a time: never is there a second copy of it, never a moment in which it is half empty, and no insertion that takes longer than a split.
//! That buckets which have had their turn hold half as much as the others does not matter here, since cells are as large as they have to be.
//!
//! Splitting needs a bit of each tag that the bucket did not say before: tags are kept with all [`BITS`] bits, those that the bucket says being implied.

use super::{
    cell::{BITS, Cell, Entry, Form, width},
    cells::{Cells, Kind, Slot},
};

/// Entries in a bucket on average, when it is time to split one.
const AVERAGE: usize = 64;
/// Buckets are merged when there are fewer: three quarters.
const FEW: usize = AVERAGE * 3 / 4;
/// The fewest buckets, and the most: from there on they become fuller.
const BUCKETS: std::ops::RangeInclusive<usize> = 1 << 3..=1 << 22;
/// Entries that a cell may have room for and lack, before it is made smaller; and then.
const SPARE: usize = 8;
const SNUG: usize = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Table {
    cells: Cells,
    /// Where the cell of each bucket stands.
    buckets: Vec<Slot>,
    entries: usize,
    /// Bytes that a place takes lately.
    width: usize,
    /// Who goes through all buckets: meanwhile none is merged into one that he has seen.
    walkers: u32,
    /// Room to work in.
    sorted: Vec<Entry>,
    other: Vec<Entry>,
}

/// What became of an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inserted {
    /// It is there now, or was already.
    There,
    /// There are as many entries with the tag as there may be.
    Crowded,
    /// Its bucket is as large as a bucket may be.
    Full,
}

impl Table {
    pub(super) fn new() -> Self {
        let mut table = Self {
            cells: Cells::new(),
            buckets: Vec::new(),
            entries: 0,
            width: width(0),
            walkers: 0,
            sorted: Vec::new(),
            other: Vec::new(),
        };
        for bucket in 0..*BUCKETS.start() {
            let slot = table.make(bucket, Form::of(BUCKETS.start().ilog2()), &[]);
            table.buckets.push(slot);
        }
        table
    }

    pub(super) fn len(&self) -> usize {
        self.entries
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.cells.bytes()
            + self.buckets.capacity() * size_of::<Slot>()
            + (self.sorted.capacity() + self.other.capacity()) * size_of::<Entry>()
    }

    /// The places with a tag.
    pub(super) fn places(&self, tag: u64) -> impl Iterator<Item = u64> {
        let (bucket, form, rest) = self.bucket(tag);
        let cell = self.cell_touched(bucket, form, rest);
        cell.find(rest).map(move |index| cell.place(index))
    }

    /// Reads what a look for a tag will most probably read. Does not wait for it.
    pub(super) fn touch(&self, tag: u64) {
        let (bucket, form, rest) = self.bucket(tag);
        form.touch(self.width, self.cells.get(self.buckets[bucket]), rest);
    }

    pub(super) fn contains(&self, tag: u64) -> bool {
        self.places(tag).next().is_some()
    }

    /// Adds an entry, unless there are `most` with this tag.
    pub(super) fn insert(&mut self, tag: u64, place: u64, most: usize) -> Inserted {
        let (bucket, form, rest) = self.bucket(tag);
        let cell = self.cell_touched(bucket, form, rest);
        let same = cell.find(rest);
        if same.clone().any(|index| cell.place(index) == place) {
            return Inserted::There;
        }
        if same.len() >= most {
            return Inserted::Crowded;
        }
        let (len, wide) = (cell.len(), width(place).max(cell.width()));
        if (len == cell.room() || wide > cell.width()) && !self.resize(bucket, form, wide, len + 1) {
            return Inserted::Full;
        }
        self.cell_mut(bucket, form).insert(same.end, Entry { rest, place });
        self.width = wide;
        self.entries += 1;
        if self.entries > AVERAGE * self.buckets.len() && self.buckets.len() < *BUCKETS.end() {
            self.split();
        }
        Inserted::There
    }

    /// Removes an entry if it is there. Returns whether others have the tag.
    pub(super) fn remove(&mut self, tag: u64, place: u64) -> Option<bool> {
        let (bucket, form, rest) = self.bucket(tag);
        let slot = self.buckets[bucket];
        let bytes = self.cells.get_mut(slot);
        form.touch(self.width, bytes, rest);
        let mut cell = Cell::new(bytes, form);
        let same = cell.find(rest);
        let index = same.clone().find(|index| cell.place(*index) == place)?;
        cell.remove(index, rest);
        let (len, width) = (cell.len(), cell.width());
        if Kind::of(form.bytes(width, len + SPARE)) > Some(slot.kind()) {
            self.resize(bucket, form, width, len + SNUG);
        }
        self.entries -= 1;
        self.shrink(1);
        Some(same.len() > 1)
    }

    /// Begins to go through all buckets.
    pub(super) fn walk(&mut self) {
        self.walkers += 1;
    }

    /// Removes the entries of the next buckets from `from` on whose places are not to be kept. Returns where to go on; `None` at the end, when it has to be called no more.
    pub(super) fn weed(&mut self, from: usize, keep: impl Fn(u64) -> bool) -> Option<usize> {
        /// As many take some tenths of a millisecond.
        const AT_ONCE: usize = 1 << 10;
        let end = (from + AT_ONCE).min(self.buckets.len());
        for bucket in from..end {
            let form = Form::of(self.level(bucket));
            let cell = self.cell(bucket, form);
            if (0..cell.len()).all(|index| keep(cell.place(index))) {
                continue;
            }
            let mut entries = std::mem::take(&mut self.sorted);
            self.cell(bucket, form).read(&mut entries);
            self.entries -= entries.len();
            entries.retain(|entry| keep(entry.place));
            self.entries += entries.len();
            self.free(self.buckets[bucket]);
            self.buckets[bucket] = self.make(bucket, form, &entries);
            entries.clear();
            self.sorted = entries;
        }
        if end < self.buckets.len() {
            return Some(end);
        }
        self.walkers -= 1;
        None
    }

    /// Merges buckets, so many at most, as long as there are far too few entries. Returns whether that is done.
    pub(super) fn shrink(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let wanted = self.entries < FEW * self.buckets.len() && self.buckets.len() > *BUCKETS.start();
            if !wanted || self.walkers > 0 || !self.merge() {
                return true;
            }
        }
        false
    }

    /// Bucket of a tag, how its cell is written, and the rest of the tag.
    fn bucket(&self, tag: u64) -> (usize, Form, u32) {
        let level = self.buckets.len().ilog2();
        let low = tag as usize & ((1 << level) - 1);
        let level = level + u32::from(low < self.turn());
        (tag as usize & ((1 << level) - 1), Form::of(level), (tag >> level) as u32)
    }

    /// The bucket whose turn it is to be split.
    fn turn(&self) -> usize {
        self.buckets.len() - (1 << self.buckets.len().ilog2())
    }

    /// Bits of a tag that a bucket says.
    fn level(&self, bucket: usize) -> u32 {
        let level = self.buckets.len().ilog2();
        level + u32::from(bucket < self.turn() || bucket >= 1 << level)
    }

    fn split(&mut self) {
        let (level, bucket) = (self.buckets.len().ilog2(), self.turn());
        let mut entries = std::mem::take(&mut self.sorted);
        self.cell(bucket, Form::of(level)).read(&mut entries);
        self.free(self.buckets[bucket]);
        let mut odd = std::mem::take(&mut self.other);
        let half = |entry: &Entry| Entry { rest: entry.rest >> 1, ..*entry };
        odd.extend(entries.iter().filter(|entry| entry.rest & 1 == 1).map(half));
        entries.retain(|entry| entry.rest & 1 == 0);
        entries.iter_mut().for_each(|entry| *entry = half(entry));
        let form = Form::of(level + 1);
        self.buckets[bucket] = self.make(bucket, form, &entries);
        let slot = self.make(self.buckets.len(), form, &odd);
        self.buckets.push(slot);
        entries.clear();
        odd.clear();
        (self.sorted, self.other) = (entries, odd);
    }

    /// Undoes the last split. Returns false if the two do not fit into one cell.
    fn merge(&mut self) -> bool {
        let last = self.buckets.len() - 1;
        let level = last.ilog2();
        let bucket = last - (1 << level);
        let mut entries = std::mem::take(&mut self.sorted);
        for (bit, bucket) in [(0, bucket), (1, last)] {
            let from = entries.len();
            self.cell(bucket, Form::of(level + 1)).read(&mut entries);
            entries[from..].iter_mut().for_each(|entry| entry.rest = entry.rest << 1 | bit);
        }
        let form = Form::of(level);
        let wide = entries.iter().map(|entry| width(entry.place)).max().unwrap_or(0);
        let fits = Kind::of(form.bytes(wide, entries.len())).is_some();
        if fits {
            entries.sort_unstable_by_key(|entry| entry.rest);
            self.free(self.buckets[bucket]);
            // That may have moved the other one.
            self.free(self.buckets[last]);
            self.buckets.pop();
            self.buckets[bucket] = self.make(bucket, form, &entries);
            if self.buckets.len() * 2 < self.buckets.capacity() {
                self.buckets.shrink_to(self.buckets.len() * 5 / 4);
            }
        }
        entries.clear();
        self.sorted = entries;
        fits
    }

    /// A cell with these entries, which are in order and fit.
    fn make(&mut self, bucket: usize, form: Form, entries: &[Entry]) -> Slot {
        let wide = width(entries.iter().fold(0, |all, entry| all | entry.place));
        let kind = Kind::of(form.bytes(wide, entries.len()));
        let slot = self.cells.add(kind.expect("they were in one cell, or were found to fit"));
        Cell::begin(bucket as u32, form, wide, self.cells.get_mut(slot)).fill(entries);
        slot
    }

    /// Gives a cell room for so many entries, and for places so wide. Returns false if it would be too large.
    fn resize(&mut self, bucket: usize, form: Form, width: usize, entries: usize) -> bool {
        let Some(kind) = Kind::of(form.bytes(width, entries)) else { return false };
        let (old, new) = (self.buckets[bucket], self.cells.add(kind));
        let (from, to) = self.cells.pair(old, new);
        Cell::new(from, form).copy(width, to);
        self.buckets[bucket] = new;
        self.free(old);
        true
    }

    /// Gives back the memory of a cell.
    fn free(&mut self, slot: Slot) {
        self.cells.remove(slot);
        while let Some((moved, slot)) = self.cells.compact(slot.kind()) {
            self.buckets[moved as usize] = slot;
        }
    }

    fn cell_touched(&self, bucket: usize, form: Form, rest: u32) -> Cell<&[u8]> {
        let bytes = self.cells.get(self.buckets[bucket]);
        form.touch(self.width, bytes, rest);
        Cell::new(bytes, form)
    }

    fn cell(&self, bucket: usize, form: Form) -> Cell<&[u8]> {
        Cell::new(self.cells.get(self.buckets[bucket]), form)
    }

    fn cell_mut(&mut self, bucket: usize, form: Form) -> Cell<&mut [u8]> {
        Cell::new(self.cells.get_mut(self.buckets[bucket]), form)
    }
}

const _: () = assert!(BITS - BUCKETS.start().ilog2() <= 32, "rests are 32 bits");
const _: () = assert!(BUCKETS.end().ilog2() <= 24, "cells have numbers of 24 bits");

#[cfg(test)]
mod tests;
