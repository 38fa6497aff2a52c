//! What few VMMs do, or do seldom: direct I/O, io_uring, a fork, memory that is mapped anew or moved.

use super::{Machine, Result, lock};
use crate::{child::Child, disk::How, ram::PAGE, uring::Uring};

impl Machine {
    pub(crate) fn open_disk(&self, path: &str) -> Result<String> {
        lock(&self.0.disk).open(path)?;
        Ok(String::new())
    }

    pub(crate) fn close_disk(&self) -> Result<String> {
        lock(&self.0.disk).close();
        Ok(String::new())
    }

    pub(crate) fn read_disk(&self, first: u64, count: u64, how: How) -> Result<String> {
        let mut disk = lock(&self.0.disk);
        self.0.with_page(first, |ram, page| {
            disk.read(ram.at(page, count)? as usize, (count * PAGE) as usize, how)
        })
    }

    pub(crate) fn wait_for_disk(&self) -> Result<String> {
        lock(&self.0.disk).wait().map(|bytes| bytes.to_string())
    }

    pub(crate) fn open_uring(&self, path: &str) -> Result<String> {
        *lock(&self.0.uring) = Some(Uring::open(path)?);
        Ok(String::new())
    }

    pub(crate) fn close_uring(&self) -> Result<String> {
        *lock(&self.0.uring) = None;
        Ok(String::new())
    }

    pub(crate) fn register_buffer(&self, first: u64, count: u64) -> Result<String> {
        let uring = lock(&self.0.uring);
        let uring = uring.as_ref().ok_or("no io_uring is open")?;
        self.0.with_page(first, |ram, page| {
            uring.register(ram.at(page, count)? as usize, (count * PAGE) as usize)
        })
    }

    pub(crate) fn unregister_buffer(&self) -> Result<String> {
        lock(&self.0.uring).as_ref().ok_or("no io_uring is open")?.unregister()?;
        Ok(String::new())
    }

    pub(crate) fn read_uring(&self, first: u64, count: u64, fixed: bool) -> Result<String> {
        let mut uring = lock(&self.0.uring);
        let uring = uring.as_mut().ok_or("no io_uring is open")?;
        let len = (count * PAGE) as usize;
        self.0.with_page(first, |ram, page| {
            let read = uring.read(ram.at(page, count)? as usize, len, fixed)?;
            if read == len { Ok(()) } else { Err(format!("{read} of {len} bytes came")) }
        })
    }

    /// Forks; the child waits for orders.
    pub(crate) fn fork(&self) -> Result<String> {
        *lock(&self.0.child) = Some(Child::fork()?);
        Ok(String::new())
    }

    pub(crate) fn end_child(&self) -> Result<String> {
        *lock(&self.0.child) = None;
        Ok(String::new())
    }

    /// As `poke`, by the child.
    pub(crate) fn child_poke(&self, first: u64, count: u64, seed: u32) -> Result<String> {
        let mut child = lock(&self.0.child);
        let child = child.as_mut().ok_or("there is no child")?;
        self.0.with_page(first, |ram, page| child.poke(ram.at(page, count)? as usize, count, seed))
    }

    /// Maps fresh memory over the slot's, or the same file once more, or another one.
    pub(crate) fn remap(&self, id: u32, other_file: bool) -> Result<String> {
        lock(&self.0.slots).get_mut(&id).ok_or_else(|| format!("no slot {id}"))?.ram.remap(other_file)?;
        Ok(String::new())
    }

    /// Moves the slot's memory to other addresses of the VMM; for the guest it stays where it is.
    pub(crate) fn relocate(&self, id: u32) -> Result<String> {
        let mut slots = lock(&self.0.slots);
        let slot = slots.get_mut(&id).ok_or_else(|| format!("no slot {id}"))?;
        self.0.set_slot(id, slot.first, 0, slot.ram.address())?;
        slot.ram.relocate()?;
        self.0.set_slot(id, slot.first, slot.ram.pages(), slot.ram.address())?;
        Ok(String::new())
    }
}
