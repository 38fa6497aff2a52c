//! Surviving SIGBUS while reading a mapped file that somebody else can shorten or punch.
//!
//! Owns the process's SIGBUS handler and the list of address ranges in which a SIGBUS is expected. A fault in one of them puts a page of zeros
//! there and notes it; the reader goes on and throws its result away afterwards. Any other SIGBUS goes to the handler that was there before.
#![expect(unsafe_code, reason = "a signal handler")]

use std::{
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use memdex_wire::PAGE_SIZE;

/// Ranges guarded at the same time: more than a host has workers that read. Beyond that, reading falls back to copies.
const MOST_GUARDS: usize = 256;

/// One guarded range. Free while `start` is 0. `end` is set last and cleared first, so that a handler on another thread
/// never sees a range that isn't one.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    faults: AtomicU32,
}

static SLOTS: [Slot; MOST_GUARDS] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), faults: AtomicU32::new(0) } };
        MOST_GUARDS];

const ABSENT: u32 = 1;
const BROKEN: u32 = 2;

/// What happened in a guarded range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Faults {
    /// A page was not in the file: a hole, or behind its end. It read as zeros.
    pub(super) absent: bool,
    /// The hardware could not read a page.
    pub(super) broken: bool,
}

/// A guarded range, until dropped.
#[derive(Debug)]
pub(super) struct Guard {
    slot: &'static Slot,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed))
    }
}

impl Guard {
    /// Guards a range of addresses; `None` if there is no room for another one.
    ///
    /// # Safety
    /// The range is a mapping of whole pages that nobody but the caller uses, and it stays mapped until the guard is dropped: a fault replaces
    /// the page at fault by zeros.
    pub(super) unsafe fn new(range: Range<usize>) -> Option<Self> {
        if !installed() {
            return None;
        }
        let slot = SLOTS.iter().find(|slot| {
            slot.start.compare_exchange(0, range.start, Ordering::Acquire, Ordering::Relaxed).is_ok()
        })?;
        slot.faults.store(0, Ordering::Relaxed);
        slot.end.store(range.end, Ordering::Release);
        Some(Self { slot })
    }

    pub(super) fn faults(&self) -> Faults {
        // The handler ran on a thread that has read the range on behalf of the caller, so what it stored is visible.
        let faults = self.slot.faults.load(Ordering::Acquire);
        Faults { absent: faults & ABSENT != 0, broken: faults & BROKEN != 0 }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.slot.end.store(0, Ordering::Release);
        self.slot.start.store(0, Ordering::Release);
    }
}

/// The handler that was there before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler once.
fn installed() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // SAFETY: all-zero bits are a valid `sigaction`; the pointers are to local variables. The previous action is known before ours can run. The
        // handler only does what is allowed in one (see there).
        unsafe {
            let mut previous: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) != 0 {
                return false;
            }
            let _ = PREVIOUS.set(previous);
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) == 0
        }
    })
}

/// Uses only atomics and system calls: no allocation, no locks, `errno` kept.
extern "C" fn on_bus_error(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands over a valid siginfo; for a SIGBUS from a fault it holds the address (for one that was sent, some number, which
    // is in no guarded range as `si_code` is not positive then).
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code > 0 {
        for slot in &SLOTS {
            let end = slot.end.load(Ordering::Acquire);
            let start = slot.start.load(Ordering::Relaxed);
            if (start..end).contains(&address) {
                let kind = if code == libc::BUS_ADRERR { ABSENT } else { BROKEN };
                slot.faults.fetch_or(kind, Ordering::Release);
                if put_zeros(address & !(PAGE_SIZE - 1)) {
                    return;
                }
            }
        }
    }
    // SAFETY: the arguments are those of this call.
    unsafe { pass_on(signal, info, context) };
}

/// Replaces a page by zeros.
fn put_zeros(page: usize) -> bool {
    // SAFETY: the page is inside a guarded range, which by the contract of `Guard::new` is a mapping of its own that may be replaced. A system call is
    // allowed in a signal handler; `errno` is put back.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let mapped =
            libc::syscall(libc::SYS_mmap, page, PAGE_SIZE, libc::PROT_READ, flags, -1_isize, 0_usize);
        *errno = saved;
        usize::try_from(mapped) == Ok(page)
    }
}

/// Does what would have happened without us.
///
/// # Safety
/// Only from the handler, with its arguments.
unsafe fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the previous action was installed by somebody for this signal, with the flags it is called by here.
    unsafe {
        match PREVIOUS.get() {
            Some(previous) if !matches!(previous.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) => {
                if previous.sa_flags & libc::SA_SIGINFO != 0 {
                    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                        std::mem::transmute(previous.sa_sigaction);
                    handler(signal, info, context);
                } else {
                    let handler: extern "C" fn(i32) = std::mem::transmute(previous.sa_sigaction);
                    handler(signal);
                }
            }
            // One that was sent is ignored; a fault would only come again.
            Some(previous) if previous.sa_sigaction == libc::SIG_IGN && (*info).si_code <= 0 => {}
            _ => {
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
                // Pending until the handler has returned, and then final.
                libc::raise(signal);
            }
        }
    }
}
