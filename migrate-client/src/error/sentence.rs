//! The sentences of errors: what failed, why, and what to do about it.
//!
//! Never prints a control character that came from a peer, nor more of its text than it may have.

use std::fmt;

use memdex_wire::problem::Code;

use super::{ClientError, Kind};
use crate::{limits, printable};

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Kind::Token { place, why } => write!(f, "{place} cannot be used: {why}"),
            Kind::Options { why } => write!(f, "{why}"),
            Kind::Unreachable { host, why, advice } => write!(f, "{host} cannot be reached: {why}; {advice}"),
            Kind::Silent { host, after } => write!(
                f,
                "{host} took the request but gave no complete answer within {after:?}: \
                 see whether memdexd hangs there, and try again"
            ),
            Kind::Slow { host, what, after } => {
                write!(
                    f,
                    "{what} at {host} was not complete after {after:?}: try again with more time, or see its log"
                )
            }
            Kind::Broken { host, why } => {
                write!(f, "{host} ended the connection before its answer was complete ({why}): try again")
            }
            Kind::Problem { host, problem, token_sent } => {
                let detail = shorten(&problem.detail);
                let detail = if detail.is_empty() { problem.title.as_str() } else { &detail };
                write!(f, "{host}: {}", printable(detail))?;
                if problem.code == Code::Unauthorized {
                    write!(f, "{}", token_advice(*token_sent))
                } else {
                    Ok(())
                }
            }
            Kind::Status { host, status: status @ (401 | 403), token_sent } => {
                write!(f, "{host} refused the request (HTTP status {status}){}", token_advice(*token_sent))
            }
            Kind::Status { host, status, .. } => write!(
                f,
                "{host} answered with HTTP status {status} and no explanation: \
                 see whether a memdexd of this version listens there"
            ),
            Kind::Redirect { host, to } => write!(
                f,
                "{host} redirects to {}, which is never followed: give the address of the memdexd itself",
                printable(&shorten(to))
            ),
            Kind::Protocol { host, why } => write!(
                f,
                "the answer of {host} is not the memdex protocol ({}): \
                 see whether a memdexd of this version listens there",
                printable(&shorten(why))
            ),
            Kind::TooLarge { host, limit } => write!(
                f,
                "the answer of {host} is larger than the {limit} bytes it may have: \
                 see whether a memdexd of this version listens there"
            ),
            Kind::LayoutChanged { host } => {
                write!(
                    f,
                    "the VM's memory layout changed at {host} while its page map was read: read it again"
                )
            }
            Kind::NoSuchKey { why, list } => write!(f, "{why}: {list}"),
            Kind::Unsure { host, why } => write!(
                f,
                "{host} was asked for a migration, but its answer did not arrive whole ({}): \
                 it may have begun all the same, `memdex migrations` tells",
                printable(&shorten(why))
            ),
            Kind::LostSight { host, id, after, why } => write!(
                f,
                "{host} has said nothing about the migration for {after:?} ({}): it goes on without us, \
                 `memdex migrations {}` shows how, once that host answers again",
                printable(&shorten(why)),
                printable(&shorten(id))
            ),
            Kind::Forgotten { host, id } => write!(
                f,
                "{host} does not know the migration {} any more, as if memdexd had been restarted: \
                 see on both hosts where the VM runs",
                printable(&shorten(id))
            ),
        }
    }
}

impl ClientError {
    /// Only why, for a sentence that says the rest.
    pub(crate) fn cause(&self) -> String {
        match &*self.0 {
            Kind::Unreachable { why, .. } | Kind::Broken { why, .. } | Kind::Protocol { why, .. } => {
                why.clone()
            }
            Kind::Silent { after, .. } | Kind::Slow { after, .. } => format!("not complete after {after:?}"),
            Kind::TooLarge { limit, .. } => format!("larger than the {limit} bytes it may have"),
            Kind::Problem { problem, .. } => problem.detail.clone(),
            Kind::Status { status, .. } => format!("HTTP status {status}"),
            _ => self.to_string(),
        }
    }
}

const fn token_advice(sent: bool) -> &'static str {
    if sent {
        " (our token is not the one of that host: compare the token files, see $MEMDEX_TOKEN_FILE)"
    } else {
        " (no token was sent: point $MEMDEX_TOKEN_FILE to the host's token, by default /etc/memdex/token)"
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(limits::MAX_DETAIL_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use memdex_wire::problem::Problem;

    use super::*;
    use crate::HostUrl;

    #[test]
    fn a_peer_cannot_steer_the_terminal_or_flood_it() {
        let host = HostUrl::default();
        for detail in ["what\x1b[2J\n and why".to_owned(), "ä".repeat(100_000)] {
            let problem = Problem::new(Code::Internal, &*detail);
            for kind in [
                Kind::Problem { host: host.clone(), problem, token_sent: true },
                Kind::Unsure { host: host.clone(), why: detail.clone() },
                Kind::Forgotten { host: host.clone(), id: detail },
            ] {
                let text = ClientError::new(kind).to_string();
                assert!(!text.contains(['\x1b', '\n']), "{text:?}");
                assert!(text.chars().count() < limits::MAX_DETAIL_CHARS + 200, "{text}");
            }
        }
    }
}
