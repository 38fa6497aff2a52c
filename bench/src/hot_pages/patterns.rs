//! Which page is written next. Owns the patterns; each is the same in every run.

/// Pages of the guest: 1 GiB.
pub(super) const PAGES: u32 = 1 << 18;
/// Writes a second.
pub(super) const RATE: u32 = 10_000;

/// How a guest writes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pattern {
    /// Any page, all alike.
    Uniform,
    /// Few pages often and many seldom: the page of rank r with a frequency of 1/r.
    Zipf,
    /// One page after the other through a quarter of the memory, and again.
    Sweep,
    /// Some pages all the time for some seconds, then others.
    Phases,
}

impl Pattern {
    pub(super) const ALL: [Self; 4] = [Self::Uniform, Self::Zipf, Self::Sweep, Self::Phases];

    /// What it is called, and what it is, for people.
    pub(super) const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Uniform => ("uniform", "any page of 1 GiB"),
            Self::Zipf => ("zipf", "the page of rank r with a frequency of 1/r"),
            Self::Sweep => ("sweep", "one page after the other through 256 MiB, again and again"),
            Self::Phases => ("phases", "any of 1,024 pages for five seconds, then of 1,024 others"),
        }
    }
}

/// The pages that are written, one after the other.
pub(super) struct Writes {
    pattern: Pattern,
    state: u64,
    written: u64,
    /// Of [`Pattern::Zipf`]: how probable the pages up to each rank are.
    ranks: Vec<f64>,
}

const SWEPT: u64 = PAGES as u64 / 4;
const PHASE_PAGES: u64 = 1024;
const PHASE: u64 = 5 * RATE as u64;

impl Writes {
    pub(super) fn new(pattern: Pattern) -> Self {
        let mut ranks = Vec::new();
        if matches!(pattern, Pattern::Zipf) {
            let mut sum = 0.0;
            ranks.extend((1..=PAGES).map(|rank| {
                sum += 1.0 / f64::from(rank);
                sum
            }));
            ranks.iter_mut().for_each(|rank| *rank /= sum);
        }
        Self { pattern, state: 0x6d65_6d64_6578, written: 0, ranks }
    }

    /// xorshift64*: good enough to spread writes, and the same everywhere.
    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn next(&mut self) -> u32 {
        self.written += 1;
        let page = match self.pattern {
            Pattern::Uniform => self.random() % u64::from(PAGES),
            Pattern::Zipf => {
                let at = (self.random() >> 11) as f64 / (1u64 << 53) as f64;
                let rank = self.ranks.partition_point(|rank| *rank < at) as u64;
                // Ranks are spread over the memory, one page to each.
                rank * 0x9E37_79B1 % u64::from(PAGES)
            }
            Pattern::Sweep => self.written % SWEPT,
            Pattern::Phases => self.written / PHASE * PHASE_PAGES + self.random() % PHASE_PAGES,
        };
        (page % u64::from(PAGES)) as u32
    }
}
