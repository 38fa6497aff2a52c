//! Short names of contents, for where they are named by the hundred thousand.
//!
//! Owns how a name is made of a fingerprint. A name only says what to look for: whoever takes a page for it hashes that page, keeps the whole fingerprint,
//! and both sides compare all fingerprints in full before they rely on anything.
//!
//! Half of a name is what an index can look up, the other half is keyed by the destination. So nobody can make two contents of
//! one name beforehand, which would make the migrations that both take part in fail, his own and his neighbours'.

use std::fmt;

use super::ZERO;
use crate::Fingerprint;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name([u8; Self::LEN]);

impl Name {
    /// Bytes in a name.
    pub const LEN: usize = 16;

    /// Wraps 16 bytes.
    #[must_use]
    pub const fn new(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The same as [`Fingerprint::prefix`] of what it names.
    #[must_use]
    pub const fn prefix(&self) -> u64 {
        let b = &self.0;
        u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What stands for the name of a page of zeros, in memory and on the wire.
pub const ZERO_NAME: Name = Name::new([0; Name::LEN]);

/// Gives names.
#[derive(Clone, PartialEq, Eq)]
pub struct Namer([u8; 32]);

impl Namer {
    /// With the destination's key.
    #[must_use]
    pub const fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The key, for the source.
    #[must_use]
    pub const fn key(&self) -> [u8; 32] {
        self.0
    }

    /// The name of a content.
    #[must_use]
    pub fn name(&self, content: &Fingerprint) -> Name {
        if *content == ZERO {
            return ZERO_NAME;
        }
        let mut name = [0; Name::LEN];
        let (prefix, keyed) = name.split_at_mut(Name::LEN / 2);
        prefix.copy_from_slice(&content.as_bytes()[..prefix.len()]);
        keyed.copy_from_slice(&blake3::keyed_hash(&self.0, content.as_bytes()).as_bytes()[..keyed.len()]);
        Name(name)
    }

    /// Whether a content has this name.
    #[must_use]
    pub fn is(&self, name: &Name, content: &Fingerprint) -> bool {
        // Nearly always that tells.
        name.prefix() == content.prefix() && *name == self.name(content)
    }
}

impl fmt::Debug for Namer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Namer(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_like_the_fingerprint_and_depend_on_all_of_it_and_on_the_key() {
        let (one, other) = (Namer::new([1; 32]), Namer::new([2; 32]));
        let content = Fingerprint::new([7; 32]);
        let mut alike = [7; 32];
        alike[31] = 8;
        let alike = Fingerprint::new(alike);
        let name = one.name(&content);
        assert_eq!(name.prefix(), content.prefix());
        assert!(one.is(&name, &content) && !one.is(&name, &alike) && !other.is(&name, &content));
        assert_eq!(one.name(&alike).prefix(), name.prefix());
        assert_eq!(one.name(&ZERO), ZERO_NAME);
        assert!(one.is(&ZERO_NAME, &ZERO));
    }
}
