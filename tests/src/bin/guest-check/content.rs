//! What a page holds. Owns the rule that makes content out of (page, sequence, seed): half of the pages are chance that
//! can't be compressed, others are text, zero, or the same as many others, in this guest and in any other.

/// 64-bit words in a page.
pub(crate) const WORDS: usize = 512;
/// A page.
pub(crate) type Page = [u64; WORDS];

/// First word of a page of chance; the harness finds these pages by it.
const CHANCE: u64 = u64::from_le_bytes(*b"MEMDEXck");
/// First word of a page of text.
const TEXT: u64 = u64::from_le_bytes(*b"MEMDEXtx");
/// First word of a page that others are the same as.
const TWIN: u64 = u64::from_le_bytes(*b"MEMDEXtw");
/// How many kinds of twins there are.
const TWINS: u64 = 64;

/// How the words of a page follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Zero,
    /// Four words of header, then chance out of this state.
    Chance([u64; 4], u64),
    /// Four words of header, then these eight again and again.
    Text([u64; 4], [u64; 8]),
}

/// What a page should hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Content(Rule);

impl Content {
    /// All zero: a page that was never written or was given back.
    pub(crate) const ZERO: Self = Self(Rule::Zero);

    /// The content of page `index` after it was written for the `sequence`th time.
    pub(crate) fn new(index: u64, sequence: u64, seed: u64) -> Self {
        let state = mix(mix(mix(seed) ^ index) ^ sequence);
        Self(match state % 16 {
            0..8 => Rule::Chance([CHANCE, index, sequence, seed], state | 1),
            8..11 => {
                let digits = state.to_le_bytes().map(|byte| u64::from(b'a' + byte % 16) * 0x0101_0101);
                Rule::Text([TEXT, index, sequence, seed], digits)
            }
            11..13 => Rule::Zero,
            _ => {
                let twin = state / 16 % TWINS;
                Rule::Chance([TWIN, twin, 0, 0], mix(twin) | 1)
            }
        })
    }

    /// Calls `each` with every word and its place, until it says false.
    fn walk(&self, mut each: impl FnMut(usize, u64) -> bool) {
        // One loop for each rule, so that no word is decided about: emulated, that would be most of the time.
        let _ = match self.0 {
            Rule::Zero => (0..WORDS).all(|place| each(place, 0)),
            Rule::Chance(header, mut state) => {
                (0..4).all(|place| each(place, header[place]))
                    && (4..WORDS).all(|place| {
                        // xorshift64
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        each(place, state)
                    })
            }
            Rule::Text(header, words) => {
                (0..4).all(|place| each(place, header[place]))
                    && (4..WORDS).all(|place| each(place, words[place % 8]))
            }
        };
    }

    /// Writes it into a page.
    pub(crate) fn write(&self, page: &mut Page) {
        self.walk(|place, word| {
            page[place] = word;
            true
        });
    }

    /// The first word of the page that is not as it should be: its place, what it should be, what it is.
    pub(crate) fn differs(&self, page: &Page) -> Option<(usize, u64, u64)> {
        let mut found = None;
        self.walk(|place, word| {
            if page[place] != word {
                found = Some((place, word, page[place]));
            }
            found.is_none()
        });
        found
    }
}

/// Spreads a number over all bits (the finalizer of splitmix64).
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(index: u64, sequence: u64, seed: u64) -> Page {
        let mut page = [0; WORDS];
        Content::new(index, sequence, seed).write(&mut page);
        page
    }

    #[test]
    fn half_of_the_pages_are_chance_and_some_are_zero_or_twins_in_any_guest() {
        let count = |first: u64| (0..1600).filter(|index| page(*index, 1, 7)[0] == first).count();
        assert!((700..900).contains(&count(CHANCE)), "{}", count(CHANCE));
        assert!((100..300).contains(&count(0)), "{}", count(0));
        let twins = |seed| (0..1600).map(move |index| page(index, 1, seed)).filter(|page| page[0] == TWIN);
        let mine: std::collections::HashSet<Page> = twins(7).collect();
        assert!(mine.len() <= TWINS as usize);
        assert!(twins(8).filter(|page| mine.contains(page)).count() > 100);
    }

    #[test]
    fn a_wrong_word_and_an_older_page_are_found() {
        let sequence = (1..).find(|sequence| page(5, *sequence, 7)[0] == CHANCE).unwrap();
        let content = Content::new(5, sequence, 7);
        let mut held = page(5, sequence, 7);
        assert_eq!(content.differs(&held), None);
        held[511] ^= 1 << 40;
        assert_eq!(content.differs(&held), Some((511, held[511] ^ (1 << 40), held[511])));
        assert!(Content::new(5, sequence + 1, 7).differs(&page(5, sequence, 7)).is_some());
        assert!(Content::ZERO.differs(&held).is_some());
    }
}
