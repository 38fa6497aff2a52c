//! The program's own code in memory. Owns nothing: the system does, and brings back what is used.
#![expect(unsafe_code, reason = "madvise(2) is told of addresses")]

use std::{fs, sync::OnceLock};

/// Lets go of the code that has run up to now. What is used again is mapped again from the page cache, by itself; what only the start needed (reading the kernel's
/// types, loading programs, understanding arguments), or attaching to a VM, is some megabytes, and is not resident for months because of that.
pub fn let_go_of_code() {
    /// It stays where it is.
    static CODE: OnceLock<Option<(usize, usize)>> = OnceLock::new();
    let found = CODE.get_or_init(|| {
        let program = fs::read_link("/proc/self/exe").ok()?;
        code(&fs::read_to_string("/proc/self/maps").ok()?, program.to_str()?)
    });
    let Some(code) = *found else { return };
    // SAFETY: the range is code of this program's file, mapped privately and not writable. Nobody has written it: it is position-independent, so nothing in it was relocated.
    // All that goes is the entry in the page table; whoever runs into it has the same bytes mapped again. (A debugger's break points would be lost.)
    unsafe {
        libc::madvise(code.0 as *mut libc::c_void, code.1 - code.0, libc::MADV_DONTNEED);
    }
}

/// Where the code of a program is, in text of the form of `/proc/PID/maps`: from, and up to.
fn code(maps: &str, program: &str) -> Option<(usize, usize)> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (addresses, rights) = (fields.next()?, fields.next()?);
        let path = fields.nth(3)?;
        if rights != "r-xp" || path != program {
            return None;
        }
        let (from, to) = addresses.split_once('-')?;
        Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_itself_is_meant() {
        let maps = "\
7f0000000000-7f0000001000 r-xp 00000000 fe:00 1    /usr/lib/libc.so.6
557265362000-557266217000 r--p 00000000 fe:00 2    /usr/sbin/memdexd
557266217000-557266b50000 r-xp 00eb4000 fe:00 2    /usr/sbin/memdexd
557266b50000-557266b9c000 r--p 017ec000 fe:00 2    /usr/sbin/memdexd
557266b9c000-557266b9f000 rw-p 01837000 fe:00 2    /usr/sbin/memdexd
7ffeb7a25000-7ffeb7a46000 rw-p 00000000 00:00 0    [stack]
";
        assert_eq!(code(maps, "/usr/sbin/memdexd"), Some((0x5572_6621_7000, 0x5572_66b5_0000)));
        assert_eq!(code(maps, "/usr/sbin/other"), None);
    }

    #[test]
    fn the_program_runs_on() {
        let mut digests = (0..2).map(|_| {
            let_go_of_code();
            blake3::hash(b"what ran before still runs")
        });
        assert_eq!(digests.next(), digests.next());
    }
}
