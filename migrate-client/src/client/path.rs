//! Paths of things that have a name: a VM, a migration.
//!
//! Owns the percent-encoding, so that no name reaches another resource.

use crate::{ClientError, error::Kind, limits};

/// A resource that has others in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Collection {
    path: &'static str,
    one: &'static str,
    list: &'static str,
}

pub(super) const VMS: Collection =
    Collection { path: "/v1/vms/", one: "VM", list: "`memdex vms` lists ids, names and pids" };
pub(super) const MIGRATIONS: Collection =
    Collection { path: "/v1/migrations/", one: "migration", list: "`memdex migrations` lists ids" };

/// `/v1/vms/KEY` and what follows. Everything but unreserved characters is percent-encoded.
pub(super) fn item(collection: Collection, key: &str, rest: &str) -> Result<String, ClientError> {
    let Collection { path, one, list } = collection;
    let nothing = |why| Err(ClientError::new(Kind::NoSuchKey { why, list }));
    // URLs have no way to write a segment that is a dot or two: `%2e` means the same as a dot.
    if key.is_empty() || key == "." || key == ".." {
        return nothing(format!("no {one} can be asked for as {key:?}"));
    }
    if key.len() > limits::MAX_KEY_BYTES {
        return nothing(format!("no {one} has an id or name of {} bytes", key.len()));
    }
    let mut path = String::from(path);
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path.push_str(rest);
    Ok(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_name_reaches_another_resource(key in "\\PC{0,20}|[./%?#]{0,6}|[\\x00-\\x20]{1,3}") {
            let Ok(path) = item(VMS, &key, "/pages") else {
                prop_assert!(["", ".", ".."].contains(&key.as_str()));
                return Ok(());
            };
            let url = reqwest::Url::parse(&format!("http://localhost{path}")).unwrap();
            let segments: Vec<_> = url.path_segments().unwrap().collect();
            prop_assert_eq!(segments.len(), 4);
            prop_assert_eq!(url.path(), path);
            prop_assert_eq!((segments[0], segments[1], segments[3]), ("v1", "vms", "pages"));
            prop_assert!(url.query().is_none() && url.fragment().is_none());
        }
    }
}
