//! The one error of this crate: opaque, with predicates for what a program does next.
//!
//! Owns what can go wrong; the words for it are in [`sentence`]. Never holds a token.

mod sentence;

use std::{error::Error, fmt, io, time::Duration};

use memdex_wire::problem::{Code, Problem};

use crate::{HostUrl, printable};

/// Why a call to a host failed. `Display` is one sentence: what failed, why, and what to do about it.
#[derive(Debug)]
pub struct ClientError(Box<Kind>);

/// What can go wrong. `host` is always the host that was asked.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A token that cannot be used. `place` says where it came from.
    Token { place: String, why: String },
    /// Options that cannot work, found before anything is sent.
    Options { why: String },
    /// No connection.
    Unreachable { host: HostUrl, why: String, advice: &'static str },
    /// A connection, but no answer to a quick question.
    Silent { host: HostUrl, after: Duration },
    /// Long work that was not done in time, or an answer that trickles.
    Slow { host: HostUrl, what: &'static str, after: Duration },
    /// The connection ended before the answer did.
    Broken { host: HostUrl, why: String },
    /// The host says no.
    Problem { host: HostUrl, problem: Problem, token_sent: bool },
    /// An error without a usable body.
    Status { host: HostUrl, status: u16, token_sent: bool },
    /// The host sends us elsewhere; never followed.
    Redirect { host: HostUrl, to: String },
    /// The answer is not what the protocol says.
    Protocol { host: HostUrl, why: String },
    /// The answer is larger than it may be.
    TooLarge { host: HostUrl, limit: u64 },
    /// The VM's regions changed between two answers that belong together.
    LayoutChanged { host: HostUrl },
    /// A key that names nothing whatever the host has. `list` says where to look.
    NoSuchKey { why: String, list: &'static str },
    /// A migration was asked for, and the answer did not arrive whole.
    Unsure { host: HostUrl, why: String },
    /// A migration that is followed has been out of sight for too long.
    LostSight { host: HostUrl, id: String, after: Duration, why: String },
    /// The host knew a migration, and does not know it any more.
    Forgotten { host: HostUrl, id: String },
}

impl ClientError {
    pub(crate) fn new(kind: Kind) -> Self {
        Self(Box::new(kind))
    }

    pub(crate) fn protocol(host: &HostUrl, why: impl fmt::Display) -> Self {
        Self::new(Kind::Protocol { host: host.clone(), why: why.to_string() })
    }

    /// Turns what the HTTP library says into one of ours.
    pub(crate) fn http(host: &HostUrl, error: &reqwest::Error) -> Self {
        let host = host.clone();
        let why = printable(&innermost(error));
        if error.is_connect() {
            let advice = connect_advice(&host, error);
            return Self::new(Kind::Unreachable { host, why, advice });
        }
        if error.is_builder() {
            return Self::new(Kind::Options { why });
        }
        Self::new(Kind::Broken { host, why })
    }

    /// What became of a migration that was asked for, if this was the answer: a refusal stays one, anything that
    /// came after the request had been sent leaves it open whether it has begun.
    pub(crate) fn after_a_start(self) -> Self {
        match *self.0 {
            Kind::Silent { ref host, .. }
            | Kind::Slow { ref host, .. }
            | Kind::Broken { ref host, .. }
            | Kind::Protocol { ref host, .. }
            | Kind::TooLarge { ref host, .. } => {
                Self::new(Kind::Unsure { host: host.clone(), why: self.cause() })
            }
            _ => self,
        }
    }

    /// There is no such VM or migration (any more), or the host has nothing at that path.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match &*self.0 {
            Kind::NoSuchKey { .. } => true,
            Kind::Problem { problem, .. } => {
                matches!(
                    problem.code,
                    Code::VmNotFound | Code::VmGone | Code::MigrationNotFound | Code::NotFound
                )
            }
            _ => false,
        }
    }

    /// The host, or the other host it had to ask, could not be reached or is silent.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match &*self.0 {
            Kind::Unreachable { .. } | Kind::Silent { .. } | Kind::LostSight { .. } => true,
            Kind::Problem { problem, .. } => problem.code == Code::PeerUnreachable,
            _ => false,
        }
    }

    /// The request contradicts the state of the host, for example a name that several VMs have, or a migration that
    /// is too late to abort.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self.status(), Some(409))
    }

    /// The host, or the other host it had to ask, wants a token and did not get the right one.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        match &*self.0 {
            Kind::Problem { problem, .. } => {
                matches!(problem.code, Code::Unauthorized | Code::PeerUnauthorized)
            }
            _ => matches!(self.status(), Some(401 | 403)),
        }
    }

    /// The same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match &*self.0 {
            Kind::Unreachable { .. }
            | Kind::Silent { .. }
            | Kind::Slow { .. }
            | Kind::Broken { .. }
            | Kind::LayoutChanged { .. }
            | Kind::LostSight { .. } => true,
            Kind::Problem { problem, .. } => problem.retryable,
            Kind::Status { status, .. } => matches!(status, 429 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// The options contradict each other or the address, and nothing was sent; or the host says that it cannot make sense of what it was
    /// asked, such as the name of a peer that it does not have.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match &*self.0 {
            Kind::Options { .. } => true,
            Kind::Problem { problem, .. } => problem.code == Code::BadRequest,
            _ => false,
        }
    }

    /// What the host itself said, if it answered with a problem document.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match &*self.0 {
            Kind::Problem { problem, .. } => Some(problem),
            _ => None,
        }
    }

    fn status(&self) -> Option<u16> {
        match &*self.0 {
            Kind::Problem { problem, .. } => Some(problem.status),
            Kind::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl Error for ClientError {}

fn connect_advice(host: &HostUrl, error: &reqwest::Error) -> &'static str {
    let kind = causes(error).find_map(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
    match (host, kind) {
        (HostUrl::Unix(_), Some(io::ErrorKind::PermissionDenied)) => {
            "run as root or as a member of the group memdex"
        }
        (HostUrl::Unix(_), _) => "start memdexd there, or give another --host",
        (HostUrl::Tls(_), _) if causes(error).any(<dyn Error>::is::<rustls::Error>) => {
            "see whether it speaks TLS and its certificate comes from an authority that is trusted here (--ca FILE of the command, ca under [tls] of a daemon)"
        }
        _ => "see whether memdexd listens there and no firewall is between",
    }
}

/// The error and what is behind it. `io::Error` does not list the error it wraps as its source, only that one's.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(Some(error as &(dyn Error + 'static)), |&error| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}

fn innermost(error: &reqwest::Error) -> String {
    // A time-out to connect has "operation timed out" there already.
    causes(error).last().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(code: Code) -> ClientError {
        let problem = Problem::new(code, "what and why");
        ClientError::new(Kind::Problem { host: HostUrl::default(), problem, token_sent: true })
    }

    #[test]
    fn predicates_follow_the_code() {
        assert!(problem(Code::VmNotFound).is_not_found());
        assert!(problem(Code::VmGone).is_not_found());
        assert!(problem(Code::MigrationNotFound).is_not_found());
        assert!(problem(Code::VmAmbiguous).is_conflict());
        assert!(problem(Code::Conflict).is_conflict());
        assert!(problem(Code::PeerUnreachable).is_unreachable());
        assert!(problem(Code::Unauthorized).is_unauthorized());
        assert!(problem(Code::Timeout).is_retryable());
        let internal = problem(Code::Internal);
        assert!(!internal.is_not_found() && !internal.is_unreachable() && !internal.is_retryable());
        assert_eq!(internal.problem().unwrap().code, Code::Internal);
    }

    #[test]
    fn a_start_without_a_whole_answer_is_not_tried_again_blindly() {
        let host = HostUrl::default();
        let broken = ClientError::new(Kind::Broken { host: host.clone(), why: "reset".to_owned() });
        assert!(broken.is_retryable());
        let unsure = broken.after_a_start();
        assert!(!unsure.is_retryable() && !unsure.is_unreachable(), "{unsure}");
        assert!(unsure.to_string().contains("may have begun"), "{unsure}");
        assert!(ClientError::protocol(&host, "x").after_a_start().to_string().contains("may have begun"));
        let refused = problem(Code::Conflict).after_a_start();
        assert!(refused.is_conflict() && !refused.to_string().contains("begun"), "{refused}");
    }
}
