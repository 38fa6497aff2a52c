//! Protects a guest from a destination without room for it: refused before anything moves if that can be known, given up cleanly if not.

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use memdex_tests::{qemu::Backend, wait};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    hosts::tcp,
    stage::{CHECK, Stage, shown},
};

const BOUND: Duration = Duration::from_secs(30);

/// A tmpfs of its own, gone with this.
struct Small(PathBuf);

impl Small {
    fn new(at: &Path, mib: u64) -> Self {
        fs::create_dir(at).expect("a folder can be made");
        let options = CString::new(format!("size={mib}M")).expect("no zero in it");
        mount("memdex-test", at, "tmpfs", MountFlags::empty(), options.as_c_str()).expect("root can mount");
        Self(at.to_owned())
    }

    fn ram(&self) -> Backend {
        Backend::File(self.0.join("ram"))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn guest_that_does_not_fit_is_refused_before_anything_moves() {
    let mut stage = Stage::new("room", &CHECK);
    let small = Small::new(&stage.scratch.path("small"), 32);
    let waiting = stage.waiting_with(small.ram());
    let to = tcp(stage.there());
    let mut moving = stage.begin(&waiting, &to, &[]);
    let (report, code) = moving.end(BOUND);
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(report["outcome"] == "failed" && code != Some(0), "{report}");
    assert!(reason.contains("room for") && reason.contains("MiB"), "{reason}");
    assert_eq!(report["pages"]["sent"], 0, "{report}");
    stage.judge(waiting, &moving.id);
}

#[test]
fn destination_that_fills_up_meanwhile_gives_up_and_keeps_nothing() {
    let mut stage = Stage::new("full", &CHECK);
    let small = Small::new(&stage.scratch.path("small"), 128);
    let waiting = stage.waiting_with(small.ram());
    let to = tcp(stage.there());
    let mut moving = stage.begin(&waiting, &to, &["--max-bandwidth", "20M"]);
    wait::until("some pages to be sent", BOUND, || {
        let document = shown(stage.here(), &moving.id)?;
        (document["pages"]["sent"].as_u64() > Some(1000)).then_some(())
    });
    // Somebody else takes all that is left.
    let filler = small.0.join("filler");
    assert!(fs::write(&filler, vec![1; 128 << 20]).is_err(), "it is full");
    let (report, code) = moving.end(BOUND);
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(report["outcome"] == "failed" && code == Some(1), "{report}");
    assert!(reason.contains("no room"), "{reason}");
    fs::remove_file(filler).expect("it can be removed");
    stage.judge(waiting, &moving.id);
}
