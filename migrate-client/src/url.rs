//! Where a host listens: `unix:/path`, `tcp://host:port` or `tls://host:port`.
//!
//! Owns the text form and the question whether an address stays on this machine. Never resolves a name and never
//! connects.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::limits;

/// Address of a memdex host.
///
/// ```
/// use migrate_client::HostUrl;
///
/// let host: HostUrl = "tls://[2001:db8::7]:7373".parse()?;
/// assert_eq!(host.to_string(), "tls://[2001:db8::7]:7373");
/// assert!(!host.is_local());
/// assert!("memdexd.example:7373".parse::<HostUrl>().is_err());
/// # Ok::<(), migrate_client::ParseHostUrlError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostUrl {
    /// A Unix socket on this machine, guarded by its mode: no token is needed.
    Unix(PathBuf),
    /// Plain HTTP with a bearer token. Only for loopback: the token would cross the network in the clear.
    Tcp(Authority),
    /// HTTP over TLS with a bearer token.
    Tls(Authority),
}

/// Name or address, and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authority {
    host: Host,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// The text is not the address of a host. The sentence says what is wrong and how it should look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseHostUrlError(String);

const FORMS: &str = "write unix:/path, tcp://host:port or tls://host:port";

impl Authority {
    /// The host as a name or an address, an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> String {
        match &self.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name.clone(),
        }
    }

    /// The port, never 0.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether packets to it stay on this machine: a loopback address, or the name `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Ip(ip) => ip.to_canonical().is_loopback(),
            Host::Name(name) => name == "localhost",
        }
    }
}

impl HostUrl {
    /// Whether it is on this machine: a Unix socket or a loopback address.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(authority) | Self::Tls(authority) => authority.is_loopback(),
        }
    }

    /// The path of a Unix socket.
    #[must_use]
    pub fn socket_path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) | Self::Tls(_) => None,
        }
    }

    /// Name or address and port of a TCP address.
    #[must_use]
    pub const fn authority(&self) -> Option<&Authority> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(authority) | Self::Tls(authority) => Some(authority),
        }
    }
}

impl Default for HostUrl {
    /// The daemon of this machine: `unix:/run/memdex/memdexd.sock`.
    fn default() -> Self {
        Self::Unix(PathBuf::from("/run/memdex/memdexd.sock"))
    }
}

impl fmt::Display for HostUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(authority) => write!(f, "tcp://{authority}"),
            Self::Tls(authority) => write!(f, "tls://{authority}"),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(ip) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl FromStr for HostUrl {
    type Err = ParseHostUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |why: String| Err(ParseHostUrlError(format!("{}: {why}", crate::printable(text))));
        if text.is_empty() {
            return Err(ParseHostUrlError(format!("the address of a host is empty: {FORMS}")));
        }
        if let Some(path) = text.strip_prefix("unix:") {
            // `unix:///run/x` is how other tools write it.
            let path = path.strip_prefix("//").filter(|rest| rest.starts_with('/')).unwrap_or(path);
            return match socket_path(path) {
                Ok(path) => Ok(Self::Unix(path)),
                Err(why) => error(why),
            };
        }
        if text.starts_with('/') {
            return error(format!("a Unix socket is written unix:{}", crate::printable(text)));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return error(format!("the scheme is missing: {FORMS}"));
        };
        let authority = match scheme {
            "tcp" | "tls" => parse_authority(rest),
            "http" => return error("plain HTTP is written tcp://host:port".to_owned()),
            "https" => return error("HTTP over TLS is written tls://host:port".to_owned()),
            _ => return error(format!("the scheme is not known: {FORMS}")),
        };
        match authority {
            Ok(authority) if scheme == "tcp" => Ok(Self::Tcp(authority)),
            Ok(authority) => Ok(Self::Tls(authority)),
            Err(why) => error(why),
        }
    }
}

fn socket_path(path: &str) -> Result<PathBuf, String> {
    if !path.starts_with('/') {
        return Err(
            "the path of a Unix socket must be absolute, such as unix:/run/memdex/memdexd.sock".to_owned()
        );
    }
    if path.contains('\0') {
        return Err("the path of a Unix socket has no NUL byte in it".to_owned());
    }
    if path.len() > limits::MAX_SOCKET_PATH_BYTES {
        return Err(format!(
            "the path of a Unix socket has at most {} bytes, this one has {}",
            limits::MAX_SOCKET_PATH_BYTES,
            path.len()
        ));
    }
    Ok(PathBuf::from(path))
}

fn parse_authority(text: &str) -> Result<Authority, String> {
    if let Some(wrong) = text.chars().find(|c| matches!(c, '/' | '?' | '#' | '@')) {
        return Err(format!("only host:port follows the scheme, leave out {wrong:?}"));
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (inside, port) = rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
        let ip = inside.parse().map_err(|_| "between brackets stands an IPv6 address without a zone")?;
        (Host::Ip(IpAddr::V6(ip)), port.strip_prefix(':').unwrap_or_default())
    } else {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        if host.contains(':') {
            return Err("an IPv6 address stands between brackets, such as tls://[::1]:7373".to_owned());
        }
        (parse_host(host)?, port)
    };
    if port.is_empty() {
        return Err("the port is missing: add :PORT".to_owned());
    }
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    match port.parse() {
        Ok(port) if digits && port != 0 => Ok(Authority { host, port }),
        _ => Err("the port is a number from 1 to 65535".to_owned()),
    }
}

fn parse_host(text: &str) -> Result<Host, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Host::Ip(ip));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 253 || !text.chars().all(legal) || text.split('.').any(str::is_empty) {
        return Err("the host is a name made of letters, digits, - and ., or an IP address".to_owned());
    }
    // Resolvers read `127.1`, `0x7f000001` and the like as addresses; a name never ends that way.
    let last = text.rsplit('.').next().unwrap_or(text);
    if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") {
        return Err("write an IPv4 address with all four numbers, such as 127.0.0.1".to_owned());
    }
    Ok(Host::Name(text.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> HostUrl {
        text.parse().unwrap()
    }

    #[test]
    fn the_three_forms_are_read_and_written_alike() {
        for text in [
            "unix:/run/memdex/memdexd.sock",
            "tcp://127.0.0.1:7373",
            "tls://host-2.example:443",
            "tls://[2001:db8::1]:1",
            "tcp://localhost:65535",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(parse("unix:///run/x"), parse("unix:/run/x"));
    }

    #[test]
    fn what_leaves_the_machine_is_known() {
        for local in [
            "unix:/x",
            "tcp://127.8.8.8:1",
            "tcp://[::1]:1",
            "tcp://LOCALHOST:1",
            "tcp://[::ffff:127.0.0.1]:1",
        ] {
            assert!(parse(local).is_local(), "{local}");
        }
        for remote in
            ["tcp://0.0.0.0:1", "tcp://10.0.0.1:1", "tls://localhost.example:1", "tcp://127.0.0.1.example:1"]
        {
            assert!(!parse(remote).is_local(), "{remote}");
        }
    }

    #[test]
    fn every_mistake_gets_its_own_advice() {
        for (text, advice) in [
            ("", "empty"),
            ("host:7373", "scheme is missing"),
            ("/run/x", "unix:/run/x"),
            ("unix:run/x", "absolute"),
            ("unix:/a\0b", "NUL"),
            ("http://h:1", "tcp://"),
            ("https://h:1", "tls://"),
            ("ftp://h:1", "not known"),
            ("tcp://h", "add :PORT"),
            ("tcp://h:", "add :PORT"),
            ("tcp://[::1]", "add :PORT"),
            ("tcp://h:0", "1 to 65535"),
            ("tcp://h:+1", "1 to 65535"),
            ("tcp://h:70000", "1 to 65535"),
            ("tcp://h:1/v1", "leave out '/'"),
            ("tcp://user@h:1", "leave out '@'"),
            ("tcp://::1:1", "brackets"),
            ("tcp://[::1:1", "not closed"),
            ("tcp://[fe80::1%eth0]:1", "without a zone"),
            ("tcp://:1", "name made of"),
            ("tcp://a..b:1", "name made of"),
            ("tcp://127.1:1", "all four numbers"),
            ("tcp://2130706433:1", "all four numbers"),
            ("tcp://0x7f000001:1", "all four numbers"),
        ] {
            let error = text.parse::<HostUrl>().unwrap_err().to_string();
            assert!(error.contains(advice), "{text}: {error}");
        }
        let long = format!("unix:/{}", "x".repeat(200));
        assert!(long.parse::<HostUrl>().unwrap_err().to_string().contains("at most 107 bytes"));
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "(unix:/|tcp://|tls://)?[a-z0-9.:\\[\\]/%@-]{0,30}") {
            if let Ok(url) = text.parse::<HostUrl>() {
                prop_assert_eq!(url.to_string().parse::<HostUrl>().unwrap(), url);
            }
        }

        #[test]
        fn no_text_makes_it_panic_or_print_control_characters(text: String) {
            if let Err(error) = text.parse::<HostUrl>() {
                prop_assert!(!error.to_string().chars().any(char::is_control));
            }
        }

        #[test]
        fn any_address_works(ip: IpAddr, port in 1u16..) {
            let text = format!("tls://{}", std::net::SocketAddr::new(ip, port));
            prop_assert_eq!(parse(&text).to_string(), text);
        }
    }
}
