//! Live migration.
mod codec;
mod in_flight;
mod ledger;
mod link;
mod monitor;
mod pace;
mod qmp;
mod record;
