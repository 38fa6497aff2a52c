//! Which representation a client wants (RFC 9110, section 12.5.1). Owns reading `Accept` and `If-None-Match`.

use axum::http::{HeaderMap, HeaderName, header};
use memdex_wire::problem::Code;

use super::problem::ApiError;
use crate::host::Freshness;

/// JSON.
pub(super) const JSON: &str = "application/json";

/// The first of `offered` (best first) that no other one is wanted more than.
pub(super) fn choose(headers: &HeaderMap, offered: &[&'static str]) -> Result<&'static str, ApiError> {
    let mut accept = String::new();
    for value in headers.get_all(header::ACCEPT) {
        accept.push_str(&String::from_utf8_lossy(value.as_bytes()));
        accept.push(',');
    }
    if accept.trim_matches([',', ' ']).is_empty() {
        return Ok(offered[0]);
    }
    let mut best: Option<(u32, &'static str)> = None;
    for media in offered {
        let weight = weight(&accept, media);
        if weight > 0 && best.is_none_or(|(most, _)| weight > most) {
            best = Some((weight, media));
        }
    }
    best.map(|(_, media)| media).ok_or_else(|| {
        let offered = offered.join(", ");
        ApiError::new(
            Code::NotAcceptable,
            format!("Accept names nothing that can be made: ask for one of {offered}"),
        )
    })
}

/// Thousandths of the quality that the most specific matching range gives `media`; 0 if none matches.
fn weight(accept: &str, media: &str) -> u32 {
    let kind = media.split('/').next().unwrap_or_default();
    let mut found = (0, 0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let specific = match name.split_once('/') {
            Some(("*", "*")) => 1,
            Some((k, "*")) if k == kind => 2,
            Some(_) if name == media => 3,
            _ => continue,
        };
        let quality = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
        let quality =
            quality.map_or(1000, |q| q.parse::<f32>().map_or(0, |q| (q.clamp(0.0, 1.0) * 1000.0) as u32));
        if specific > found.0 || (specific == found.0 && quality > found.1) {
            found = (specific, quality);
        }
    }
    found.1
}

/// Whether the client has the representation with this entity tag already.
pub(super) fn has_already(headers: &HeaderMap, etag: &str) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|list| {
        list.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
    })
}

/// Headers that say how old what is known can be: the worst of some VMs.
pub(super) fn age(of: impl IntoIterator<Item = Freshness>) -> [(HeaderName, String); 2] {
    let (mut staleness, mut mark) = (0, 0);
    for freshness in of {
        staleness = staleness.max(freshness.staleness_ms());
        mark = mark.max(freshness.oldest_mark_ms());
    }
    [
        (HeaderName::from_static("memdex-staleness-ms"), staleness.to_string()),
        (HeaderName::from_static("memdex-oldest-mark-ms"), mark.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: [&str; 3] = [JSON, "application/x-ndjson", "application/vnd.memdex.pages.v1"];

    fn chosen(accept: &str) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        choose(&headers, &OFFERED).ok()
    }

    #[test]
    fn the_client_gets_what_it_prefers() {
        assert_eq!(choose(&HeaderMap::new(), &OFFERED).unwrap(), JSON);
        assert_eq!(chosen(""), Some(OFFERED[0]));
        assert_eq!(chosen("*/*"), Some(OFFERED[0]));
        assert_eq!(chosen("application/*"), Some(OFFERED[0]));
        assert_eq!(chosen("Application/X-NDJSON"), Some(OFFERED[1]));
        assert_eq!(chosen("application/json;q=0.5, application/x-ndjson"), Some(OFFERED[1]));
        assert_eq!(chosen("*/*, application/json;q=0"), Some(OFFERED[1]));
        assert_eq!(chosen("text/html, */*;q=0.1"), Some(OFFERED[0]));
        assert_eq!(chosen("text/html"), None);
        assert_eq!(chosen("application/json;q=0"), None);
        assert_eq!(chosen("application/json;q=nan"), None);
        assert_eq!(chosen("garbage;;q=,/"), None);
    }

    #[test]
    fn entity_tags_match_weakly_and_as_a_whole() {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, "\"1\", W/\"12\"".parse().unwrap());
        assert!(has_already(&headers, "\"12\"") && has_already(&headers, "\"1\""));
        assert!(!has_already(&headers, "\"2\"") && !has_already(&headers, "\"121\""));
        headers.insert(header::IF_NONE_MATCH, "*".parse().unwrap());
        assert!(has_already(&headers, "\"2\""));
    }
}
