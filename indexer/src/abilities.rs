//! What this process may do. Owns reading its capabilities and saying, once and clearly, what will not work.

use std::fs;

/// What is missing, and what is lost without it (capabilities(7)).
const WANTED: [(u32, &str, &str); 4] = [
    (19, "CAP_SYS_PTRACE", "VMs of other users cannot be found, read or watched"),
    (21, "CAP_SYS_ADMIN", "eBPF hooks cannot be read, so that writes are found by scanning only"),
    (39, "CAP_BPF", "eBPF hooks cannot be loaded, so that writes are found by scanning only"),
    (38, "CAP_PERFMON", "eBPF hooks cannot be attached, so that writes are found by scanning only"),
];

/// Logs what is missing. The daemon goes on: VMs of its own user can still be indexed.
pub(crate) fn report() {
    let Some(effective) = effective() else { return };
    let lost = missing(effective);
    for (name, loss) in &lost {
        tracing::warn!("{name} is missing: {loss}");
    }
    if !lost.is_empty() {
        tracing::warn!("run memdexd as root to index every VM of this host exactly");
    }
}

fn effective() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// CAP_SYS_ADMIN includes what CAP_BPF and CAP_PERFMON allow.
fn missing(effective: u64) -> Vec<(&'static str, &'static str)> {
    let has = |bit: u32| effective & (1 << bit) != 0;
    let admin = has(21);
    let lacks = |(bit, ..): &&(u32, &str, &str)| !has(*bit) && (!admin || *bit < 38);
    WANTED.iter().filter(lacks).map(|(_, name, loss)| (*name, *loss)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_lacks_nothing_and_nobody_lacks_all() {
        assert!(missing(u64::MAX).is_empty());
        assert!(missing(1 << 19 | 1 << 21).is_empty());
        assert_eq!(missing(0).len(), 4);
        assert_eq!(missing(1 << 21)[0].0, "CAP_SYS_PTRACE");
        assert!(effective().is_some());
    }
}
