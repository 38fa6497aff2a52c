//! Protects a waiting VM, and the daemon beside it, from a source that lies: nothing of what it sends is used, it learns why, and the VM goes on waiting.

use std::{
    fs,
    time::{Duration, Instant},
};

use memdex_wire::{
    Fingerprint, PAGE_SIZE,
    transfer::{
        BlockHeader, Codec, Hello, MAX_OFFER, Namer, ToDestination, ToSource, ZERO, chunk_digest, root,
    },
};

use crate::{
    hosts::{migrate, tcp},
    liar::Line,
    stage::{CHECK, Stage, shown, watched::Watched},
};

/// Pages of the VM.
const PAGES: u32 = 128 << 8;
/// Longest lie: ten seconds of silence or trickling, and a little more.
const BOUND: Duration = Duration::from_secs(25);
/// Most memory a lie may cost the daemon, in bytes.
const MEMORY: u64 = 64 << 20;

/// A control connection on which the destination is ready, and its migration.
struct Lie {
    control: Line,
    namer: Namer,
    id: String,
}

impl Lie {
    fn begin(stage: &Stage, waiting: &Watched, number: usize) -> Self {
        let id = format!("{:016x}", 0xfa15_e000 + number);
        let mut control = Line::open(stage.there(), &id, "receive");
        let hello = Hello {
            name: "liar".to_owned(),
            dest_vm: waiting.name.clone(),
            dest_qmp: None,
            regions: vec![PAGES.into()],
            backends: Vec::new(),
            populated: 1000,
            qemu: "10.0.2".to_owned(),
            key: "0".repeat(32),
            dry_run: false,
        };
        control.send(&ToDestination::Hello(hello).encode());
        let ready = match control.hear_destination().expect("an answer") {
            ToSource::Ready(ready) => ready,
            other => panic!("{other:?}"),
        };
        assert!(ready.checks.iter().all(|check| check.ok), "{ready:?}");
        Self { control, namer: Namer::new(ready.names), id }
    }

    fn offer(&mut self, batch: u32, push: bool, pages: &[(u32, Fingerprint)]) {
        self.control.send(
            &ToDestination::Offer {
                batch,
                push,
                pages: pages.iter().map(|(page, content)| (*page, self.namer.name(content))).collect(),
            }
            .encode(),
        );
    }

    fn data(&self, stage: &Stage) -> Line {
        Line::open(stage.there(), &self.id, "stream")
    }

    /// All that is said until the end; the last words.
    fn end(&mut self) -> String {
        loop {
            match self.control.hear_destination() {
                Ok(ToSource::Fail(why)) => return why,
                Ok(_) => {}
                Err(error) => return format!("closed without a word: {error}"),
            }
        }
    }
}

fn fingerprint(page: &[u8]) -> Fingerprint {
    Fingerprint::new(*blake3::hash(page).as_bytes())
}

fn page(seed: u8) -> Vec<u8> {
    vec![seed; PAGE_SIZE]
}

/// A block with one page.
fn block(batch: u32, codec: Codec, payload: &[u8]) -> Vec<u8> {
    let head = BlockHeader { batch, pages: 1, withdrawn: 0, codec, payload: payload.len() as u32 };
    [&head.encode()[..], &[0, 0], payload].concat()
}

/// A frame of zstd (RFC 8878) with a window of 1 MiB, made of these blocks.
fn zstd(blocks: &[u8]) -> Vec<u8> {
    [&[0x28, 0xb5, 0x2f, 0xfd, 0, 10 << 3], blocks].concat()
}

/// A block of it that is not the last: kind 0 is raw, kind 1 repeats a byte.
fn zstd_block(kind: u32, size: u32, bytes: &[u8]) -> Vec<u8> {
    [&(size << 3 | kind << 1).to_le_bytes()[..3], bytes].concat()
}

/// The digest of a VM of zeros.
fn zeros() -> [u8; 32] {
    let chunk = chunk_digest(&[ZERO; 512]);
    root(PAGES.into(), std::iter::repeat_n(&chunk, PAGES as usize / 512))
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Lies that take ten seconds and more: by themselves, beside the others.
const SLOW: [&str; 2] = ["a page that was never offered", "one byte a second"];
/// A name, what is done, and what has to be said about it.
type Told = (&'static str, fn(&Stage, &mut Lie), &'static str);

const LIES: [Told; 14] = [
    (
        "other bytes than it named",
        |stage, lie| {
            lie.offer(0, true, &[(7, fingerprint(&page(1)))]);
            lie.data(stage).send(&block(0, Codec::Plain, &page(2)));
        },
        "do not have the fingerprint",
    ),
    (
        "a page twice",
        |stage, lie| {
            lie.offer(0, true, &[(7, fingerprint(&page(1))), (9, fingerprint(&page(2)))]);
            let mut data = lie.data(stage);
            let twice = BlockHeader {
                batch: 0,
                pages: 2,
                withdrawn: 0,
                codec: Codec::Plain,
                payload: 2 * PAGE_SIZE as u32,
            };
            data.send(&[&twice.encode()[..], &[0, 0, 0, 0], &page(1), &page(1)].concat());
        },
        "not asked for",
    ),
    (
        "half of a block",
        |stage, lie| {
            lie.offer(0, true, &[(7, fingerprint(&page(1)))]);
            lie.data(stage).send(&block(0, Codec::Plain, &page(1))[..100]);
        },
        "in the midst of a block",
    ),
    (
        "a block that is no zstd",
        |stage, lie| {
            lie.offer(0, true, &[(7, fingerprint(&page(1)))]);
            lie.data(stage).send(&block(0, Codec::NewZstd, &page(1)));
        },
        "damaged",
    ),
    (
        "a block that announces too much",
        |stage, lie| {
            let mut bytes = block(0, Codec::Plain, &page(1));
            bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
            lie.data(stage).send(&bytes);
        },
        "more than a block may have",
    ),
    (
        "a page that was never offered",
        |stage, lie| {
            let mut data = lie.data(stage);
            data.send(&block(9, Codec::Plain, &page(1)));
            // It may be on its way, so it is waited for as long as the source lives.
            for _ in 0..12 {
                lie.control.send(&ToDestination::Ping.encode());
                std::thread::sleep(Duration::from_secs(1));
            }
        },
        "not offered",
    ),
    ("an endless frame", |_, lie| lie.control.send(&[255, 255, 255, 255, 2]), "at most"),
    (
        "a page beyond the end",
        |_, lie| lie.offer(0, false, &[(PAGES, fingerprint(&page(1)))]),
        "does not have",
    ),
    (
        "more offers than were agreed",
        |_, lie| {
            for batch in 0..3000 {
                lie.offer(batch, false, &[(batch, fingerprint(&batch.to_le_bytes()))]);
            }
        },
        "more at once",
    ),
    (
        "great offers, and nothing of them",
        |_, lie| {
            for batch in 0..40_u32 {
                let each = |at: u32| {
                    let name = fingerprint(&(batch * 10_000 + at).to_le_bytes());
                    ((batch * 64 + at) % PAGES, name)
                };
                let pages: Vec<_> = (0..MAX_OFFER as u32).map(each).collect();
                lie.offer(batch, true, &pages);
            }
        },
        "more at once",
    ),
    ("a wrong digest", |_, lie| lie.control.send(&ToDestination::Digest([9; 32]).encode()), "digests"),
    (
        "a hand-over without a guest",
        |_, lie| {
            lie.control.send(&ToDestination::Digest(zeros()).encode());
            lie.control.send(&ToDestination::HandOver { run: true }.encode());
        },
        "not been loaded",
    ),
    (
        "one byte a second",
        |_, lie| {
            for byte in ToDestination::Digest([1; 32]).encode().into_iter().take(14) {
                lie.control.send(&[byte]);
                std::thread::sleep(Duration::from_secs(1));
            }
        },
        "silent",
    ),
    ("nothing at all", |_, _| {}, "silent"),
];

#[test]
fn source_that_lies_is_told_so_and_nothing_is_left_of_it() {
    told_so("liar", |name| !SLOW.contains(&name));
}

#[test]
fn source_that_is_slow_as_tar_is_told_so_and_nothing_is_left_of_it() {
    told_so("tar", |name| SLOW.contains(&name));
}

fn told_so(stage: &str, which: fn(&str) -> bool) {
    let mut stage = Stage::new(stage, &CHECK);
    let waiting = stage.waiting();
    let at = 1 - stage.at;
    let pid = stage.hosts[at].process().pid();
    let before = resident(pid);
    let mut worst = 0;
    for (number, (name, tell, words)) in LIES.into_iter().filter(|lie| which(lie.0)).enumerate() {
        let begun = Instant::now();
        let mut lie = Lie::begin(&stage, &waiting, number);
        tell(&stage, &mut lie);
        let why = lie.end();
        worst = worst.max(resident(pid).saturating_sub(before));
        eprintln!("{name}: {why} ({:?})", begun.elapsed());
        assert!(why.contains(words), "{name}: {why}");
        assert!(begun.elapsed() < BOUND, "{name} took {:?}", begun.elapsed());
        drop(lie.control);
        let document = shown(stage.there(), &lie.id).expect("it is known");
        assert!(document["outcome"] != "completed" && document["reason"] == why, "{document}");
        stage.tidy();
    }
    eprintln!("at most {} MiB", worst >> 20);
    assert!(worst < MEMORY, "lies cost {worst} bytes");
    // The VM waits as before: an honest source can use it.
    let to = tcp(stage.there());
    let (report, code) = migrate(stage.here(), &stage.guest.name, &to, &waiting.name, &[]);
    assert_eq!(code, Some(0), "{report}");
    stage.moved_to(waiting);
    let checks = stage.checks;
    stage.guest.qemu.check_all(checks);
}

#[test]
fn device_state_that_is_none_ends_the_waiting_vmm_and_nothing_else() {
    let mut stage = Stage::new("liard", &CHECK);
    // Whole as a stream, and nothing that a QEMU could make anything of; no stream at all; and one that bursts.
    let block = zstd_block(0, 100_000, &[7; 100_000]);
    let bursting = zstd_block(1, 128 << 10, &[0]).repeat(1000);
    let told =
        [(zstd(&block), "QEMU"), (vec![7; 100_000], "damaged"), (zstd(&bursting), "damaged")].into_iter();
    for (number, (piece, words)) in told.enumerate() {
        let mut waiting = stage.waiting();
        let mut lie = Lie::begin(&stage, &waiting, number);
        lie.control.send(&ToDestination::Digest(zeros()).encode());
        lie.control.send(&ToDestination::PrepareDevice.encode());
        lie.control.send(&ToDestination::Device(piece).encode());
        lie.control.send(&ToDestination::DeviceEnd.encode());
        lie.control.send(&ToDestination::HandOver { run: true }.encode());
        let why = lie.end();
        eprintln!("{why}");
        assert!(why.contains(words), "{why}");
        waiting.qemu.wait_for_exit(BOUND);
        assert!(!waiting.has_run());
    }
    stage.tidy();
    stage.move_on();
}
