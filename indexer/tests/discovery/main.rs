//! Discovery against real VMMs: QEMU in its variants, KVM VMs, and programs that only pretend.

mod harness;
mod helper;
mod hostile;
mod kvm;
mod lifetime;
mod qemu;
