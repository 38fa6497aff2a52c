//! A VMM's memory as the kernel shows it in /proc, read behind memdex's back. Owns the list of mappings and the
//! reading of single pages; never makes a page come into being by looking at it.

use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt,
    path::PathBuf,
};

use rustix::fs::SeekFrom;

use crate::PAGE;

/// A mapping of a process. Neighbours that show a file in one piece count as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Whether writes go to the file.
    pub shared: bool,
    /// Offset in the file.
    pub offset: u64,
    /// Path as the kernel shows it; empty for anonymous memory.
    pub path: String,
    inode: u64,
    /// Name of the first of the kernel's mappings in /proc/PID/map_files.
    first: String,
}

impl Mapping {
    /// Pages in it.
    #[must_use]
    pub fn pages(&self) -> u64 {
        (self.end - self.start) / PAGE
    }

    /// Whether both show the same shared file.
    #[must_use]
    pub fn same_file(&self, other: &Self) -> bool {
        self.shared && other.shared && self.inode != 0 && self.inode == other.inode && self.path == other.path
    }
}

/// The readable and writable mappings of a process.
///
/// # Panics
/// If the process is gone.
#[must_use]
pub fn mappings(pid: u32) -> Vec<Mapping> {
    let text = fs::read(format!("/proc/{pid}/maps")).expect("the VMM has not ended");
    let mut found: Vec<Mapping> = Vec::new();
    for line in String::from_utf8_lossy(&text).lines() {
        let mut words = line.splitn(6, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (range, access, offset, _device, inode) = (word(), word(), word(), word(), word());
        let path = word().trim_start().to_owned();
        if !access.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').expect("a range has two ends");
        let hex = |text: &str| u64::from_str_radix(text, 16).expect("maps has hexadecimal numbers");
        let mapping = Mapping {
            start: hex(start),
            end: hex(end),
            shared: access.ends_with('s'),
            offset: hex(offset),
            inode: inode.parse().expect("an inode is a number"),
            path,
            first: range.to_owned(),
        };
        match found.last_mut() {
            Some(last) if last.end == mapping.start && continues(last, &mapping) => last.end = mapping.end,
            _ => found.push(mapping),
        }
    }
    found
}

fn continues(last: &Mapping, next: &Mapping) -> bool {
    let same = last.shared == next.shared && last.inode == next.inode && last.path == next.path;
    same && next.inode != 0 && last.offset + (last.end - last.start) == next.offset
}

/// Private memory of exactly this many pages: a mapping, or neighbours that make it up. The kernel splits and joins
/// them as it likes; what starts on a huge page boundary is RAM rather than something that has its size by chance.
#[must_use]
pub fn private_of_size(mappings: &[Mapping], pages: u64) -> Option<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for (at, first) in mappings.iter().enumerate().filter(|(_, mapping)| !mapping.shared) {
        let mut end = first.start;
        for next in mappings[at..].iter().take_while(|next| !next.shared) {
            if next.start != end || (end - first.start) / PAGE >= pages {
                break;
            }
            end = next.end;
        }
        if (end - first.start) / PAGE == pages {
            found.push(Mapping { end, ..first.clone() });
        }
    }
    found.sort_by_key(|mapping| !mapping.start.is_multiple_of(2 << 20));
    let clear = match &found[..] {
        [first, second, ..] => first.start.is_multiple_of(2 << 20) && !second.start.is_multiple_of(2 << 20),
        _ => true,
    };
    found.into_iter().next().filter(|_| clear)
}

/// Where the pages of a region can be read.
#[derive(Debug)]
pub enum Source {
    /// A shared file: the RAM is the file.
    File {
        /// The open file.
        file: File,
        /// Added to a page's offset; memdex gives offsets in the file.
        base: u64,
    },
    /// Memory of a process.
    Memory {
        /// /proc/PID/mem
        memory: File,
        /// /proc/PID/pagemap
        pagemap: File,
        /// Address of offset 0.
        start: u64,
    },
}

impl Source {
    /// A mapping of a process. For shared files offsets count from the file's start, else from the mapping's.
    ///
    /// # Panics
    /// If the process is gone or may not be looked at.
    #[must_use]
    pub fn of(pid: u32, mapping: &Mapping) -> Self {
        if mapping.shared && mapping.inode != 0 {
            let file = File::open(format!("/proc/{pid}/map_files/{}", mapping.first));
            let file = file.or_else(|_| File::open(&mapping.path));
            let file = file.unwrap_or_else(|error| panic!("RAM file {}: {error}", mapping.path));
            return Self::File { file, base: 0 };
        }
        let open = |name: &str| {
            let path = PathBuf::from(format!("/proc/{pid}/{name}"));
            File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        Self::Memory { memory: open("mem"), pagemap: open("pagemap"), start: mapping.start }
    }

    /// The runs of a range of offsets, which are those of whole pages, behind which there is something; all else reads as zero.
    ///
    /// # Panics
    /// If the kernel does not say.
    #[must_use]
    pub fn data(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        match self {
            Self::File { file, base } => {
                let end = base + range.end;
                let mut at = base + range.start;
                while at < end {
                    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                        Ok(start) if start < end => start / PAGE * PAGE,
                        Ok(_) | Err(rustix::io::Errno::NXIO) => break,
                        Err(error) => panic!("SEEK_DATA in a RAM file: {error}"),
                    };
                    let hole =
                        rustix::fs::seek(file, SeekFrom::Hole(start)).expect("a file ends with a hole");
                    at = hole.next_multiple_of(PAGE).min(end);
                    runs.push(start - base..at - base);
                }
            }
            Self::Memory { pagemap, start, .. } => {
                let mut entries = vec![0; ((range.end - range.start) / PAGE * 8) as usize];
                let first = (start + range.start) / PAGE * 8;
                pagemap.read_exact_at(&mut entries, first).expect("pagemap can be read");
                for (index, entry) in entries.as_chunks::<8>().0.iter().enumerate() {
                    if u64::from_le_bytes(*entry) >> 62 == 0 {
                        continue;
                    }
                    let at = range.start + index as u64 * PAGE;
                    match runs.last_mut() {
                        Some(last) if last.end == at => last.end += PAGE,
                        _ => runs.push(at..at + PAGE),
                    }
                }
            }
        }
        runs
    }

    /// Reads bytes of a run that [`Self::data`] has named.
    ///
    /// # Panics
    /// If they can't be read.
    pub fn read_run(&self, offset: u64, bytes: &mut [u8]) {
        match self {
            Self::File { file, base } => {
                file.read_exact_at(bytes, base + offset).expect("the RAM file can be read");
            }
            Self::Memory { memory, start, .. } => {
                memory.read_exact_at(bytes, start + offset).expect("the VMM's memory can be read");
            }
        }
    }

    /// Reads the page at an offset; None if nothing is there (it reads as zero).
    ///
    /// # Panics
    /// If the page can't be read.
    #[must_use]
    pub fn read(&self, offset: u64, page: &mut [u8; PAGE as usize]) -> Option<()> {
        match self {
            Self::File { file, base } => {
                let at = base + offset;
                match rustix::fs::seek(file, SeekFrom::Data(at)) {
                    Ok(data) if data < at + PAGE => {}
                    Ok(_) | Err(rustix::io::Errno::NXIO) => return None,
                    Err(error) => panic!("SEEK_DATA in a RAM file: {error}"),
                }
                file.read_exact_at(page, at).expect("the RAM file can be read");
            }
            Self::Memory { memory, pagemap, start } => {
                let address = start + offset;
                let mut entry = [0; 8];
                pagemap.read_exact_at(&mut entry, address / PAGE * 8).expect("pagemap can be read");
                // Bit 63: present; bit 62: swapped. Documentation/admin-guide/mm/pagemap.rst
                if u64::from_le_bytes(entry) >> 62 == 0 {
                    return None;
                }
                memory.read_exact_at(page, address).expect("the VMM's memory can be read");
            }
        }
        Some(())
    }
}
