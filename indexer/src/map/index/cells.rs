//! Where the cells of a shard stand: memory without holes.
//!
//! Owns the memory. Of what is in a cell it knows only that the first four bytes name the bucket that it is of.
//!
//! Cells grow and shrink all the time, by some bytes each. On the heap that leaves holes that are a little too small, and what a VM took that has gone would hardly ever come back. So memory is cut into *blocks*,
//! a block into `k` cells of one size (its *kind* is `k`), and both are kept dense: the place of a cell that goes is taken by the next that comes or, if [some](HOLES) wait for one already, by the last one of its kind; the place of a
//! block that goes by the last block.
//! Blocks come and go in *chunks* of a few, which are what the heap sees: large enough for their memory to be given back. What is wasted is the difference between what a cell needs and the next kind (4 % at the size
//! that cells have on average), and half a block for each kind in use.

/// Bytes of a block.
pub(super) const BLOCK: usize = 4 << 10;
/// Blocks in a chunk.
const CHUNK: usize = 4;
/// Most cells in a block.
const MOST: usize = 64;
/// Cells of a kind whose places may wait for others; fewer if there are few of it.
const HOLES: usize = 3;
/// Bits of a cell's number among those of its kind.
const NUMBER: u32 = 24;

/// Where a cell stands: its kind, and its number among those of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(u32);

/// Cells in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind(u8);

impl Kind {
    /// The one with the smallest cells that have so many bytes; `None` if a block has not.
    pub(super) fn of(bytes: usize) -> Option<Self> {
        let cells = BLOCK / bytes.max(1);
        (cells > 0).then_some(Self(cells.min(MOST) as u8))
    }

    /// Bytes of a cell.
    const fn bytes(self) -> usize {
        BYTES[self.0 as usize] as usize
    }

    /// The number of a cell by the cells of a block, without the time that a division takes.
    const fn divide(self, number: usize) -> usize {
        ((number as u64 * INVERSE[self.0 as usize]) >> (NUMBER + 6)) as usize
    }
}

impl Slot {
    const fn new(kind: Kind, number: u32) -> Self {
        debug_assert!(number < 1 << NUMBER);
        Self((kind.0 as u32) << NUMBER | number)
    }

    pub(super) const fn kind(self) -> Kind {
        Kind((self.0 >> NUMBER) as u8)
    }

    const fn number(self) -> usize {
        (self.0 & ((1 << NUMBER) - 1)) as usize
    }
}

/// By kind: bytes of a cell.
static BYTES: [u16; MOST + 1] = {
    let mut table = [0; MOST + 1];
    let mut kind = 1;
    while kind <= MOST {
        table[kind] = (BLOCK / kind) as u16;
        kind += 1;
    }
    table
};

/// By kind: 2³⁰ by it, rounded up. A number of 24 bits times it is too large by less than 2²⁴, a 64th of 2³⁰: never enough to reach the next whole number.
static INVERSE: [u64; MOST + 1] = {
    let mut table = [0; MOST + 1];
    let mut kind = 1;
    while kind <= MOST {
        table[kind] = (1u64 << (NUMBER + 6)).div_ceil(kind as u64);
        kind += 1;
    }
    table
};

/// See the module.
#[derive(Debug)]
pub(super) struct Cells {
    chunks: Vec<Box<[u8]>>,
    /// For each block its kind, and its position among the blocks of that kind.
    owners: Vec<(Kind, u32)>,
    /// By kind.
    kinds: Vec<OfKind>,
}

#[derive(Debug, Default, Clone)]
struct OfKind {
    /// Together with those that are not in use.
    cells: usize,
    /// Those that are not in use.
    holes: Vec<u32>,
    blocks: Vec<u32>,
}

impl Cells {
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), owners: Vec::new(), kinds: vec![OfKind::default(); MOST + 1] }
    }

    pub(super) fn get(&self, slot: Slot) -> &[u8] {
        let (block, at) = self.stand(slot);
        &self.chunks[block / CHUNK][block % CHUNK * BLOCK + at..][..slot.kind().bytes()]
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> &mut [u8] {
        let (block, at) = self.stand(slot);
        &mut self.chunks[block / CHUNK][block % CHUNK * BLOCK + at..][..slot.kind().bytes()]
    }

    /// A further cell. Its bytes may be anything.
    pub(super) fn add(&mut self, kind: Kind) -> Slot {
        let of_kind = &mut self.kinds[usize::from(kind.0)];
        if let Some(number) = of_kind.holes.pop() {
            return Slot::new(kind, number);
        }
        if of_kind.cells == of_kind.blocks.len() * usize::from(kind.0) {
            let block = self.owners.len();
            if block.is_multiple_of(CHUNK) {
                self.chunks.push(vec![0; CHUNK * BLOCK].into_boxed_slice());
            }
            self.owners.push((kind, of_kind.blocks.len() as u32));
            of_kind.blocks.push(block as u32);
        }
        of_kind.cells += 1;
        Slot::new(kind, of_kind.cells as u32 - 1)
    }

    /// Two cells that differ, one to be read and one to be written.
    pub(super) fn pair(&mut self, from: Slot, to: Slot) -> (&[u8], &mut [u8]) {
        let stand = |(block, at): (usize, usize)| (block / CHUNK, block % CHUNK * BLOCK + at);
        let ((chunk, at), (to_chunk, to_at)) = (stand(self.stand(from)), stand(self.stand(to)));
        let (len, to_len) = (from.kind().bytes(), to.kind().bytes());
        if chunk != to_chunk {
            let both = self.chunks.get_disjoint_mut([chunk, to_chunk]);
            let [from, to] = both.expect("two chunks that there are");
            (&from[at..at + len], &mut to[to_at..to_at + to_len])
        } else if at < to_at {
            let (before, after) = self.chunks[chunk].split_at_mut(to_at);
            (&before[at..at + len], &mut after[..to_len])
        } else {
            let (before, after) = self.chunks[chunk].split_at_mut(at);
            (&after[..len], &mut before[to_at..to_at + to_len])
        }
    }

    /// Takes a cell away. [`Cells::compact`] has to follow.
    pub(super) fn remove(&mut self, slot: Slot) {
        self.kinds[usize::from(slot.kind().0)].holes.push(slot.number() as u32);
    }

    /// Makes cells of a kind dense again. If one had to be moved for that, says the bucket that it is of, and where it stands now; then it has to be called once more.
    pub(super) fn compact(&mut self, kind: Kind) -> Option<(u32, Slot)> {
        loop {
            let of_kind = &mut self.kinds[usize::from(kind.0)];
            if of_kind.holes.len() <= HOLES.min(of_kind.cells / 32) {
                return None;
            }
            let last = of_kind.cells as u32 - 1;
            let hole = of_kind.holes.iter().position(|hole| *hole == last);
            let hole = of_kind.holes.swap_remove(hole.unwrap_or(0));
            let moved = (hole != last).then(|| {
                let hole = Slot::new(kind, hole);
                let (from, to) = self.pair(Slot::new(kind, last), hole);
                to.copy_from_slice(from);
                (u32::from_le_bytes([to[0], to[1], to[2], to[3]]), hole)
            });
            let of_kind = &mut self.kinds[usize::from(kind.0)];
            of_kind.cells -= 1;
            if of_kind.cells.is_multiple_of(usize::from(kind.0))
                && let Some(block) = of_kind.blocks.pop()
            {
                self.remove_block(block as usize);
            }
            if moved.is_some() {
                return moved;
            }
        }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        let lists = self.kinds.iter().map(|of_kind| of_kind.blocks.capacity() * size_of::<u32>());
        self.chunks.len() * CHUNK * BLOCK
            + self.chunks.capacity() * size_of::<Box<[u8]>>()
            + self.owners.capacity() * size_of::<(Kind, u32)>()
            + lists.sum::<usize>()
    }

    fn remove_block(&mut self, block: usize) {
        let last = self.owners.len() - 1;
        let Some((kind, position)) = self.owners.pop() else { return };
        if block != last {
            let (from, to) = (last % CHUNK * BLOCK, block % CHUNK * BLOCK);
            match self.chunks.get_disjoint_mut([last / CHUNK, block / CHUNK]) {
                Ok([last, block]) => {
                    block[to..to + BLOCK].copy_from_slice(&last[from..from + BLOCK]);
                }
                Err(_) => self.chunks[block / CHUNK].copy_within(from..from + BLOCK, to),
            }
            self.owners[block] = (kind, position);
            self.kinds[usize::from(kind.0)].blocks[position as usize] = block as u32;
        }
        if last.is_multiple_of(CHUNK) {
            self.chunks.pop();
        }
    }

    /// Block and position in it.
    fn stand(&self, slot: Slot) -> (usize, usize) {
        let (kind, number) = (slot.kind(), slot.number());
        let block = kind.divide(number);
        let cell = number - block * usize::from(kind.0);
        (self.kinds[usize::from(kind.0)].blocks[block] as usize, cell * kind.bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_divided_as_they_should_be() {
        for kind in 1..=MOST {
            let number = |block: usize| [block * kind, (block + 1) * kind - 1];
            let blocks = (0..1000).chain((1 << NUMBER) / kind - 1000..(1 << NUMBER) / kind);
            for block in blocks {
                assert_eq!(number(block).map(|number| Kind(kind as u8).divide(number)), [block; 2]);
            }
        }
    }

    proptest! {
        /// Cells keep their bytes wherever they are moved to, and no more blocks are held than are needed.
        #[test]
        fn memory_stays_dense_and_loses_nothing(
            steps in prop::collection::vec((any::<bool>(), prop_oneof![100..3000usize, 100..110usize], any::<prop::sample::Index>()), 0..400)
        ) {
            let mut cells = Cells::new();
            let mut known: BTreeMap<u32, Slot> = BTreeMap::new();
            for (bucket, (add, bytes, which)) in steps.into_iter().enumerate() {
                if add || known.is_empty() {
                    let slot = cells.add(Kind::of(bytes).unwrap());
                    let cell = cells.get_mut(slot);
                    prop_assert!(cell.len() >= bytes);
                    cell.fill(bucket as u8);
                    cell[..4].copy_from_slice(&(bucket as u32).to_le_bytes());
                    known.insert(bucket as u32, slot);
                } else {
                    let bucket = *known.keys().nth(which.index(known.len())).unwrap();
                    let slot = known.remove(&bucket).unwrap();
                    cells.remove(slot);
                    while let Some((moved, to)) = cells.compact(slot.kind()) {
                        prop_assert!(known.insert(moved, to).is_some());
                    }
                }
                for (bucket, slot) in &known {
                    let cell = cells.get(*slot);
                    prop_assert_eq!(&cell[..4], &bucket.to_le_bytes());
                    prop_assert!(cell[4..].iter().all(|byte| *byte == *bucket as u8));
                }
                let mut blocks = 0;
                for (kind, of_kind) in cells.kinds.iter().enumerate() {
                    let used = known.values().filter(|slot| usize::from(slot.kind().0) == kind).count();
                    prop_assert_eq!(used + of_kind.holes.len(), of_kind.cells);
                    prop_assert!(of_kind.holes.len() <= HOLES.min(of_kind.cells / 32));
                    prop_assert_eq!(of_kind.blocks.len(), of_kind.cells.div_ceil(kind.max(1)));
                    blocks += of_kind.blocks.len();
                }
                prop_assert_eq!(cells.owners.len(), blocks);
                prop_assert_eq!(cells.chunks.len(), blocks.div_ceil(CHUNK));
            }
        }
    }
}
