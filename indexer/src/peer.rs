//! Other hosts: who they are, and what to say when one cannot be asked.
//!
//! Owns names, addresses and the bounds of a conversation. What peers hold is [`crate::picture`]'s.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use memdex_wire::problem::{Code, Problem};
use migrate_client::{Client, ClientError, ClientOptions, HostUrl, Timeouts, Token};

use tokio_util::sync::CancellationToken;

use crate::{
    host::Host,
    migrate::resolve::Destination,
    picture::{self, peers::Pictures},
};

/// Time a peer has for the answer to one batch.
pub const BATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The hosts that can be asked by name, and how any host is asked.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    named: BTreeMap<String, HostUrl>,
    options: ClientOptions,
    pictures: Arc<Pictures>,
}

impl Peers {
    /// `token` is what peers want to see on TCP; `ca` the only authorities to trust there, or else the system's. `picture_bytes`: room for what each peer holds.
    #[must_use]
    pub fn new(
        named: BTreeMap<String, HostUrl>,
        token: Option<Token>,
        ca: Option<PathBuf>,
        picture_bytes: u64,
    ) -> Self {
        let timeouts =
            Timeouts { connect: Duration::from_secs(5), answer: BATCH_TIMEOUT, ..Timeouts::default() };
        let pictures = Arc::new(Pictures::new(named.keys().map(String::as_str), picture_bytes));
        Self { named, options: ClientOptions { token, ca, timeouts }, pictures }
    }

    /// What the named peers hold, as far as they are followed.
    #[must_use]
    pub fn pictures(&self) -> &Arc<Pictures> {
        &self.pictures
    }

    /// Begins to follow what the named peers hold.
    pub fn follow(&self, host: &Host, stop: &CancellationToken) {
        picture::follow(host, self, stop);
    }

    /// A client of the host called `to`: the name of a peer, or a URL.
    ///
    /// # Errors
    /// If there is no such peer, or its URL is not one that may be used.
    pub fn client(&self, to: &str) -> Result<Client, Problem> {
        let bad = |why: String| Problem::new(Code::BadRequest, why);
        let url = match self.named.get(to) {
            Some(url) => url.clone(),
            None if !to.contains(':') => {
                let shown = migrate_client::printable(to);
                return Err(bad(format!(
                    "no peer is called {shown:?}: name one given with --peer or under [peer] in the configuration, or a URL unix:/path, tcp://127.0.0.1:port or tls://host:port"
                )));
            }
            None => to.parse::<HostUrl>().map_err(|error| bad(error.to_string()))?,
        };
        if matches!(url, HostUrl::Tcp(_)) && !url.is_local() {
            return Err(bad(format!(
                "{url} would be asked over the network in the clear: use tls:// for hosts other than this one"
            )));
        }
        Client::new(url, self.options.clone()).map_err(|error| problem(&error))
    }

    /// What a guard needs to ask the host of `client` about a migration when this daemon is no more.
    #[must_use]
    pub fn destination(&self, client: &Client, id: &str) -> Destination {
        Destination {
            url: client.host().to_string(),
            token: self.options.token.as_ref().map(|token| token.expose().to_owned()),
            ca: self.options.ca.clone(),
            id: id.to_owned(),
        }
    }
}

/// What a failure to ask a peer means to whoever asked us.
#[must_use]
pub fn problem(error: &ClientError) -> Problem {
    let code = if error.is_unauthorized() {
        Code::PeerUnauthorized
    } else if error.is_unreachable() || error.is_retryable() {
        Code::PeerUnreachable
    } else {
        Code::PeerProtocol
    };
    Problem::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_urls_are_told_apart_and_bad_ones_explained() {
        let named = [("b".to_owned(), "unix:/run/b.sock".parse().unwrap())].into();
        let peers = Peers::new(named, None, None, 0);
        assert_eq!(peers.client("b").unwrap().host().to_string(), "unix:/run/b.sock");
        assert!(peers.client("tcp://127.0.0.1:9").is_ok());
        for (to, words) in [
            ("c", "--peer"),
            ("", "--peer"),
            ("http://x:1", "tcp://"),
            ("tcp://10.0.0.1:1", "tls://"),
            ("tcp://0.0.0.0:1", "tls://"),
        ] {
            let problem = peers.client(to).unwrap_err();
            assert!(problem.code == Code::BadRequest && problem.detail.contains(words), "{to}: {problem}");
        }
    }
}
