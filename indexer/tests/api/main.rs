//! The HTTP interface from outside: real sockets, the real host, a real VMM.

mod access;
mod content;
mod daemon;
mod errors;
mod limits;
mod pages;
mod stop;
mod support;
mod vms;
