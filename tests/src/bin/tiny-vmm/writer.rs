//! Not a VMM: a process that maps somebody else's RAM file and writes it when it is told to, as a vhost-user back end does.
//! Owns the mapping.
#![expect(unsafe_code, reason = "maps a file that another process changes")]

use std::{
    fs::OpenOptions,
    io::{BufRead, Write},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::{
    number,
    ram::{PAGE, PATTERN_OFFSETS},
};

/// Obeys `map`, `poke PAGE COUNT SEED` and `unmap`.
pub(crate) fn run(path: &str) -> Result<(), String> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| format!("{path}: {e}"))?;
    let len = file.metadata().map_err(|e| format!("{path}: {e}"))?.len();
    let mut mapped: Option<*mut u8> = None;
    let mut obey = |words: &[&str]| match (words, mapped) {
        (["map"], None) => {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice.
            let start =
                unsafe { mmap(std::ptr::null_mut(), len as usize, access, MapFlags::SHARED, &file, 0) };
            mapped = Some(start.map_err(|e| format!("map: {e}"))?.cast());
            Ok(())
        }
        (["poke", first, count, seed], Some(start)) => {
            let (first, count, seed) = (number(first)?, number(count)?, number(seed)?);
            if (first + count) * PAGE > len {
                return Err("that is outside the file".to_owned());
            }
            for page in 0..count {
                for offset in PATTERN_OFFSETS {
                    let at = ((first + page) * PAGE) as usize + offset as usize;
                    // SAFETY: checked above to lie within the mapping.
                    unsafe { start.add(at).cast::<u32>().write_volatile((seed + page) as u32) };
                }
            }
            Ok(())
        }
        (["unmap"], Some(start)) => {
            mapped = None;
            // SAFETY: mapped above, and not used any more.
            unsafe { munmap(start.cast(), len as usize) }.map_err(|e| format!("unmap: {e}"))
        }
        _ => Err(format!("{words:?} makes no sense now")),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready").map_err(|e| e.to_string())?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = obey(&words).map_or_else(|error| format!("error {error}"), |()| "ok".to_owned());
        writeln!(out, "{answer}").map_err(|e| e.to_string())?;
    }
    Ok(())
}
