//! Client of a memdex host: ask what it knows of its VMs' memory and what another host lacks of it, and move a VM there.
//!
//! [`Client`] speaks the HTTP interface of `memdexd` over a Unix socket, TCP or TLS. It owns the requests, the bounds
//! of every answer ([`limits`]) and the sentences of its errors ([`ClientError`]). It never retries (but for looks at a
//! migration that is followed), never follows a redirect, takes no proxy from the environment, and keeps no state but
//! its connections.
//!
//! ```no_run
//! # async fn run() -> Result<(), migrate_client::ClientError> {
//! use migrate_client::{Client, ClientOptions, HostUrl};
//!
//! let host = Client::new(HostUrl::default(), ClientOptions::default())?;
//! for vm in host.vms().await? {
//!     let diff = host.diff(&vm.id, "tls://host-2.example:7373").await?;
//!     println!("{}: {} pages to send, {} already there", vm.name, diff.pages.missing, diff.pages.matched);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A VM is moved by asking for it and following it to its end:
//!
//! ```no_run
//! # async fn run(host: migrate_client::Client) -> Result<(), migrate_client::ClientError> {
//! use migrate_client::memdex_wire::migration::MigrationRequest;
//!
//! let begun = host.migrate(&MigrationRequest::new("vm1", "tls://host-2.example:7373")).await?;
//! let ended = host.follow_migration(&begun.id, |now| println!("{}", now.phase.name())).await?;
//! println!("{:?}, the guest stood still for {} ms", ended.outcome, ended.blackout_ms);
//! # Ok(())
//! # }
//! ```
//!
//! The `memdex` command is in this package, behind the default feature `command`; a program that only links the
//! library leaves it out with `default-features = false`. The documents themselves are in [`memdex_wire`].
#![forbid(unsafe_code)]

mod channel;
mod client;
mod error;
mod events;
pub mod limits;
mod migration;
mod pages;
mod picture;
mod token;
mod transport;
mod url;

pub use channel::{Channel, ChannelKind};
pub use client::{Client, ClientOptions};
pub use error::ClientError;
pub use events::EventStream;
pub use limits::Timeouts;
pub use memdex_wire;
pub use migration::MigrationStream;
pub use pages::PageStream;
pub use picture::PictureStream;
pub use token::{DEFAULT_TOKEN_FILE, TOKEN_FILE_VARIABLE, Token};
pub use url::{Authority, HostUrl, ParseHostUrlError};

/// `text` with every character replaced that could steer a terminal: controls, and marks that turn the direction of
/// writing. Names of VMs come from command lines of VMMs, sentences from peers: neither is to be trusted.
#[must_use]
pub fn printable(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
