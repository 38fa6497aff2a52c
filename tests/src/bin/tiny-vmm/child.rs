//! A fork of the VMM that does as it is told: it has a copy of the address space, shares what is shared, and writes through a page table
//! of its own. Owns the child and the pipes to it.
#![expect(unsafe_code, reason = "forks; the child writes memory that it has inherited")]

use std::{
    io::{PipeReader, PipeWriter},
    io::{Read, Write, pipe},
};

use crate::ram::{PAGE, PATTERN_OFFSETS};

type Result<T> = std::result::Result<T, String>;

/// An order: address of the first page, pages, pattern.
const ORDER: usize = 24;

/// The child; dropping it ends it.
pub(crate) struct Child {
    pid: i32,
    orders: PipeWriter,
    answers: PipeReader,
}

impl Child {
    /// Forks. The child has one thread, which only reads orders and writes memory: no lock that another thread held is touched.
    pub(crate) fn fork() -> Result<Self> {
        let (mut their_orders, orders) = pipe().map_err(|e| format!("pipe: {e}"))?;
        let (answers, mut their_answers) = pipe().map_err(|e| format!("pipe: {e}"))?;
        // SAFETY: the child calls nothing but read, write and _exit.
        match unsafe { libc::fork() } {
            -1 => Err(format!("fork: {}", std::io::Error::last_os_error())),
            0 => {
                let mut order = [0; ORDER];
                drop(orders);
                drop(answers);
                while their_orders.read_exact(&mut order).is_ok() {
                    obey(&order);
                    if their_answers.write_all(&[1]).is_err() {
                        break;
                    }
                }
                // SAFETY: ends the child without running what the parent has to run at its end.
                unsafe { libc::_exit(0) }
            }
            pid => Ok(Self { pid, orders, answers }),
        }
    }

    /// The child writes the same pattern as the guest would.
    pub(crate) fn poke(&mut self, address: usize, count: u64, key: u32) -> Result<()> {
        let order = [address as u64, count, u64::from(key)].map(u64::to_le_bytes).concat();
        self.orders.write_all(&order).map_err(|e| format!("tell the child: {e}"))?;
        self.answers.read_exact(&mut [0]).map_err(|e| format!("the child: {e}"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: it is our own child, which nobody has waited for yet.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

fn obey(order: &[u8; ORDER]) {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| order[at + i]));
    let (start, count, key) = (word(0) as *mut u8, word(8), word(16) as u32);
    for page in 0..count {
        for offset in PATTERN_OFFSETS {
            let at = (page * PAGE) as usize + offset as usize;
            // SAFETY: the parent has checked that these pages are guest RAM, which the child has at the same place.
            unsafe { start.add(at).cast::<u32>().write_volatile(key.wrapping_add(page as u32)) };
        }
    }
}
