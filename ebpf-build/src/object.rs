//! Tells an eBPF object from anything else by its ELF header. Does not look at the programs inside.

use std::fs;
use std::path::Path;

/// `e_machine` of eBPF (`EM_BPF`, linux/elf-em.h).
const MACHINE_BPF: u16 = 247;

/// `Err` holds what is wrong, as the end of a sentence that begins with the file's name.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let bytes = fs::read(path).map_err(|error| format!("cannot be read ({error})"))?;
    if !bytes.starts_with(b"\x7fELF") {
        return Err("is not an ELF file".to_owned());
    }
    // Byte 4 is the class (2 = 64 bits), byte 5 the byte order (1 = little endian), bytes 18 and 19 the machine.
    match bytes.get(4..20) {
        Some(header) if header[0] == 2 && header[1] == 1 => {
            let machine = u16::from_le_bytes([header[14], header[15]]);
            if machine == MACHINE_BPF {
                Ok(())
            } else {
                Err(format!("is an ELF file for machine {machine}, not for eBPF ({MACHINE_BPF})"))
            }
        }
        _ => Err("is not a 64-bit little-endian ELF file".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ebpf_objects_pass() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("object");
        let mut header = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\xf7\0";

        fs::write(&file, header).unwrap();
        assert_eq!(check(&file), Ok(()));

        header[18] = 62; // x86-64
        fs::write(&file, header).unwrap();
        assert!(check(&file).unwrap_err().contains("machine 62"));

        fs::write(&file, &header[..10]).unwrap();
        assert!(check(&file).is_err());
        fs::write(&file, "text").unwrap();
        assert!(check(&file).unwrap_err().contains("not an ELF"));
        assert!(check(&folder.path().join("missing")).unwrap_err().contains("cannot be read"));
    }
}
