//! The HTTP interface from outside: real sockets, the real host, a real VMM.
#![expect(clippy::unwrap_used, reason = "what a test needs and does not get is a failure")]

mod access;
mod content;
mod daemon;
mod errors;
mod limits;
mod migrations;
mod pages;
mod stop;
mod support;
mod vms;
