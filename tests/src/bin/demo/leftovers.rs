//! Removes what a run left that was killed with SIGKILL: its guests died with it, their RAM files did not.

use std::{fs, path::Path};

/// Removes RAM files of harness processes that no longer run.
pub(crate) fn remove() {
    for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        if entry.file_name().to_str().and_then(maker).is_some_and(has_ended) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The process whose harness made a file of this name.
fn maker(name: &str) -> Option<u32> {
    name.strip_prefix("memdex-test-")?.split('-').next()?.parse().ok()
}

fn has_ended(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_ended_harness_processes_count() {
        assert_eq!(maker("memdex-test-123-0-demo-web1"), Some(123));
        assert_eq!(maker("memdex-test-x-0-demo"), None);
        assert_eq!(maker("someone-elses-123"), None);
        assert!(!has_ended(std::process::id()));
    }
}
