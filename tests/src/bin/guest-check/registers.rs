//! Compares the CPU's registers with memory. Owns a counter that is kept in a register and in two pages at once: a guest
//! whose memory is older or newer than its CPU, be it by one write, counts differently in them.
#![expect(unsafe_code, reason = "only assembly keeps a counter in a register")]

use std::arch::asm;

/// The counter, as the program's own memory (its stack) has it.
#[derive(Debug, Default)]
pub(crate) struct Counter(u64);

impl Counter {
    /// Counts on `times` times, in all places; the three values if they differ at any time.
    pub(crate) fn count(&mut self, first: &mut u64, second: &mut u64, times: u32) -> Result<(), [u64; 3]> {
        let mut register = self.0;
        let mut left = times.max(1);
        // SAFETY: writes only the two numbers, which are borrowed for it, and the registers named.
        unsafe {
            asm!(
                "2:",
                "add {register}, 1",
                "add qword ptr [{first}], 1",
                "add qword ptr [{second}], 1",
                "cmp {register}, qword ptr [{first}]",
                "jne 3f",
                "cmp {register}, qword ptr [{second}]",
                "jne 3f",
                "sub {left:e}, 1",
                "jnz 2b",
                "3:",
                register = inout(reg) register,
                left = inout(reg) left,
                first = in(reg) first,
                second = in(reg) second,
                options(nostack),
            );
        }
        self.0 += u64::from(times.max(1));
        if left == 0 && register == self.0 { Ok(()) } else { Err([register, *first, *second]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_went_back_is_found() {
        let (mut counter, mut first, mut second) = (Counter::default(), 0, 0);
        assert_eq!(counter.count(&mut first, &mut second, 1000), Ok(()));
        assert_eq!((first, second), (1000, 1000));
        second = 999;
        assert_eq!(counter.count(&mut first, &mut second, 1000), Err([1001, 1001, 1000]));
    }
}
