//! `POST /v1/content/lookup` in its form for people; programs use [`crate::bulk`].

use serde::{Deserialize, Serialize};

use crate::Fingerprint;

/// Most fingerprints in a lookup in JSON.
pub const MAX_JSON_LOOKUP: usize = 10_000;

/// "Which of these do you hold?"
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct LookupRequest {
    /// At most 10,000 fingerprints, plain BLAKE3.
    #[cfg_attr(feature = "openapi", schema(max_items = 10000))]
    pub fingerprints: Vec<Fingerprint>,
}

/// The answer, in the order asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LookupAnswer {
    /// True if a page of a VM on this host has this content now.
    pub held: Vec<bool>,
}
