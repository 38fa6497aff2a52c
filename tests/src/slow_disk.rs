//! A disk that takes its time: a FUSE file system with one file, whose reads are answered when the test says so. Owns the mount.
//!
//! Whoever reads the file by direct I/O has pinned the pages it reads into when the request arrives here; the kernel writes them when it is answered.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, FileAttr, FileType, Filesystem, KernelConfig, MountOption, ReplyAttr, ReplyData,
    ReplyEntry, ReplyOpen, Request,
};

use crate::{PAGE, Scratch, wait};

/// The file's name and number; the folder's number is 1.
const NAME: &str = "disk";
const FILE: u64 = 2;
/// Pages of the file.
const PAGES: u64 = 256;
/// How long the kernel may remember what it was told.
const TTL: Duration = Duration::from_secs(60);

/// A mounted file. Drop it before whoever reads it: a process that waits for an answer can't even be killed.
pub struct SlowDisk {
    folder: PathBuf,
    held: Arc<Mutex<Held>>,
    /// Serves it.
    session: Option<BackgroundSession>,
}

#[derive(Default)]
struct Held {
    hold: bool,
    waiting: Vec<(ReplyData, Vec<u8>)>,
}

impl SlowDisk {
    /// Mounts it; reads are answered at once.
    ///
    /// # Panics
    /// If it can't be mounted: that takes root and /dev/fuse.
    #[must_use]
    pub fn mount(scratch: &Scratch, name: &str) -> Self {
        let folder = scratch.path(name);
        fs::create_dir(&folder).expect("a folder can be made");
        let held = Arc::default();
        let options = [MountOption::RO, MountOption::FSName("memdex-slow-disk".to_owned())];
        let session =
            fuser::spawn_mount2(Server(Arc::clone(&held)), &folder, &options).expect("FUSE can be mounted");
        Self { folder, held, session: Some(session) }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// What a page of the file holds.
    #[must_use]
    pub fn page(page: u64) -> Vec<u8> {
        (0..PAGE).map(|byte| (byte % 251) as u8 ^ (page as u8) | 1).collect()
    }

    /// From now on reads are not answered.
    pub fn hold(&self) {
        lock(&self.held).hold = true;
    }

    /// Waits until so many reads wait for their answer.
    ///
    /// # Panics
    /// If they do not come.
    pub fn wait_for_reads(&self, reads: usize) {
        wait::until("reads of the slow disk", Duration::from_secs(10), || {
            (lock(&self.held).waiting.len() >= reads).then_some(())
        });
    }

    /// Answers all reads, and further ones at once.
    pub fn release(&self) {
        let mut held = lock(&self.held);
        held.hold = false;
        for (reply, bytes) in held.waiting.drain(..) {
            reply.data(&bytes);
        }
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.release();
        let _ = rustix::mount::unmount(&self.folder, rustix::mount::UnmountFlags::DETACH);
        drop(self.session.take());
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Server(Arc<Mutex<Held>>);

fn attributes(number: u64) -> FileAttr {
    let folder = number != FILE;
    FileAttr {
        ino: number,
        size: if folder { 0 } else { PAGES * PAGE },
        blocks: PAGES * PAGE / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if folder { FileType::Directory } else { FileType::RegularFile },
        perm: if folder { 0o755 } else { 0o444 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PAGE as u32,
        flags: 0,
    }
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request<'_>, config: &mut KernelConfig) -> Result<(), libc::c_int> {
        // Without it io_submit(2) would wait for the answer.
        let _ = config.add_capabilities(fuser::consts::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&mut self, _: &Request<'_>, _: u64, name: &OsStr, reply: ReplyEntry) {
        if Path::new(name) == Path::new(NAME) {
            reply.entry(&TTL, &attributes(FILE), 0);
        } else {
            reply.error(libc::ENOENT);
        }
    }

    fn getattr(&mut self, _: &Request<'_>, number: u64, _: Option<u64>, reply: ReplyAttr) {
        reply.attr(&TTL, &attributes(number));
    }

    fn open(&mut self, _: &Request<'_>, _: u64, _: i32, reply: ReplyOpen) {
        reply.opened(0, 0);
    }

    fn read(
        &mut self,
        _: &Request<'_>,
        _: u64,
        _: u64,
        offset: i64,
        size: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyData,
    ) {
        let first = offset.cast_unsigned() / PAGE;
        let end = (first + u64::from(size) / PAGE).min(PAGES);
        let bytes: Vec<u8> = (first..end).flat_map(SlowDisk::page).collect();
        let mut held = lock(&self.0);
        if held.hold {
            held.waiting.push((reply, bytes));
        } else {
            reply.data(&bytes);
        }
    }
}
