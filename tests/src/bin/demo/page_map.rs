//! The page map of a VM in its binary form, `application/vnd.memdex.pages.v1`, read as it is documented. Owns the
//! decoding; no code of memdex is used.

use memdex_tests::{Daemon, contract::State, http};

use crate::stage::Failure;

/// A content's name.
pub(crate) type Fingerprint = [u8; 32];

/// What is known of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) page: u64,
    pub(crate) state: State,
    pub(crate) fingerprint: Option<Fingerprint>,
}

/// A consistent picture of a map, or of what changed in it.
#[derive(Debug)]
pub(crate) struct PageMap {
    pub(crate) generation: u64,
    /// Pages the VM has.
    pub(crate) total: u64,
    pub(crate) pages: Vec<Page>,
}

const HEADER: usize = 32;
const RECORD: usize = 56;

/// Asks for the map; with `since` only for what changed after that generation, and what is stale now.
pub(crate) fn fetch(daemon: &Daemon, vm: &str, since: Option<u64>) -> Result<PageMap, Failure> {
    let failed = |why: String| Failure::Failed(format!("the page map of {vm} can't be read: {why}"));
    let query = since.map_or(String::new(), |generation| format!("?since={generation}"));
    let path = format!("/v1/vms/{vm}/pages{query}");
    let accept = ["Accept: application/vnd.memdex.pages.v1"];
    let answer =
        http::unix(daemon.socket(), "GET", &path, &accept).map_err(|error| failed(error.to_string()))?;
    if answer.status != 200 {
        let problem: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
        let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str());
        return Err(failed(detail.map_or_else(|| format!("status {}", answer.status), str::to_owned)));
    }
    decode(&answer.body).ok_or_else(|| failed("it has not the documented form".to_owned()))
}

fn decode(body: &[u8]) -> Option<PageMap> {
    let number = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
    if body.get(..4)? != b"MXP1"
        || (body.len() - HEADER.min(body.len())) as u64 != number(24)? * RECORD as u64
    {
        return None;
    }
    let pages = body[HEADER..].chunks_exact(RECORD).map(|record| {
        let state = match record[16] {
            0 => State::Stale,
            1 => State::Absent,
            2 => State::Zero,
            3 => State::Current,
            _ => return None,
        };
        Some(Page {
            page: u64::from_le_bytes(record[..8].try_into().ok()?),
            state,
            fingerprint: if record[17] == 1 { record[24..56].try_into().ok() } else { None },
        })
    });
    Some(PageMap { generation: number(8)?, total: number(16)?, pages: pages.collect::<Option<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_form_is_understood_and_no_other() {
        let mut body = b"MXP1".to_vec();
        body.extend(4096u32.to_le_bytes());
        for number in [7u64, 100, 1] {
            body.extend(number.to_le_bytes());
        }
        body.extend(42u64.to_le_bytes());
        body.extend(6u64.to_le_bytes());
        body.extend([3, 1, 0, 0, 0, 0, 0, 0]);
        body.extend([9; 32]);
        let map = decode(&body).unwrap();
        assert_eq!((map.generation, map.total), (7, 100));
        assert_eq!(map.pages, [Page { page: 42, state: State::Current, fingerprint: Some([9; 32]) }]);
        assert!(decode(&body[..body.len() - 1]).is_none());
        assert!(decode(b"MXP2").is_none());
        assert!(decode(b"").is_none());
    }
}
