//! What the kernel says of one program beyond what aya reads out.
//!
//! Owns the one `bpf(2)` call that asks. `fdinfo` has the same figure, as text that would have to be written and read for every program with every tick.
//!
//! # Minimum kernel version
//! 5.12.
#![expect(unsafe_code, reason = "a system call that no safe crate offers in full")]

use std::{
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, bpf_prog_info};

/// How often the kernel did not run a program because another one was running on that processor, or a map was being changed there.
pub(super) fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(info(program)?.recursion_misses)
}

fn info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: a struct of integers, for which zeros are a value; those that point somewhere and their lengths being 0, the kernel writes to none of them.
    let mut info: bpf_prog_info = unsafe { mem::zeroed() };
    // SAFETY: a union of structs of integers: zeros are a value.
    let mut request: bpf_attr = unsafe { mem::zeroed() };
    request.info.bpf_fd = program.as_raw_fd().cast_unsigned();
    request.info.info_len = size_of_val(&info) as u32;
    request.info.info = (&raw mut info).expose_provenance() as u64;
    // SAFETY: the kernel reads `request` with the length it is given, and writes at most `info_len` bytes to `info`, which is borrowed by nobody meanwhile.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD as libc::c_long,
            &raw mut request,
            size_of_val(&request),
        )
    };
    if answer == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd as _};

    use super::*;
    use crate::watch::ebpf::attached::Attached;

    #[test]
    fn it_says_what_fdinfo_says() {
        let (object, _) = super::super::object::load(false, &Attached::default());
        let object = object.expect("the programs can be loaded");
        let mut seen = 0;
        for (name, program) in object.programs() {
            let Ok(fd) = program.fd() else { continue }; // not for this kernel
            let fd = fd.as_fd();
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
            let figure = |key| -> u64 {
                text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()).unwrap()
            };
            let info = info(fd).unwrap();
            // Its neighbour too, which is never 0: one of them may be read from the wrong place by chance, not both.
            assert_eq!(u64::from(info.verified_insns), figure("verified_insns:"), "{name}");
            assert_ne!(info.verified_insns, 0, "{name}");
            assert_eq!(recursion_misses(fd).unwrap(), figure("recursion_misses:"), "{name}");
            seen += 1;
        }
        assert!(seen > 10, "{seen} programs loaded");
    }

    #[test]
    fn what_is_no_program_is_an_error() {
        let file = fs::File::open("/proc/self/maps").unwrap();
        assert!(recursion_misses(file.as_fd()).is_err());
    }
}
