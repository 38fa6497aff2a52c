//! Mappings put together again: what the VMM mapped as one piece, however the kernel has split it since. Owns the
//! rules for joining; never decides what is guest RAM.
//!
//! A mapping is split when a part of it gets other flags: a userfaultfd on half of it, `madvise`, `mlock`.

use std::ops::Range;

use crate::vm::{
    files::FileFacts,
    maps::{FileKey, Vma},
};

/// A readable and writable stretch of one file, or one anonymous mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    /// Host virtual addresses.
    pub(crate) range: Range<u64>,
    /// What is mapped.
    pub(crate) kind: Kind,
    /// The file as `maps` numbers it.
    pub(crate) key: FileKey,
    /// Offset in the file of the first byte.
    pub(crate) offset: u64,
    /// As the kernel shows it.
    pub(crate) path: Vec<u8>,
    /// Code may be run from it.
    pub(crate) execute: bool,
    /// From `mmap`, not heap or stack (anonymous memory only).
    pub(crate) plain: bool,
    /// An inaccessible page follows directly, as QEMU maps it behind each piece of RAM.
    pub(crate) guarded: bool,
    /// What the file system says (files only).
    pub(crate) facts: Option<FileFacts>,
}

/// What a span shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The file itself.
    Shared,
    /// A copy-on-write view of a file.
    Private,
    /// Anonymous memory.
    Anonymous,
}

impl Span {
    /// Length in bytes.
    pub(crate) const fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The path without the kernel's remark that the file has been unlinked.
    pub(crate) fn path(&self) -> &[u8] {
        self.path.strip_suffix(b" (deleted)").unwrap_or(&self.path)
    }

    /// Whether the file is nothing but memory.
    pub(crate) fn is_memory(&self) -> bool {
        self.facts.is_some_and(|facts| facts.storage.is_memory())
    }

    /// Whether this is what mapping `size` bytes gives: rounded up to the page size.
    pub(crate) fn fits(&self, size: u64) -> bool {
        let page = self.facts.map_or(super::files::PAGE, |facts| facts.page_size);
        size > 0 && size.checked_next_multiple_of(page) == Some(self.len())
    }
}

/// The spans of an address space, in address order. Files' mappings that continue each other are joined; anonymous
/// ones are not, because neighbours need not belong together (see [`anonymous_runs`]).
pub(crate) fn spans(vmas: &[Vma], mut facts: impl FnMut(&Vma) -> FileFacts) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (at, vma) in vmas.iter().enumerate() {
        if !vma.access.read || !vma.access.write {
            continue;
        }
        let next = vmas.get(at + 1);
        let guarded = next
            .is_some_and(|next| next.range.start == vma.range.end && !next.access.read && !next.access.write);
        let kind = match (vma.anonymous(), vma.access.shared) {
            (true, _) => Kind::Anonymous,
            (false, true) => Kind::Shared,
            (false, false) => Kind::Private,
        };
        if let Some(last) = spans.last_mut()
            && kind != Kind::Anonymous
            && last.kind == kind
            && last.key == vma.file
            && last.range.end == vma.range.start
            && last.offset.checked_add(last.len()) == Some(vma.offset)
        {
            last.range.end = vma.range.end;
            last.guarded = guarded;
            continue;
        }
        spans.push(Span {
            range: vma.range.clone(),
            kind,
            key: vma.file,
            offset: vma.offset,
            path: vma.path.clone(),
            execute: vma.access.execute,
            plain: vma.plain_anonymous(),
            guarded,
            facts: (kind != Kind::Anonymous).then(|| facts(vma)),
        });
    }
    spans
}

/// Indexes of anonymous spans that follow each other without a gap.
pub(crate) fn anonymous_runs(spans: &[Span]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (at, span) in spans.iter().enumerate().filter(|(_, span)| span.kind == Kind::Anonymous) {
        match runs.last_mut() {
            Some(run) if run.end == at && spans[at - 1].range.end == span.range.start => run.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{files::Storage, maps};

    fn facts(vma: &Vma) -> FileFacts {
        FileFacts {
            device: vma.file.device,
            inode: vma.file.inode,
            storage: Storage::Memory,
            page_size: 4096,
        }
    }

    fn ranges(text: &str) -> Vec<Range<u64>> {
        spans(&maps::parse(text.as_bytes()), facts).into_iter().map(|span| span.range).collect()
    }

    #[test]
    fn a_file_split_in_the_middle_is_one_span_again() {
        let text = "1000-3000 rw-s 0 0:1 7 /f\n3000-4000 rw-s 2000 0:1 7 /f\n4000-5000 ---p 0 0:0 0\n";
        assert_eq!(ranges(text), vec![0x1000..0x4000]);
        assert!(spans(&maps::parse(text.as_bytes()), facts)[0].guarded);
    }

    #[test]
    fn what_does_not_continue_is_not_joined() {
        for second in [
            "3000-4000 rw-s 0 0:1 7 /f",    // another offset
            "3000-4000 rw-s 2000 0:1 8 /f", // another file
            "3000-4000 rw-p 2000 0:1 7 /f", // a private view
            "4000-5000 rw-s 2000 0:1 7 /f", // a gap
        ] {
            assert_eq!(ranges(&format!("1000-3000 rw-s 0 0:1 7 /f\n{second}\n")).len(), 2, "{second}");
        }
    }

    #[test]
    fn read_only_and_inaccessible_mappings_are_left_out() {
        assert!(
            ranges("1000-2000 r--s 0 0:1 7 /f\n2000-3000 ---p 0 0:0 0\n3000-4000 r-xp 0 0:1 9 /bin/x\n")
                .is_empty()
        );
    }

    #[test]
    fn anonymous_neighbours_make_a_run() {
        let text = "1000-2000 rw-p 0 0:0 0\n2000-3000 rw-p 0 0:0 0\n3000-4000 rw-s 0 0:1 7 /f\n4000-5000 rw-p 0 0:0 0\n";
        let spans = spans(&maps::parse(text.as_bytes()), facts);
        assert_eq!(anonymous_runs(&spans), [0..2, 3..4]);
    }
}
