//! Which witnesses the operator allows. Owns their names on the command line; what each one sees is in `ARCHITECTURE.md`.

/// Reading again is always allowed: without any other witness it is what is left.
const REHASH: &str = "rehash";
const WRITE_PROTECT: &str = "write-protect";
const EBPF: &str = "ebpf";

/// What is said of a witness that the operator has left out.
pub(crate) const LEFT_OUT: &str = "it is left out by `witness` in the configuration or --witness";

/// The witnesses that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witnesses {
    /// Write protection, which stops a thread of each VMM once to make a userfaultfd in it.
    pub write_protect: bool,
    /// The eBPF programs on KVM, page faults and discards.
    pub ebpf: bool,
}

impl Default for Witnesses {
    fn default() -> Self {
        Self { write_protect: true, ebpf: true }
    }
}

impl Witnesses {
    /// Only those named; all if none is.
    ///
    /// # Errors
    /// A name that is none, in a sentence.
    pub fn named(names: &[String]) -> Result<Self, String> {
        if names.is_empty() {
            return Ok(Self::default());
        }
        let mut witnesses = Self { write_protect: false, ebpf: false };
        for name in names {
            match name.as_str() {
                WRITE_PROTECT => witnesses.write_protect = true,
                EBPF => witnesses.ebpf = true,
                REHASH => {}
                _ => return Err(format!("{name:?} is no witness; name {WRITE_PROTECT}, {EBPF} or {REHASH}")),
            }
        }
        Ok(witnesses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_used_and_nothing_named_means_all() {
        let named =
            |names: &[&str]| Witnesses::named(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(named(&[]), Ok(Witnesses { write_protect: true, ebpf: true }));
        assert_eq!(named(&["rehash"]), Ok(Witnesses { write_protect: false, ebpf: false }));
        assert_eq!(named(&["ebpf", "rehash"]), Ok(Witnesses { write_protect: false, ebpf: true }));
        assert!(named(&["ebf"]).unwrap_err().contains("name write-protect"));
    }
}
