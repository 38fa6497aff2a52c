//! What the operator asked for: a TOML file, overridden by the command line.
//!
//! Owns the names, defaults and bounds of all settings, and the sentences about what is wrong with them. Never opens
//! a socket, and reads no file but the one named with `--config`.

mod hosts;
mod migration;

pub use migration::Migration;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use migrate_client::HostUrl;
use serde::Deserialize;

use crate::watch::witnesses::Witnesses;

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub listen: Vec<HostUrl>,
    /// Other hosts by name.
    pub peers: BTreeMap<String, HostUrl>,
    /// Room for what each of them holds, in bytes; 0: they are asked.
    pub peer_picture_bytes: u64,
    /// Globs of names or ids of VMs to index; empty means all.
    pub include: Vec<String>,
    /// Globs of names or ids of VMs to leave alone.
    pub exclude: Vec<String>,
    /// Threads that read and hash guest memory.
    pub hash_threads: usize,
    /// Time between two looks at the write marks.
    pub tick: Duration,
    /// Share of a core for reading known pages again, in percent; 0: none.
    pub audit_percent: f64,
    /// Longest time that a request of direct I/O can be under way; zero: it is disregarded.
    pub settle: Duration,
    /// Share of one vCPU that being watched may cost each guest, in percent.
    pub guest_budget: f64,
    /// Which witnesses may be used.
    pub witnesses: Witnesses,
    /// Filter for the log, as in `RUST_LOG`.
    pub log: Option<String>,
    /// Certificates.
    pub tls: TlsFiles,
    /// Migrations.
    pub migration: Migration,
}

/// Files for `tls://`, all PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificate chain of this host, its own certificate first.
    pub certificate: Option<PathBuf>,
    /// Private key of the certificate.
    pub key: Option<PathBuf>,
    /// The only authorities to trust when asking peers; the system's if there is none.
    pub ca: Option<PathBuf>,
}

/// The file as it is written: every key may be left out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<Vec<String>>,
    #[serde(default)]
    peer: BTreeMap<String, String>,
    peer_picture_mib: Option<u64>,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    hash_threads: Option<usize>,
    tick_ms: Option<u64>,
    audit_percent: Option<f64>,
    settle_seconds: Option<u64>,
    guest_budget: Option<f64>,
    #[serde(default)]
    witness: Vec<String>,
    log: Option<String>,
    #[serde(default)]
    tls: TlsFiles,
    #[serde(default)]
    migration: migration::Settings,
}

/// What the command line adds; see `memdexd --help`.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Replaces the file's list if it is not empty.
    pub listen: Vec<String>,
    /// `NAME=URL`; added to the file's, a name given in both counts as given here.
    pub peer: Vec<String>,
    /// Replaces the file's list if it is not empty.
    pub include: Vec<String>,
    /// Replaces the file's list if it is not empty.
    pub exclude: Vec<String>,
    /// Replaces the file's figure.
    pub hash_threads: Option<usize>,
    /// Replaces the file's figure.
    pub tick_ms: Option<u64>,
    /// Replaces the file's figure.
    pub audit_percent: Option<f64>,
    /// Replaces the file's figure.
    pub settle_seconds: Option<u64>,
    /// Replaces the file's figure.
    pub guest_budget: Option<f64>,
    /// Replaces the file's list if it is not empty.
    pub witness: Vec<String>,
    /// Replaces the file's filter.
    pub log: Option<String>,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {path} cannot be read: {error}; name another with --config or leave it out")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not TOML, or has a key that is not known or of the wrong type.
    #[error("the configuration {path} cannot be used: {error}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and key.
        error: Box<toml::de::Error>,
    },
    /// A value is not usable.
    #[error("{setting}: {why}")]
    Value {
        /// Name of the setting.
        setting: &'static str,
        /// What is wrong and what to do.
        why: String,
    },
}

/// Largest configuration file.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// MiB for what one peer holds, if nothing else is said: 64 Mi contents, 256 GiB of memory that all differs.
const DEFAULT_PEER_PICTURE_MIB: u64 = 256;
/// Time between two looks at the write marks, in milliseconds, if nothing else is said.
const DEFAULT_TICK_MS: u64 = 50;
/// Share of a core for reading known pages again, in percent, if nothing else is said.
const DEFAULT_AUDIT_PERCENT: f64 = 0.5;
/// Share of one vCPU that being watched may cost each guest, in percent, if nothing else is said.
const DEFAULT_GUEST_BUDGET: f64 = 1.0;
/// Seconds that a request of direct I/O can be under way, if nothing else is said: the block layer gives up after 30, and a bus or two is reset.
const DEFAULT_SETTLE_SECONDS: u64 = 120;

impl Config {
    /// Reads the file, if there is one, and applies the command line.
    ///
    /// # Errors
    /// If anything in it cannot be used.
    pub fn load(path: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        path.map_or_else(|| Ok(File::default()), read).and_then(|file| Self::build(file, overrides))
    }

    fn build(file: File, over: Overrides) -> Result<Self, ConfigError> {
        let either = |over: Vec<String>, file: Vec<String>| if over.is_empty() { file } else { over };
        let listen = match either(over.listen, file.listen.unwrap_or_default()) {
            list if list.is_empty() => vec![HostUrl::default()],
            list => hosts::urls(&list)?,
        };
        let (include, exclude) = (either(over.include, file.include), either(over.exclude, file.exclude));
        check_globs("include", &include)?;
        check_globs("exclude", &exclude)?;
        let tick = over.tick_ms.or(file.tick_ms).unwrap_or(DEFAULT_TICK_MS);
        if !(5..=10_000).contains(&tick) {
            return Err(value("tick_ms", format!("{tick} is not between 5 and 10000 milliseconds")));
        }
        let audit_percent = over.audit_percent.or(file.audit_percent).unwrap_or(DEFAULT_AUDIT_PERCENT);
        if !(0.0..=100.0).contains(&audit_percent) {
            let why = format!("{audit_percent} is not between 0 (off) and 100 percent of a core");
            return Err(value("audit_percent", why));
        }
        let settle = over.settle_seconds.or(file.settle_seconds).unwrap_or(DEFAULT_SETTLE_SECONDS);
        if settle > 86_400 {
            return Err(value("settle_seconds", format!("{settle} seconds is more than a day")));
        }
        let guest_budget = over.guest_budget.or(file.guest_budget).unwrap_or(DEFAULT_GUEST_BUDGET);
        if !(0.01..=100.0).contains(&guest_budget) {
            let why = format!("{guest_budget} is not between 0.01 and 100 percent of one vCPU");
            return Err(value("guest_budget", why));
        }
        let witnesses =
            Witnesses::named(&either(over.witness, file.witness)).map_err(|why| value("witness", why))?;
        let hash_threads = over.hash_threads.or(file.hash_threads).unwrap_or_else(half_the_cores);
        if !(1..=1024).contains(&hash_threads) {
            return Err(value("hash_threads", format!("{hash_threads} is not between 1 and 1024 threads")));
        }
        let peer_picture = file.peer_picture_mib.unwrap_or(DEFAULT_PEER_PICTURE_MIB);
        if peer_picture > 16 << 10 {
            let why = format!("{peer_picture} MiB is more than 16384 for each peer");
            return Err(value("peer_picture_mib", why));
        }
        let config = Self {
            peer_picture_bytes: peer_picture << 20,
            peers: hosts::peers(file.peer, &over.peer)?,
            listen,
            include,
            exclude,
            hash_threads,
            tick: Duration::from_millis(tick),
            audit_percent,
            settle: Duration::from_secs(settle),
            guest_budget,
            witnesses,
            log: over.log.or(file.log),
            tls: file.tls,
            migration: file.migration.checked()?,
        };
        config.check_tls()?;
        Ok(config)
    }

    /// Whether anything listens beyond the Unix socket, so that a token is needed.
    #[must_use]
    pub fn wants_token(&self) -> bool {
        self.listen.iter().any(|url| url.authority().is_some())
    }

    /// Folder of the journal of migrations: beside the Unix socket, one for each daemon.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.beside_socket("migrations")
    }

    /// Folder of the maps, which the next daemon goes on with: beside the Unix socket, one for each daemon.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.beside_socket("maps")
    }

    fn beside_socket(&self, what: &str) -> PathBuf {
        let socket = self.listen.iter().find_map(HostUrl::socket_path);
        socket.map_or_else(
            || PathBuf::from("/run/memdex").join(what),
            |socket| {
                let mut name = socket.as_os_str().to_owned();
                name.push(format!(".{what}"));
                PathBuf::from(name)
            },
        )
    }

    fn check_tls(&self) -> Result<(), ConfigError> {
        for url in &self.listen {
            match url {
                HostUrl::Tcp(address) if !address.is_loopback() => {
                    return Err(value(
                        "listen",
                        format!(
                            "{url} would send the token and the map over the network in the clear; \
                             write tls:// and give a certificate and key under [tls], or use a loopback address"
                        ),
                    ));
                }
                HostUrl::Tls(_) if self.tls.certificate.is_none() || self.tls.key.is_none() => {
                    let why =
                        format!("{url} needs `certificate` and `key` under [tls] in the configuration file");
                    return Err(value("listen", why));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Half the cores this process may use, at least one.
#[must_use]
pub fn half_the_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let unreadable = |error| ConfigError::Unreadable { path: path.to_owned(), error };
    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > MAX_FILE_BYTES {
        let why = std::io::Error::other("it is larger than 1 MiB");
        return Err(unreadable(why));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    toml::from_str(&text)
        .map_err(|error| ConfigError::Syntax { path: path.to_owned(), error: Box::new(error) })
}

fn value(setting: &'static str, why: String) -> ConfigError {
    ConfigError::Value { setting, why }
}

fn check_globs(setting: &'static str, globs: &[String]) -> Result<(), ConfigError> {
    for glob in globs {
        globset::Glob::new(glob).map_err(|error| {
            value(setting, format!("{glob:?} is not a glob: {}; write one such as \"web-*\"", error.kind()))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
