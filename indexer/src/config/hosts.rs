//! URLs: where this host listens, and how it calls others.

use std::collections::BTreeMap;

use migrate_client::HostUrl;

use super::{ConfigError, value};

/// Where to listen.
pub(super) fn urls(list: &[String]) -> Result<Vec<HostUrl>, ConfigError> {
    let mut urls: Vec<HostUrl> = Vec::with_capacity(list.len());
    for text in list {
        let url = text.parse().map_err(|error| value("listen", format!("{error}")))?;
        if urls.contains(&url) {
            return Err(value("listen", format!("{url} is there twice; leave one out")));
        }
        urls.push(url);
    }
    Ok(urls)
}

/// Other hosts by name: the file's, and `NAME=URL` of the command line.
pub(super) fn peers(
    file: BTreeMap<String, String>,
    command_line: &[String],
) -> Result<BTreeMap<String, HostUrl>, ConfigError> {
    let mut all = file;
    for peer in command_line {
        let Some((name, url)) = peer.split_once('=') else {
            return Err(value(
                "peer",
                format!("{peer:?} is not NAME=URL, such as host2=tls://host2.example:7373"),
            ));
        };
        all.insert(name.to_owned(), url.to_owned());
    }
    all.into_iter().map(|(name, url)| peer(name, &url)).collect()
}

fn peer(name: String, url: &str) -> Result<(String, HostUrl), ConfigError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(legal) {
        let why = format!("the name {name:?} is not 1 to 64 letters, digits, - _ and .; choose another");
        return Err(value("peer", why));
    }
    let url: HostUrl = url.parse().map_err(|error| value("peer", format!("{name}: {error}")))?;
    if let HostUrl::Tcp(address) = &url
        && !address.is_loopback()
    {
        let why = format!("{name}: {url} would send the token over the network in the clear; write tls://");
        return Err(value("peer", why));
    }
    Ok((name, url))
}
