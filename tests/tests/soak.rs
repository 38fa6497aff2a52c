//! Protects the soak itself: a short one passes and reports what it did, and one that is interrupted leaves nothing behind.

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use memdex_tests::{Scratch, daemon::binary, process::Process};
use rustix::process::Signal;

#[test]
fn a_short_soak_judges_every_page_and_finds_none_wrong() {
    let scratch = Scratch::new("soak");
    let report = scratch.path("soak.json");
    let mut command = scratch.command(binary("memdex-soak"));
    command.args(["--minutes", "0.25", "--seed", "3", "--json"]).arg(&report).stdout(Stdio::null());
    let (status, _) = Process::start("memdex-soak", &mut command).wait(Duration::from_secs(90));
    let report = fs::read(&report).expect("a report was written");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("the report is JSON");
    assert!(status.success(), "{status}: {report:#}");
    assert_eq!((&report["mismatches"], &report["passed"]), (&0.into(), &true.into()), "{report:#}");
    for (figure, least) in
        [("page_checks", 100_000), ("after_sync", 50_000), ("comparisons", 10), ("guests", 5)]
    {
        assert!(report[figure].as_u64().is_some_and(|n| n >= least), "{figure}: {report:#}");
    }
}

#[test]
fn a_soak_that_is_interrupted_leaves_nothing_behind() {
    let scratch = Scratch::new("ctrlc");
    let mut command = scratch.command(binary("memdex-soak"));
    command.args(["--minutes", "10"]).stdout(Stdio::null());
    let mut soak = Process::start("memdex-soak", &mut command);
    std::thread::sleep(Duration::from_secs(5));
    soak.signal(Signal::INT);
    let pid = soak.pid();
    let (status, took) = soak.wait(Duration::from_secs(30));
    eprintln!("ended after {took:?}");
    assert_eq!(status.code(), Some(130), "{status}");
    let mark = format!("memdex-test-{pid}-");
    for folder in [PathBuf::from("/dev/shm"), std::env::temp_dir()] {
        let left = fs::read_dir(&folder).expect("it can be listed").flatten().map(|entry| entry.file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with(&mark)).collect();
        assert!(left.is_empty(), "{}: {left:?}", folder.display());
    }
    let marked = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.windows(mark.len()).any(|part| part == mark.as_bytes())
    };
    let all = fs::read_dir("/proc").expect("/proc can be listed").flatten();
    let left: Vec<u32> =
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(marked).collect();
    assert!(left.is_empty(), "processes are left: {left:?}");
}
