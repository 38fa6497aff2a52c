//! Reads the text of `/proc/PID/maps`: one [`Vma`] a line. Owns the parser; never opens a file and never decides
//! what is guest RAM.
//!
//! The parser works on bytes, because a VMM's file name need not be UTF-8 and may look like anything: `/SYSV`, a
//! memfd called `x (deleted)`, a trailing blank. The kernel escapes a newline as `\012` (`seq_file_path` in
//! `fs/seq_file.c`), so that a name can never start a line of its own.

use std::{ffi::OsString, ops::Range, os::unix::ffi::OsStringExt, path::PathBuf};

/// A mapping in a process's address space (a VMA, in the kernel's words).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// Host virtual addresses.
    pub range: Range<u64>,
    /// What may be done with it.
    pub access: Access,
    /// Offset in the file of the first byte.
    pub offset: u64,
    /// Device (as `makedev` puts it together) and inode of the file; zero for anonymous memory.
    pub file: FileKey,
    /// Path or bracketed name as the kernel shows it, `\012` decoded; empty for plain anonymous memory.
    pub path: Vec<u8>,
}

/// The four letters of the second column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// `r`
    pub read: bool,
    /// `w`
    pub write: bool,
    /// `x`
    pub execute: bool,
    /// `s`, not `p`
    pub shared: bool,
}

/// Which file a mapping shows, as `/proc/PID/maps` numbers it. On file systems with several devices (btrfs,
/// overlayfs) this is not what `stat` says, so it is compared only with other lines of `maps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl Vma {
    /// Whether no file stands behind it (heap, stack and named anonymous memory count as anonymous).
    #[must_use]
    pub const fn anonymous(&self) -> bool {
        self.file.inode == 0 && self.file.device == 0
    }

    /// Anonymous memory from `mmap`, so neither heap nor stack nor a page of the kernel's.
    #[must_use]
    pub fn plain_anonymous(&self) -> bool {
        self.anonymous() && (self.path.is_empty() || self.path.starts_with(b"[anon:"))
    }

    /// The path for people and programs.
    #[must_use]
    pub fn path_buf(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.path.clone()))
    }
}

/// Parses the whole file. Lines that make no sense are left out.
///
/// The kernel hands the file out in pieces, and between two pieces mappings may be split or merged; then a range
/// can be reported twice. The later report is the newer one and wins, so the result is sorted and free of overlaps.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Vma> {
    let mut vmas: Vec<Vma> = Vec::with_capacity(text.len() / 80);
    for vma in text.split(|&byte| byte == b'\n').filter_map(parse_line) {
        while vmas.last().is_some_and(|last| last.range.end > vma.range.start) {
            vmas.pop();
        }
        vmas.push(vma);
    }
    vmas
}

/// Parses one line: `start-end perms offset major:minor inode path`.
#[must_use]
pub fn parse_line(line: &[u8]) -> Option<Vma> {
    let mut rest = line;
    let (start, end) = split(field(&mut rest)?, b'-')?;
    let range = hex(start)?..hex(end)?;
    let access = Access::parse(field(&mut rest)?)?;
    let offset = hex(field(&mut rest)?)?;
    let (major, minor) = split(field(&mut rest)?, b':')?;
    let device = rustix::fs::makedev(hex(major)?.try_into().ok()?, hex(minor)?.try_into().ok()?);
    let inode = std::str::from_utf8(field(&mut rest)?).ok()?.parse().ok()?;
    if range.start >= range.end {
        return None;
    }
    // The path is padded on the left to a column, never on the right: blanks at its end belong to it.
    let path = rest.iter().position(|&byte| byte != b' ').map_or(&rest[..0], |at| &rest[at..]);
    Some(Vma { range, access, offset, file: FileKey { device, inode }, path: unescape(path) })
}

impl Access {
    fn parse(text: &[u8]) -> Option<Self> {
        let &[read, write, execute, shared] = text else { return None };
        let flag = |byte, letter| match byte {
            b'-' => Some(false),
            _ if byte == letter => Some(true),
            _ => None,
        };
        Some(Self {
            read: flag(read, b'r')?,
            write: flag(write, b'w')?,
            execute: flag(execute, b'x')?,
            shared: match shared {
                b's' => true,
                b'p' => false,
                _ => return None,
            },
        })
    }
}

/// Takes the text up to the next blank.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let text = *rest;
    let end = text.iter().position(|&byte| byte == b' ').unwrap_or(text.len());
    *rest = text.get(end + 1..).unwrap_or_default();
    (end > 0).then_some(&text[..end])
}

fn split(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = text.iter().position(|&byte| byte == at)?;
    Some((&text[..position], &text[position + 1..]))
}

fn hex(text: &[u8]) -> Option<u64> {
    // `from_str_radix` would take a sign.
    if !text.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()
}

fn unescape(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(b"\\012") {
            out.push(b'\n');
            rest = tail;
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_of_each_kind() {
        let vma = parse_line(
            b"7faefffff000-7faf03fff000 rw-s 00001000 00:01 28                         /memfd:memory-backend-memfd (deleted)",
        )
        .unwrap();
        assert_eq!(vma.range, 0x7fae_ffff_f000..0x7faf_03ff_f000);
        assert!(vma.access.read && vma.access.write && !vma.access.execute && vma.access.shared);
        assert_eq!((vma.offset, vma.file), (0x1000, FileKey { device: 1, inode: 28 }));
        assert_eq!(vma.path, b"/memfd:memory-backend-memfd (deleted)");
        assert!(!vma.anonymous());

        let vma = parse_line(b"7faef8000000-7faef8021000 ---p 00000000 00:00 0 ").unwrap();
        assert!(vma.plain_anonymous() && !vma.access.read && vma.path.is_empty());
        let heap = parse_line(b"5589b6270000-5589b70d2000 rw-p 00000000 00:00 0    [heap]").unwrap();
        assert!(heap.anonymous() && !heap.plain_anonymous());
        let named =
            parse_line(b"5589b6270000-5589b70d2000 rw-p 00000000 00:00 0    [anon:guest memory]").unwrap();
        assert!(named.plain_anonymous());
    }

    #[test]
    fn device_numbers_are_those_of_stat() {
        use std::os::unix::fs::MetadataExt as _;
        let program = std::fs::metadata("/proc/self/exe").unwrap();
        let maps = parse(&std::fs::read("/proc/self/maps").unwrap());
        let vma = maps.iter().find(|vma| vma.file.inode == program.ino()).expect("the program is mapped");
        assert_eq!(vma.file.device, program.dev());
    }

    #[test]
    fn odd_names_are_kept_byte_for_byte() {
        let path = |line: &[u8]| parse_line(line).unwrap().path;
        assert_eq!(path(b"1000-2000 rw-s 0 0:1 7     /a b  (deleted) "), b"/a b  (deleted) ");
        assert_eq!(path(b"1000-2000 rw-s 0 0:1 7     /\xff\xfe"), b"/\xff\xfe");
        assert_eq!(path(b"1000-2000 rw-s 0 0:1 7     /x\\0121000-2000 rw-p"), b"/x\n1000-2000 rw-p");
        assert_eq!(path(b"1000-2000 rw-s 0 0:1 7     /SYSV"), b"/SYSV");
    }

    #[test]
    fn lines_without_sense_are_left_out() {
        for line in [
            &b""[..],
            b"x",
            b"1000-2000",
            b"1000-2000 rw-s",
            b"2000-1000 rw-s 0 0:1 7",
            b"1000-1000 rw-s 0 0:1 7",
            b"+1000-2000 rw-s 0 0:1 7",
            b"1000-2000 rwss 0 0:1 7",
            b"1000-2000 rw-q 0 0:1 7",
            b"1000-2000 rw-s 0 0:1 -7",
            b"1000-20000000000000000 rw-s 0 0:1 7",
            b"1000-2000 rw-s 0 0:100000000000 7",
        ] {
            assert_eq!(parse_line(line), None, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_mapping_merged_while_the_file_was_read_is_taken_once() {
        let vmas = parse(b"1000-2000 rw-p 0 0:0 0\n2000-3000 rw-p 0 0:0 0\n1000-4000 rw-p 0 0:0 0\n4000-5000 ---p 0 0:0 0\n");
        let ranges: Vec<_> = vmas.into_iter().map(|vma| vma.range).collect();
        assert_eq!(ranges, [0x1000..0x4000, 0x4000..0x5000]);
    }

    proptest! {
        #[test]
        fn garbage_never_panics_and_never_overlaps(text in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let vmas = parse(&text);
            prop_assert!(vmas.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
        }

        #[test]
        fn nearly_right_text_never_panics(text in "([0-9a-f]{1,17}-[0-9a-f]{1,17} [rwxsp-]{3,5} [0-9a-f]{1,17} [0-9a-f]{1,9}:[0-9a-f]{1,9} [0-9]{1,20} {0,9}[ -~]{0,20}\n){0,20}") {
            let vmas = parse(text.as_bytes());
            prop_assert!(vmas.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
        }

        #[test]
        fn what_the_kernel_prints_is_read_back(
            start in 0u64..1 << 46, pages in 1u64..1 << 20, offset in any::<u64>(), major in 0u32..1 << 12, minor in 0u32..1 << 20,
            inode in 1u64.., letters in "[r-][w-][x-][sp]", path in proptest::collection::vec(1u8.., 1..64),
        ) {
            // As show_map_vma in fs/proc/task_mmu.c does it.
            let start = start & !4095;
            let end = start + pages * 4096;
            let mut line = format!("{start:08x}-{end:08x} {letters} {offset:08x} {major:02x}:{minor:02x} {inode}").into_bytes();
            line.resize(line.len().max(72), b' ');
            line.extend_from_slice(b" /");
            for &byte in &path {
                if byte == b'\n' { line.extend_from_slice(b"\\012") } else { line.push(byte) }
            }
            let vma = parse_line(&line).unwrap();
            prop_assert_eq!(vma.range, start..end);
            prop_assert_eq!(vma.offset, offset);
            prop_assert_eq!(vma.file, FileKey { device: rustix::fs::makedev(major, minor), inode });
            // A literal backslash is not escaped by the kernel, so `\012` in a name is read as a newline.
            if !path.windows(4).any(|four| four == b"\\012") {
                prop_assert_eq!(&vma.path[1..], &path[..]);
            }
        }
    }
}
