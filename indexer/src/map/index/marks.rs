//! A string of bits in which ones and zeros are counted, found, put in and taken out. Knows nothing of what they stand for.

/// Position of the zero that has `n` zeros before it; the end if there is none.
pub(super) fn nth_zero(bytes: &[u8], mut n: u32) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut at = 0;
    for word in words {
        let zeros = !u64::from_le_bytes(*word);
        let count = zeros.count_ones();
        if n < count {
            return at + nth_one(zeros, n);
        }
        n -= count;
        at += 64;
    }
    for byte in rest {
        let zeros = !*byte;
        let count = zeros.count_ones();
        if n < count {
            return at + nth_one(u64::from(zeros), n);
        }
        n -= count;
        at += 8;
    }
    at
}

/// Position of the one that has `n` ones before it. There is one. Without a branch: no processor can guess where it would lead.
const fn nth_one(word: u64, n: u32) -> usize {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let pairs = word - ((word >> 1) & (0x55 * EACH));
    let nibbles = (pairs & (0x33 * EACH)) + ((pairs >> 2) & (0x33 * EACH));
    let bytes = (nibbles + (nibbles >> 4)) & (0x0f * EACH);
    // In each byte the number of ones up to its end.
    let sums = bytes.wrapping_mul(EACH);
    // The bytes that end before it, or with the one before it: in those the subtraction leaves the high bit.
    let before = ((((n as u64 * EACH) | (0x80 * EACH)) - sums) & (0x80 * EACH)) >> 7;
    let bit = (before.wrapping_mul(EACH) >> 56) as usize * 8;
    let n = n as usize - (sums << 8 >> bit) as u8 as usize;
    bit + IN_BYTE[(word >> bit) as u8 as usize][n & 7] as usize
}

/// For each byte, where its ones are.
static IN_BYTE: [[u8; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut bit, mut n) = (0, 0);
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                table[byte][n] = bit as u8;
                n += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    table
};

/// Calls `each` with the position of every one, from the first on, `most` times at most.
pub(super) fn each_one(bytes: &[u8], most: usize, mut each: impl FnMut(usize)) {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let mut left = most;
    for (number, word) in words.iter().chain([&last]).enumerate() {
        let mut ones = u64::from_le_bytes(*word);
        while ones != 0 && left > 0 {
            each(number * 64 + ones.trailing_zeros() as usize);
            ones &= ones - 1;
            left -= 1;
        }
    }
}

/// Where the ones that begin at `at` end: at the first zero.
pub(super) fn end_of_ones(bytes: &[u8], at: usize) -> usize {
    let mut bit = at % 8;
    let mut end = at;
    for byte in &bytes[at / 8..] {
        let ones = (*byte >> bit).trailing_ones() as usize;
        end += ones;
        if ones < 8 - bit {
            break;
        }
        bit = 0;
    }
    end
}

/// Puts a one in at `at`: all from there on move up, the last one falls out.
pub(super) fn insert_one(bytes: &mut [u8], at: usize) {
    let (words, rest) = bytes.as_chunks_mut::<8>();
    let mut carry = 1;
    for (number, word) in words.iter_mut().enumerate().skip(at / 64) {
        let old = u64::from_le_bytes(*word);
        let bit = if number == at / 64 { at % 64 } else { 0 };
        let below = (1 << bit) - 1;
        *word = (old & below | (old & !below) << 1 | carry << bit).to_le_bytes();
        carry = old >> 63;
    }
    let before = words.len() * 8;
    for (number, byte) in rest.iter_mut().enumerate().skip((at / 8).saturating_sub(before)) {
        let old = u64::from(*byte);
        let bit = if before + number == at / 8 { at % 8 } else { 0 };
        let below = (1 << bit) - 1;
        *byte = (old & below | (old & !below) << 1 | carry << bit) as u8;
        carry = old >> 7;
    }
}

/// Takes out what is at `at`: all after it move down, a zero comes in at the end.
pub(super) fn take_out(bytes: &mut [u8], at: usize) {
    let (words, rest) = bytes.as_chunks_mut::<8>();
    let before = words.len() * 8;
    let mut carry = 0;
    for (number, byte) in rest.iter_mut().enumerate().skip((at / 8).saturating_sub(before)).rev() {
        let old = u64::from(*byte);
        let bit = if before + number == at / 8 { at % 8 } else { 0 };
        let below = (1 << bit) - 1;
        *byte = (old & below | old >> 1 & !below | carry << 7) as u8;
        carry = old & 1;
    }
    for (number, word) in words.iter_mut().enumerate().skip(at / 64).rev() {
        let old = u64::from_le_bytes(*word);
        let bit = if number == at / 64 { at % 64 } else { 0 };
        let below = (1 << bit) - 1;
        *word = (old & below | old >> 1 & !below | carry << 63).to_le_bytes();
        carry = old & 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(bits: &[bool]) -> Vec<u8> {
        let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
        bits.chunks(8).map(byte).collect()
    }

    proptest! {
        #[test]
        fn bits_are_found_and_moved_as_in_a_list(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xff), Just(0)], 1..40),
            at in any::<prop::sample::Index>(),
        ) {
            let bits: Vec<bool> = bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect();
            prop_assert_eq!(&packed(&bits), &bytes);
            let zeros: Vec<usize> = (0..bits.len()).filter(|bit| !bits[*bit]).collect();
            for (n, position) in zeros.iter().enumerate() {
                prop_assert_eq!(nth_zero(&bytes, n as u32), *position);
            }
            prop_assert_eq!(nth_zero(&bytes, zeros.len() as u32), bits.len());
            let mut ones = Vec::new();
            each_one(&bytes, usize::MAX, |bit| ones.push(bit));
            prop_assert_eq!(ones, (0..bits.len()).filter(|bit| bits[*bit]).collect::<Vec<_>>());
            let at = at.index(bits.len());
            let end = (at..bits.len()).find(|bit| !bits[*bit]).unwrap_or(bits.len());
            prop_assert_eq!(end_of_ones(&bytes, at), end);
            let (mut inserted, mut list) = (bytes.clone(), bits.clone());
            insert_one(&mut inserted, at);
            list.insert(at, true);
            list.pop();
            prop_assert_eq!(&inserted, &packed(&list));
            let (mut taken, mut list) = (bytes, bits);
            take_out(&mut taken, at);
            list.remove(at);
            list.push(false);
            prop_assert_eq!(&taken, &packed(&list));
        }
    }
}
