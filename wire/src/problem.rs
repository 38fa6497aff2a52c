//! Errors: RFC 9457 `application/problem+json`.

use serde::{Deserialize, Serialize};

/// Media type of an error body.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// An error as the API sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[error("{detail}")]
pub struct Problem {
    /// Always `about:blank`: `code` is what programs look at.
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable name of the error for programs, for example `vm_not_found`.
    pub code: Code,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// What went wrong and what to do about it, in a sentence or two.
    pub detail: String,
}

fn about_blank() -> String {
    "about:blank".to_owned()
}

/// Stable names of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// The request does not have the shape it should. 400
    BadRequest,
    /// No token, or a wrong one. 401
    Unauthorized,
    /// Nothing at this path. 404
    NotFound,
    /// No VM with this id, name or pid. 404
    VmNotFound,
    /// No migration with this id. 404
    MigrationNotFound,
    /// The path exists, the method does not. 405
    MethodNotAllowed,
    /// None of the media types asked for can be made. 406
    NotAcceptable,
    /// More than one VM has this name. 409
    VmAmbiguous,
    /// It cannot be done as things are: a check failed, or something else is under way with this VM. 409
    Conflict,
    /// The VM ended while the request was under way. 410
    VmGone,
    /// The body is larger than this resource takes. 413
    TooLarge,
    /// The body's media type is not one this resource takes. 415
    UnsupportedMediaType,
    /// Something in this daemon is broken; its log says what. 500
    Internal,
    /// The other host could not be reached or gave no usable answer. 502
    PeerUnreachable,
    /// The other host refused our token. 502
    PeerUnauthorized,
    /// The other host answered with something that is not the protocol. 502
    PeerProtocol,
    /// Too much is going on, or the daemon is stopping. 503
    Unavailable,
    /// It was not done in the time that was given. 504
    Timeout,
    /// A code of a later version.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// The HTTP status that goes with it.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::NotFound | Self::VmNotFound | Self::MigrationNotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::VmAmbiguous | Self::Conflict => 409,
            Self::VmGone => 410,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Internal | Self::Unknown => 500,
            Self::PeerUnreachable | Self::PeerUnauthorized | Self::PeerProtocol => 502,
            Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub const fn retryable(self) -> bool {
        matches!(self, Self::PeerUnreachable | Self::Unavailable | Self::Timeout)
    }
}

impl Problem {
    /// An error with the status, title and retryability that its code implies.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: about_blank(),
            title: title(code.status()).to_owned(),
            status: code.status(),
            code,
            retryable: code.retryable(),
            detail: detail.into(),
        }
    }
}

const fn title(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        409 => "Conflict",
        410 => "Gone",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Internal Server Error",
    }
}
