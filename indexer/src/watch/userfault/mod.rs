//! A userfaultfd in a VMM's address space: registering RAM and arming it against silent writes.
//!
//! Owns the descriptor and the `UFFDIO_*` ioctls (ioctl_userfaultfd(2)). In WP_ASYNC mode the kernel resolves a write
//! fault on an armed page by itself and only notes that it happened, so nobody ever waits for the daemon, and a daemon
//! that dies leaves nothing but pages whose first write costs a fault. The descriptor stays in the VMM, and with it the protection and the notes,
//! for the next daemon, which finds it ([`found`]). Reading the notes is [`super::pagemap`]'s.
//!
//! # Minimum kernel version
//! 6.7

mod found;
mod request;

use std::{
    fs, io,
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use linux_raw_sys::general::{
    UFFD_FEATURE_MISSING_SHMEM, UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_SIGBUS, UFFD_FEATURE_WP_ASYNC,
    UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_FEATURE_WP_UNPOPULATED, UFFD_USER_MODE_ONLY,
    UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP,
};
use rustix::io::Errno;

use self::found::{Candidate, features, fetch, inode, left_behind};
pub use self::found::{Token, detach};
use super::{
    inject::{self, Call, InjectError},
    process::{Process, is_gone},
};
use crate::{units::Hva, vm::descriptor::ProcessId};

/// A userfaultfd of a VMM, in WP_ASYNC mode.
#[derive(Debug)]
pub struct UserFault {
    process: Option<ProcessId>,
    /// Found in the VMM, not known yet to belong to its address space (see [`UserFault::register`]). Locked at the first call of that.
    candidates: Mutex<Vec<Candidate>>,
    chosen: OnceLock<Chosen>,
}

/// The descriptor that is used.
#[derive(Debug)]
struct Chosen {
    fd: OwnedFd,
    /// Its number in the VMM, where that is known.
    number: Option<i32>,
    report: AttachReport,
}

/// How a userfaultfd was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachReport {
    /// Where it is from.
    pub origin: Origin,
    /// How long a thread of the VMM was stopped for it, at most.
    pub stopped: Duration,
}

/// Where a userfaultfd is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The VMM made it and handed it over.
    HandedOver,
    /// An earlier daemon left it in the VMM, and this one goes on where that stopped.
    Reused,
    /// An injected system call made it. One that an earlier daemon had left was closed.
    Injected,
}

/// Why no userfaultfd could be had. The VMM is unharmed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The process has ended.
    #[error("the VMM process has ended; nothing to do")]
    Gone,
    /// Another daemon watches this VM.
    #[error(
        "another memdex daemon watches this VM, and two would hide writes from each other; \
         exclude it there (--exclude) or here"
    )]
    Claimed,
    /// The kernel lacks what is needed.
    #[error(
        "this kernel can't track writes asynchronously (userfaultfd WP_ASYNC: {0}); Linux 6.7 or newer is needed"
    )]
    Unsupported(io::Error),
    /// No system call could be injected.
    #[error(transparent)]
    Inject(#[from] InjectError),
    /// The injected call was made and failed.
    #[error(
        "the VMM may not create a userfaultfd ({0}); check its file limit and security policy (SELinux, AppArmor)"
    )]
    Refused(Errno),
    /// Anything else.
    #[error("could not {step} the VMM: {error}; the daemon needs CAP_SYS_PTRACE, run it as root")]
    Io {
        /// What failed, as a verb.
        step: &'static str,
        /// The system's answer.
        error: io::Error,
    },
}

/// Why a range could not be registered or armed.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// The process has ended.
    #[error("the VMM process has ended; nothing to do")]
    Gone,
    /// The range (or a part of it) is not mapped, not registered, or not memory that can be watched.
    #[error(
        "the range {0}-{1} can't be watched: not mapped there, or memory of another kind than shmem, hugetlbfs or anonymous"
    )]
    NotWatchable(Hva, Hva),
    /// Another userfaultfd (postcopy, background snapshot, another tool) has the range.
    #[error(
        "another userfaultfd of the VMM has the range {0}-{1} (snapshot or postcopy under way?); it will be tried again"
    )]
    Taken(Hva, Hva),
    /// The address space kept changing.
    #[error("the VMM's address space kept changing while it was armed; it will be tried again")]
    Busy,
    /// Anything else.
    #[error("arming the VMM's memory failed: {0}")]
    Io(io::Error),
}

/// Asynchronous write protection of anonymous, shmem and hugetlbfs memory. WP_UNPOPULATED too: without it the kernel does
/// not count anonymous memory as watched (`userfaultfd_wp_use_markers`).
const FEATURES: u64 = (UFFD_FEATURE_WP_ASYNC
    | UFFD_FEATURE_WP_UNPOPULATED
    | UFFD_FEATURE_WP_HUGETLBFS_SHMEM
    | UFFD_FEATURE_PAGEFAULT_FLAG_WP) as u64;

/// Always UFFD_USER_MODE_ONLY: what an unprivileged VMM may have (`vm.unprivileged_userfaultfd=0` is the default), and with
/// WP_ASYNC the kernel's own writes are tracked nevertheless.
const FLAGS: u64 = libc::O_CLOEXEC as u64 | libc::O_NONBLOCK as u64 | UFFD_USER_MODE_ONLY as u64;

/// Gets a new userfaultfd of the process, by injecting one system call. One that an earlier daemon left there is closed, with a second call, and with it goes all that
/// it has armed.
///
/// # Errors
/// See [`AttachError`].
pub fn attach(process: ProcessId) -> Result<UserFault, AttachError> {
    let process = Process::open(process).map_err(wrap("attach to"))?;
    let candidates = left_behind(&process)?;
    let chosen = OnceLock::new();
    if candidates.is_empty() {
        let _ = chosen.set(inject_new(&process)?);
    }
    Ok(UserFault { process: Some(process.id()), candidates: Mutex::new(candidates), chosen })
}

/// Takes over the userfaultfd of this name, which an earlier daemon left in the process; `None` if it is not there any more. What it has armed stays armed.
/// The name has to have been taken in this very process: one that was forked from it has the descriptor too, and it acts on the parent.
///
/// # Errors
/// See [`AttachError`].
pub fn reattach(process: ProcessId, token: Token) -> Result<Option<UserFault>, AttachError> {
    let process = Process::open(process).map_err(wrap("attach to"))?;
    let Some(fd) =
        Candidate::at(&process, token.number).filter(|found| inode(&found.fd) == Some(token.inode))
    else {
        return Ok(None);
    };
    let report = AttachReport { origin: Origin::Reused, stopped: Duration::ZERO };
    let chosen = Chosen { fd: fd.fd, number: Some(token.number), report };
    Ok(Some(UserFault {
        process: Some(process.id()),
        candidates: Mutex::default(),
        chosen: OnceLock::from(chosen),
    }))
}

/// Lets the VMM make a new one.
fn inject_new(process: &Process) -> Result<Chosen, AttachError> {
    // On the daemon itself first: a kernel that can't do it is no reason to stop a VMM.
    probe()?;
    let call = Call { number: libc::SYS_userfaultfd, arguments: [FLAGS, 0, 0] };
    let returned = inject::call(process, call)?;
    let number = returned.value.map_err(AttachError::Refused)?;
    let fetched = i32::try_from(number)
        .map_err(io::Error::other)
        .and_then(|number| fetch(process, number))
        .map_err(wrap("take the userfaultfd of"))
        .and_then(|fd| initialize(&fd).map(|()| fd).map_err(|error| AttachError::Unsupported(error.into())));
    match fetched {
        Ok(fd) => {
            let report = AttachReport { origin: Origin::Injected, stopped: returned.stopped };
            Ok(Chosen { fd, number: i32::try_from(number).ok(), report })
        }
        Err(error) => {
            // Don't leave descriptors behind that nobody can use: the next attempt would add another one.
            let close = Call { number: libc::SYS_close, arguments: [number, 0, 0] };
            if let Err(error) = inject::call(process, close) {
                tracing::warn!(pid = process.id().pid, %error, "an unused userfaultfd stays in the VMM");
            }
            Err(error)
        }
    }
}

/// Tries a userfaultfd with the needed features in the daemon's own process.
///
/// # Errors
/// [`AttachError::Unsupported`] if the kernel can't.
pub fn probe() -> Result<(), AttachError> {
    request::own(FLAGS).and_then(|fd| initialize(&fd).map_err(Into::into)).map_err(AttachError::Unsupported)
}

/// A userfaultfd of the daemon's own address space, to watch writes to its own memory.
pub(crate) fn own() -> Result<UserFault, AttachError> {
    request::own(FLAGS).map_err(AttachError::Unsupported).and_then(UserFault::from_fd)
}

/// A userfaultfd of the daemon's own address space, for [`register_missing`].
pub(crate) fn own_for_missing() -> io::Result<OwnedFd> {
    let fd = request::own(FLAGS)?;
    request::initialize(&fd, (UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_SIGBUS).into())?;
    Ok(fd)
}

/// Makes reading a page of a shmem mapping of the daemon that is not in the file raise SIGBUS instead of allocating it.
pub(crate) fn register_missing(fd: &OwnedFd, addresses: Range<usize>) -> io::Result<()> {
    let range = Hva(addresses.start as u64)..Hva(addresses.end as u64);
    request::register(fd, &range, UFFDIO_REGISTER_MODE_MISSING).map_err(Into::into)
}

fn initialize(fd: &OwnedFd) -> Result<(), Errno> {
    request::initialize(fd, FEATURES)
}

fn wrap(step: &'static str) -> impl FnOnce(io::Error) -> AttachError {
    move |error| if is_gone(&error) { AttachError::Gone } else { AttachError::Io { step, error } }
}

impl UserFault {
    /// Takes over a userfaultfd that a VMM handed to us. If the VMM has not done the UFFDIO_API handshake, it is done here.
    ///
    /// # Errors
    /// [`AttachError::Unsupported`] if it isn't a userfaultfd, or one without asynchronous write protection.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, AttachError> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
            .map_err(AttachError::Unsupported)?;
        match features(&info) {
            Some(features) if features & FEATURES == FEATURES => {}
            Some(_) => initialize(&fd).map_err(|error| AttachError::Unsupported(error.into()))?,
            None => return Err(AttachError::Unsupported(io::Error::other("not a userfaultfd"))),
        }
        let report = AttachReport { origin: Origin::HandedOver, stopped: Duration::ZERO };
        let chosen = Chosen { fd, number: None, report };
        Ok(Self { process: None, candidates: Mutex::default(), chosen: OnceLock::from(chosen) })
    }

    /// Its name; `None` before the first [`UserFault::register`] if that has to find out, and where userfaultfds cannot be told from one another.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        let chosen = self.chosen.get()?;
        Some(Token { number: chosen.number?, inode: inode(&chosen.fd)? })
    }

    /// How it was come by.
    #[must_use]
    pub fn report(&self) -> AttachReport {
        let injected = AttachReport { origin: Origin::Injected, stopped: Duration::ZERO };
        self.chosen.get().map_or(injected, |chosen| chosen.report)
    }

    /// Makes a range watchable: nothing is armed yet, but [`super::pagemap::Pagemap`] can check from now on that the mapping is
    /// still the one that was registered. Repeating it is harmless.
    ///
    /// A userfaultfd acts on the address space in which it was *made*. A process that was forked from a watched one, without `execve`,
    /// has the parent's descriptor, and using that would disarm the parent. So a descriptor that was found in the VMM has to show by its effect that it is
    /// the VMM's own. Then it is closed, and in any case a new one is injected here.
    ///
    /// # Errors
    /// [`ArmError::NotWatchable`] if it isn't mapped or can't be watched, [`ArmError::Taken`] if another userfaultfd has it.
    pub fn register(&self, range: Range<Hva>) -> Result<(), ArmError> {
        if let Some(chosen) = self.chosen.get() {
            return match register(&chosen.fd, &range) {
                // Perhaps by one that an earlier daemon left, which could not show before that it was one.
                Err(ArmError::Taken(..)) if self.close_found(&range)? => register(&chosen.fd, &range),
                outcome => outcome,
            };
        }
        self.close_found(&range)?;
        let process = self.process.ok_or(ArmError::Gone)?;
        let process = Process::open(process).map_err(|_| ArmError::Gone)?;
        let new = inject_new(&process).map_err(not_arming)?;
        register(&self.chosen.get_or_init(|| new).fd, &range)
    }

    /// Closes those that were found in the VMM and act on this range. Whoever left one may still mean to go on with it: he must see that somebody else has come
    /// in between. Returns whether there was one.
    fn close_found(&self, range: &Range<Hva>) -> Result<bool, ArmError> {
        let mut candidates = self.candidates.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(id) = self.process.filter(|_| !candidates.is_empty()) else { return Ok(false) };
        let process = Process::open(id).map_err(|_| ArmError::Gone)?;
        let (ours, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *candidates).into_iter().partition(|found| found.acts_on(id, range));
        *candidates = others;
        let any = !ours.is_empty();
        for found in ours {
            found.close(&process).map_err(not_arming)?;
        }
        Ok(any)
    }

    /// Stops watching a range and disarms it.
    ///
    /// # Errors
    /// As [`UserFault::register`].
    pub fn unregister(&self, range: Range<Hva>) -> Result<(), ArmError> {
        unregister(self.fd(&range)?, &range)
    }

    /// Arms a range: from the return of this call on, a write to any page of it will be seen. Pages that are not populated get a
    /// marker in the page table (2 MiB per GiB), so it is meant for populated runs.
    ///
    /// The notes about earlier writes are gone afterwards: **arm first, then read the bytes**, never the other way round.
    ///
    /// # Errors
    /// [`ArmError::NotWatchable`] if a part of the range is not registered. A part of the range may be armed then.
    pub fn arm(&self, range: Range<Hva>) -> Result<(), ArmError> {
        let fd = self.fd(&range)?;
        // EAGAIN: somebody changes the layout of the address space at this moment.
        for attempt in 0..100_u32 {
            match request::write_protect(fd, &range) {
                Err(Errno::AGAIN) if attempt < 10 => std::thread::yield_now(),
                Err(Errno::AGAIN) => std::thread::sleep(Duration::from_micros(200)),
                other => return other.map_err(|error| explain(error, &range)),
            }
        }
        Err(ArmError::Busy)
    }

    fn fd(&self, range: &Range<Hva>) -> Result<&OwnedFd, ArmError> {
        let chosen = self.chosen.get().ok_or(ArmError::NotWatchable(range.start, range.end))?;
        Ok(&chosen.fd)
    }
}

fn register(fd: &OwnedFd, range: &Range<Hva>) -> Result<(), ArmError> {
    request::register(fd, range, UFFDIO_REGISTER_MODE_WP).map_err(|error| explain(error, range))
}

fn unregister(fd: &OwnedFd, range: &Range<Hva>) -> Result<(), ArmError> {
    request::unregister(fd, range).map_err(|error| explain(error, range))
}

fn not_arming(error: AttachError) -> ArmError {
    match error {
        AttachError::Gone => ArmError::Gone,
        other => ArmError::Io(io::Error::other(other)),
    }
}

fn explain(error: Errno, range: &Range<Hva>) -> ArmError {
    match error {
        Errno::SRCH => ArmError::Gone,
        // ENOMEM from UFFDIO_REGISTER also means that the process has ended (mmget_not_zero failed), or nothing is mapped.
        Errno::NOENT | Errno::INVAL | Errno::NOMEM | Errno::PERM => {
            ArmError::NotWatchable(range.start, range.end)
        }
        Errno::BUSY => ArmError::Taken(range.start, range.end),
        _ => ArmError::Io(error.into()),
    }
}
