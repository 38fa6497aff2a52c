//! The name of a page's content.

use core::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, de};

/// BLAKE3-256 of the 4096 bytes of a page: what `b3sum` prints for them. In JSON 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; Self::LEN]);

impl Fingerprint {
    /// Bytes in a fingerprint.
    pub const LEN: usize = 32;

    /// Wraps 32 digest bytes.
    #[must_use]
    pub const fn new(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The digest bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The first eight bytes, little-endian: enough to spread fingerprints over a table.
    #[must_use]
    pub const fn prefix(&self) -> u64 {
        let b = &self.0;
        u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hex = [0u8; Self::LEN * 2];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        f.write_str(core::str::from_utf8(&hex).expect("hex digits are ASCII"))
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hex digits")]
pub struct ParseFingerprintError;

impl FromStr for Fingerprint {
    type Err = ParseFingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let nibble = |c: u8| char::from(c).to_digit(16).map(|d| d as u8).ok_or(ParseFingerprintError);
        let text = text.as_bytes();
        if text.len() != Self::LEN * 2 {
            return Err(ParseFingerprintError);
        }
        let mut bytes = [0; Self::LEN];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Fingerprint {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some("^[0-9a-f]{64}$"))
            .description(Some("BLAKE3-256 of the 4096 bytes of the page, as hex"))
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Fingerprint {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_form_round_trips(bytes: [u8; 32]) {
            let fingerprint = Fingerprint::new(bytes);
            let text = fingerprint.to_string();
            prop_assert_eq!(text.parse::<Fingerprint>().unwrap(), fingerprint);
            let json = serde_json::to_string(&fingerprint).unwrap();
            prop_assert_eq!(&json, &format!("\"{text}\""));
            prop_assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap(), fingerprint);
        }

        #[test]
        fn other_text_is_refused(text in "[0-9a-fg ]{0,70}") {
            prop_assume!(text.len() != 64 || text.contains(['g', ' ']));
            prop_assert!(text.parse::<Fingerprint>().is_err());
        }
    }
}
