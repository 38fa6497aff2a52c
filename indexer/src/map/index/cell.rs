//! A cell: the entries of one bucket, packed.
//!
//! Owns the bytes of a cell. What a tag or the number of a place means, and where cells stand, is others'.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | the bucket that it is of |
//! | 2 | entries in it |
//! | 2 | entries that it has room for (14 bits), width of a place (2 bits: 3 to 5 bytes) |
//! | | marks: see below |
//! | 2 or 3 each | *lows* |
//! | 3 to 5 each | places |
//!
//! The bucket says some bits of a tag; the *rest* of it is kept, and entries are sorted by it. The low 16 bits of a rest (24 while there are few buckets) stand as they are. The bits above, up to eight,
//! are written down as a dictionary's thumb index would: the marks are a string of bits with a one for each entry, and a zero after the last entry of each thumb. So these bits cost one to two bits an entry, however
//! many they are, and lead straight to the few entries that can be meant.

use std::ops::Range;

use super::marks;

/// Bits of a tag that shards leave.
pub(super) const BITS: u32 = 34;
/// Bytes before the marks.
const HEADER: usize = 8;
/// Bits of the entries that a cell has room for.
const ROOM: u32 = 14;
const NARROWEST: usize = 3;
const WIDEST: usize = 5;
/// Places have numbers below this.
pub(super) const PLACES: u64 = 1 << (8 * WIDEST);

/// An entry outside of its cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// The bits of the tag that the bucket does not say.
    pub(super) rest: u32,
    pub(super) place: u64,
}

/// How entries are written down, which follows from the number of bits that the bucket says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// Bytes of a low.
    low: usize,
    /// Bits above it.
    thumb: u32,
}

impl Form {
    /// That of buckets which say `level` bits, at least two.
    pub(super) const fn of(level: u32) -> Self {
        match BITS - level {
            bits @ ..=24 => Self { low: 2, thumb: bits.saturating_sub(16) },
            bits => Self { low: 3, thumb: bits - 24 },
        }
    }

    const fn marks(self, entries: usize) -> usize {
        if self.thumb == 0 { 0 } else { (entries + (1 << self.thumb)).div_ceil(8) }
    }

    /// Bytes of a cell with room for so many.
    pub(super) const fn bytes(self, width: usize, entries: usize) -> usize {
        HEADER + self.marks(entries) + entries * (self.low + width)
    }

    /// Entries that a cell of so many bytes has room for.
    fn room(self, width: usize, bytes: usize) -> usize {
        let bits = 8 * (self.low + width) + usize::from(self.thumb > 0);
        let mut room = 8 * bytes.saturating_sub(self.bytes(width, 0) + 1) / bits;
        while self.bytes(width, room + 1) <= bytes {
            room += 1;
        }
        room
    }

    /// Reads what [`Cell::find`] in these bytes most probably will, so that the processor waits for memory once and not three times. `width`: bytes that places most
    /// probably have.
    pub(super) fn touch(self, width: usize, bytes: &[u8], rest: u32) {
        let (low, place) = self.guess(width, bytes.len(), rest);
        let touch = |at: usize| bytes.get(at).copied().unwrap_or(0);
        std::hint::black_box(touch(low) ^ touch(place));
    }

    /// Where an entry with this rest most probably stands in a full cell of so many bytes: its low, and its place.
    const fn guess(self, width: usize, bytes: usize, rest: u32) -> (usize, usize) {
        let before = HEADER + self.marks(0);
        let bytes = bytes.saturating_sub(before + bytes / 48) as u64;
        // Divided by what the compiler knows: that takes a fraction of the time.
        let room = match self.low + width {
            5 => bytes / 5,
            6 => bytes / 6,
            7 => bytes / 7,
            _ => bytes / 8,
        };
        let index = ((room * rest as u64) >> (8 * self.low as u32 + self.thumb)) as usize;
        let lows = before + room as usize / 8;
        (lows + index * self.low, lows + room as usize * self.low + index * width)
    }

    const fn split(self, rest: u32) -> (u32, u32) {
        let bits = 8 * self.low as u32;
        (rest >> bits, rest & ((1 << bits) - 1))
    }
}

/// Bytes that a place with this number takes.
pub(super) const fn width(place: u64) -> usize {
    match place {
        0..0x0100_0000 => NARROWEST,
        0x0100_0000..0x1_0000_0000 => 4,
        _ => WIDEST,
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Cell<B> {
    bytes: B,
    form: Form,
    len: usize,
    room: usize,
    width: usize,
    /// Where the lows begin, and the places.
    lows: usize,
    places: usize,
}

impl<B: AsRef<[u8]>> Cell<B> {
    pub(super) fn new(bytes: B, form: Form) -> Self {
        let [_, _, _, _, len, len_high, room, room_high, ..] = *bytes.as_ref() else {
            unreachable!("cells are longer")
        };
        let (len, room) = (u16::from_le_bytes([len, len_high]), u16::from_le_bytes([room, room_high]));
        let (width, room) = (NARROWEST + usize::from(room >> ROOM), usize::from(room & ((1 << ROOM) - 1)));
        let lows = HEADER + form.marks(room);
        Self { bytes, form, len: usize::from(len), room, width, lows, places: lows + room * form.low }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn room(&self) -> usize {
        self.room
    }

    /// Bytes of a place.
    pub(super) const fn width(&self) -> usize {
        self.width
    }

    pub(super) fn place(&self, index: usize) -> u64 {
        let at = self.places + index * self.width;
        match self.bytes()[at..at + self.width] {
            [a, b, c] => u64::from(u32::from_le_bytes([a, b, c, 0])),
            [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e] => u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]),
            _ => unreachable!("three to five bytes"),
        }
    }

    /// The entries with this rest; where they would stand if there are none.
    pub(super) fn find(&self, rest: u32) -> Range<usize> {
        let (thumb, low) = self.form.split(rest);
        let (first, len) = if self.form.thumb == 0 {
            (0, self.len)
        } else {
            let marks = self.marks();
            let bit = thumb.checked_sub(1).map_or(0, |before| marks::nth_zero(marks, before) + 1);
            (bit - thumb as usize, marks::end_of_ones(marks, bit) - bit)
        };
        let lows = &self.bytes()[self.lows + first * self.form.low..][..len * self.form.low];
        let same = if self.form.low == 2 {
            same(lows.as_chunks().0, |low| u32::from(u16::from_le_bytes(*low)), low)
        } else {
            same(lows.as_chunks().0, |[a, b, c]| u32::from_le_bytes([*a, *b, *c, 0]), low)
        };
        first + same.start..first + same.end
    }

    /// Appends all entries, in order.
    pub(super) fn read(&self, entries: &mut Vec<Entry>) {
        let before = entries.len();
        let lows = &self.bytes()[self.lows..][..self.len * self.form.low];
        if self.form.low == 2 {
            let low = |low: &[u8; 2]| u32::from(u16::from_le_bytes(*low));
            entries.extend(lows.as_chunks().0.iter().map(|rest| Entry { rest: low(rest), place: 0 }));
        } else {
            let low = |[a, b, c]: &[u8; 3]| u32::from_le_bytes([*a, *b, *c, 0]);
            entries.extend(lows.as_chunks().0.iter().map(|rest| Entry { rest: low(rest), place: 0 }));
        }
        let entries = &mut entries[before..];
        for (index, entry) in entries.iter_mut().enumerate() {
            entry.place = self.place(index);
        }
        if self.form.thumb > 0 {
            let mut index = 0;
            marks::each_one(self.marks(), self.len, |bit| {
                entries[index].rest |= ((bit - index) as u32) << (8 * self.form.low);
                index += 1;
            });
        }
    }

    /// Writes a copy of another size, in which places are at least so wide.
    pub(super) fn copy(&self, width: usize, to: &mut [u8]) {
        let width = self.width.max(width);
        let bucket = u32::from_le_bytes([self.bytes()[0], self.bytes()[1], self.bytes()[2], self.bytes()[3]]);
        let mut copy = Cell::begin(bucket, self.form, width, to);
        let (marks, lows) = (self.form.marks(self.len), self.len * self.form.low);
        copy.bytes[HEADER..HEADER + marks].copy_from_slice(&self.bytes()[HEADER..HEADER + marks]);
        copy.bytes[copy.lows..copy.lows + lows].copy_from_slice(&self.bytes()[self.lows..self.lows + lows]);
        if width == self.width {
            let places = self.len * width;
            copy.bytes[copy.places..copy.places + places]
                .copy_from_slice(&self.bytes()[self.places..self.places + places]);
        } else {
            (0..self.len).for_each(|index| copy.set_place(index, self.place(index)));
        }
        copy.set_len(self.len);
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    fn marks(&self) -> &[u8] {
        &self.bytes()[HEADER..self.lows]
    }
}

/// Those of sorted numbers that are `wanted`; where they would stand if there are none.
fn same<T>(sorted: &[T], number: impl Fn(&T) -> u32, wanted: u32) -> Range<usize> {
    let start = match sorted.len() {
        // Mostly.
        0..8 => sorted.iter().map(|one| usize::from(number(one) < wanted)).sum(),
        _ => sorted.partition_point(|one| number(one) < wanted),
    };
    let count = sorted[start..].iter().take_while(|one| number(one) == wanted).count();
    start..start + count
}

impl<'a> Cell<&'a mut [u8]> {
    /// A cell without entries.
    pub(super) fn begin(bucket: u32, form: Form, width: usize, bytes: &'a mut [u8]) -> Self {
        let room = form.room(width, bytes.len()).min((1 << ROOM) - 1);
        let marks = form.marks(room);
        bytes[..4].copy_from_slice(&bucket.to_le_bytes());
        bytes[4..6].fill(0);
        bytes[6..8].copy_from_slice(&(((width - NARROWEST) << ROOM | room) as u16).to_le_bytes());
        bytes[HEADER..HEADER + marks].fill(0);
        Self::new(bytes, form)
    }

    /// Writes entries in order into a cell that has none. There has to be room, and no place may be too wide.
    pub(super) fn fill(&mut self, entries: &[Entry]) {
        if self.form.thumb > 0 {
            let marks = &mut self.bytes[HEADER..self.lows];
            for (index, entry) in entries.iter().enumerate() {
                let bit = index + self.form.split(entry.rest).0 as usize;
                marks[bit / 8] |= 1 << (bit % 8);
            }
        }
        let lows = &mut self.bytes[self.lows..][..entries.len() * self.form.low];
        if self.form.low == 2 {
            for (low, entry) in lows.as_chunks_mut::<2>().0.iter_mut().zip(entries) {
                *low = (entry.rest as u16).to_le_bytes();
            }
        } else {
            for (low, entry) in lows.as_chunks_mut::<3>().0.iter_mut().zip(entries) {
                [low[0], low[1], low[2], _] = entry.rest.to_le_bytes();
            }
        }
        for (index, entry) in entries.iter().enumerate() {
            self.set_place(index, entry.place);
        }
        self.set_len(entries.len());
    }

    /// Puts an entry in where [`Cell::find`] said. There has to be room, and the place may not be too wide.
    pub(super) fn insert(&mut self, index: usize, entry: Entry) {
        let (thumb, low) = self.form.split(entry.rest);
        if self.form.thumb > 0 {
            marks::insert_one(&mut self.bytes[HEADER..self.lows], index + thumb as usize);
        }
        for (start, each) in [(self.lows, self.form.low), (self.places, self.width)] {
            let from = start + index * each;
            self.bytes.copy_within(from..start + self.len * each, from + each);
        }
        self.set_low(index, low);
        self.set_place(index, entry.place);
        self.set_len(self.len + 1);
    }

    /// Takes out the entry at `index`, which has this rest.
    pub(super) fn remove(&mut self, index: usize, rest: u32) {
        if self.form.thumb > 0 {
            let thumb = self.form.split(rest).0 as usize;
            marks::take_out(&mut self.bytes[HEADER..self.lows], index + thumb);
        }
        for (start, each) in [(self.lows, self.form.low), (self.places, self.width)] {
            let to = start + index * each;
            self.bytes.copy_within(to + each..start + self.len * each, to);
        }
        self.set_len(self.len - 1);
    }

    fn set_low(&mut self, index: usize, low: u32) {
        let at = self.lows + index * self.form.low;
        match &mut self.bytes[at..at + self.form.low] {
            [a, b] => [*a, *b, ..] = low.to_le_bytes(),
            [a, b, c] => [*a, *b, *c, _] = low.to_le_bytes(),
            _ => unreachable!("two or three bytes"),
        }
    }

    fn set_place(&mut self, index: usize, place: u64) {
        let at = self.places + index * self.width;
        match &mut self.bytes[at..at + self.width] {
            [a, b, c] => [*a, *b, *c, ..] = place.to_le_bytes(),
            [a, b, c, d] => [*a, *b, *c, *d, ..] = place.to_le_bytes(),
            [a, b, c, d, e] => [*a, *b, *c, *d, *e, ..] = place.to_le_bytes(),
            _ => unreachable!("three to five bytes"),
        }
    }

    fn set_len(&mut self, len: usize) {
        self.len = len;
        self.bytes[4..6].copy_from_slice(&(len as u16).to_le_bytes());
    }
}
