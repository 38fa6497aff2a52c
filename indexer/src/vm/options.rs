//! QEMU's ways to write an option's argument: `value,key=value,…` with doubled commas, or a JSON object. Owns the
//! syntax and sizes; never knows what an option means.

use serde_json::Value;

/// Most properties read from one argument.
const MAX_PROPERTIES: usize = 256;

/// The properties of one argument.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Properties(Vec<(Vec<u8>, Vec<u8>)>);

impl Properties {
    /// Reads an argument. A first part without `=` is the value of `implied`.
    pub(crate) fn parse(argument: &[u8], implied: &str) -> Self {
        if argument.first() == Some(&b'{') {
            Self::json(argument)
        } else {
            Self::comma_separated(argument, implied)
        }
    }

    /// The value of `key`; the last one counts.
    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.iter().rev().find(|(name, _)| name == key.as_bytes()).map(|(_, value)| value.as_slice())
    }

    fn json(argument: &[u8]) -> Self {
        let Ok(Value::Object(object)) = serde_json::from_slice(argument) else { return Self::default() };
        let plain = |value: Value| match value {
            Value::String(text) => Some(text.into_bytes()),
            Value::Number(number) => Some(number.to_string().into_bytes()),
            Value::Bool(on) => Some(if on { b"on".to_vec() } else { b"off".to_vec() }),
            _ => None,
        };
        let properties =
            object.into_iter().filter_map(|(key, value)| Some((key.into_bytes(), plain(value)?)));
        Self(properties.take(MAX_PROPERTIES).collect())
    }

    fn comma_separated(argument: &[u8], implied: &str) -> Self {
        let mut properties = Vec::new();
        let mut rest = argument;
        while !rest.is_empty() && properties.len() < MAX_PROPERTIES {
            let first = properties.is_empty();
            let part = take_part(&mut rest);
            properties.push(match part.iter().position(|&byte| byte == b'=') {
                Some(at) => (part[..at].to_vec(), part[at + 1..].to_vec()),
                None if first => (implied.as_bytes().to_vec(), part),
                // A bare word switches something on, `noword` off.
                None => match part.strip_prefix(b"no") {
                    Some(word) => (word.to_vec(), b"off".to_vec()),
                    None => (part, b"on".to_vec()),
                },
            });
        }
        Self(properties)
    }
}

/// Takes the text up to the next single comma; two commas stand for one in the text.
fn take_part(rest: &mut &[u8]) -> Vec<u8> {
    let mut part = Vec::new();
    while let Some((&byte, tail)) = rest.split_first() {
        *rest = tail;
        if byte == b',' {
            match tail.split_first() {
                Some((b',', tail)) => *rest = tail,
                _ => break,
            }
        }
        part.push(byte);
    }
    part
}

/// Text for comparing and showing: not UTF-8 becomes U+FFFD, and no more than `limit` bytes are looked at.
pub(crate) fn text(raw: &[u8], limit: usize) -> String {
    String::from_utf8_lossy(&raw[..raw.len().min(limit)]).into_owned()
}

/// Reads a size such as `4G`, `1.5g`, `0x100000` or `4096` (then counted in `unit`). None if it is not one, or not a
/// size memory can have.
pub(crate) fn parse_size(raw: &[u8], unit: u64) -> Option<u64> {
    let text = std::str::from_utf8(raw).ok()?.trim();
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(digits, 16).ok()?.checked_mul(unit);
    }
    let (number, unit) = match text.char_indices().next_back()? {
        (at, suffix) if suffix.is_ascii_alphabetic() => {
            let power = "bkmgtpe".find(suffix.to_ascii_lowercase())?;
            (&text[..at], 1u64 << (10 * power))
        }
        _ => (text, unit),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    // Eighteen digits after the point are more than any size needs.
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u128>().unwrap_or(0) * u128::from(unit) / scale;
    whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_as_qemu_reads_them() {
        const M: u64 = 1 << 20;
        for (text, unit, size) in [
            ("512", M, 512 * M),
            ("4G", M, 4096 * M),
            ("4194304k", M, 4096 * M),
            ("1.5g", M, 1536 * M),
            ("0x40", M, 64 * M),
            ("4294967296", 1, 4096 * M),
            ("64M", 1, 64 * M),
            ("100b", M, 100),
            ("2T", 1, 2 << 40),
        ] {
            assert_eq!(parse_size(text.as_bytes(), unit), Some(size), "{text}");
        }
        for text in
            ["", "G", "-1", "+1", "1..5", "1e9", "16E", "99999999999999999999", "1Z", "0xg", "1,5G", "１"]
        {
            assert_eq!(parse_size(text.as_bytes(), M), None, "{text}");
        }
    }

    #[test]
    fn words_without_value_switch() {
        let machine = Properties::parse(b"q35,accel=kvm,graphics,nousb", "type");
        assert_eq!(machine.get("type"), Some(&b"q35"[..]));
        assert_eq!(machine.get("graphics"), Some(&b"on"[..]));
        assert_eq!(machine.get("usb"), Some(&b"off"[..]));
        assert_eq!(machine.get("accel"), Some(&b"kvm"[..]));
    }

    #[test]
    fn json_too_deep_or_broken_says_nothing() {
        let deep = [b"{\"a\":".repeat(100_000), b"1".to_vec(), b"}".repeat(100_000)].concat();
        assert_eq!(Properties::parse(&deep, "x"), Properties::default());
        assert_eq!(Properties::parse(b"{\"qom-type\":\"memory", "x"), Properties::default());
    }

    proptest! {
        #[test]
        fn any_value_survives_doubled_commas(value in proptest::collection::vec(any::<u8>(), 0..64)) {
            let escaped: Vec<u8> = value.iter().flat_map(|&byte| if byte == b',' { vec![b','; 2] } else { vec![byte] }).collect();
            let argument = [b"object,id=", &escaped[..], b",size=1"].concat();
            let properties = Properties::parse(&argument, "qom-type");
            prop_assert_eq!(properties.get("id"), Some(&value[..]));
            prop_assert_eq!(properties.get("size"), Some(&b"1"[..]));
        }

        #[test]
        fn garbage_never_panics(argument in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Properties::parse(&argument, "x");
            let _ = Properties::parse(&[b"{", &argument[..]].concat(), "x");
            let _ = parse_size(&argument, 1 << 20);
        }

        #[test]
        fn whole_sizes_are_exact(number in 0u64..1 << 20, suffix in 0usize..5) {
            let text = format!("{number}{}", ["b", "k", "M", "g", "T"][suffix]);
            prop_assert_eq!(parse_size(text.as_bytes(), 1), Some(number << (10 * suffix)));
        }
    }
}
