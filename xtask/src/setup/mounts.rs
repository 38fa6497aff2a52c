//! The kernel's file systems that eBPF programs need: tracefs (offsets of tracepoint fields) and bpffs. Missing ones are
//! mounted if that is allowed; if not, that is said and work goes on, since the daemon goes on too.

use std::fs;
use std::process::{Command, Stdio};

const MOUNTS: &[(&str, &str)] = &[("tracefs", "/sys/kernel/tracing"), ("bpf", "/sys/fs/bpf")];

pub(super) fn ensure() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for (kind, place) in MOUNTS {
        if is_mounted(&mounts, kind, place) {
            continue;
        }
        let mounted = Command::new("mount")
            .args(["-t", kind, "none", place])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if mounted {
            eprintln!("setup: mounted {kind} on {place}");
        } else {
            eprintln!(
                "setup: {kind} is not mounted on {place} and can't be mounted from here; run as root \
                 `mount -t {kind} none {place}`, or go on without the eBPF hooks that need it"
            );
        }
    }
}

fn is_mounted(mounts: &str, kind: &str, place: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(place) && fields.next() == Some(kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_and_the_place_must_both_fit() {
        let mounts = "sysfs /sys sysfs rw 0 0\nnone /sys/kernel/tracing tracefs rw 0 0\n";
        assert!(is_mounted(mounts, "tracefs", "/sys/kernel/tracing"));
        assert!(!is_mounted(mounts, "bpf", "/sys/fs/bpf"));
        assert!(!is_mounted(mounts, "tracefs", "/sys"));
    }
}
