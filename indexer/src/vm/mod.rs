//! Who runs: discovery of VMM processes, their guest RAM and their memory slots, and of everything that could write
//! that RAM unseen. Owns the question which VMs there are; never reads a guest's bytes and never writes anything.
//!
//! | Module | Owns |
//! |---|---|
//! | `descriptor` | what is found out about a VM |
//! | `discovery` | the sweep: from processes to descriptors |
//! | `processes` | what /proc says about one process |
//! | `table` | all processes, at little cost |
//! | `cmdline`, `options` | QEMU's command line |
//! | `monitors` | where QEMU's command line says that it can be talked to |
//! | `maps`, `spans`, `files` | mappings and the files behind them |
//! | `regions` | which mappings are guest RAM |
//! | `doubts`, `foreign` | writes that tracking can't see |
//! | `kvm` | what the kernel says about KVM VMs |
//! | `filter` | `--include`, `--exclude` |

mod cmdline;
pub mod descriptor;
mod discovery;
mod doubts;
mod files;
pub mod filter;
mod foreign;
pub mod kvm;
pub mod maps;
pub mod monitors;
mod options;
pub mod processes;
mod regions;
mod spans;
mod table;
mod watched;

pub use discovery::Discovery;
pub(crate) use doubts::{no_direct_io, printable};
pub use filter::NameFilter;
pub(crate) use foreign::writable_mappers;
pub use kvm::KvmVm;
