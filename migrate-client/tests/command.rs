//! The `memdex` command as a program: what it prints, where, and how it exits.
#![expect(clippy::unwrap_used, reason = "tests end where something is not as expected")]

mod peer;

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use memdex_wire::{bulk, page::PageRecord, vm::VmInfo};
use peer::{
    Peer,
    command::{done, memdex, run, told},
    good::{self, GoodHost, ODD_NAME, PAGES},
    ok, problem,
};
use serde_json::Value;

#[test]
fn vms_as_table_json_and_lines() {
    let host = GoodHost::new();
    let (code, table, talk) = run(&host.unix, &["vms"]);
    assert_eq!(code, 0);
    for word in [
        "NAME",
        "vm1",
        "id-1",
        "101",
        "qemu-system-x86_64/kvm",
        "11.7 MiB",
        "exact",
        "25.0 %",
        "indexing 41.1 %",
    ] {
        assert!(table.contains(word), "{word}: {table}");
    }
    assert!(talk.contains("advisory: another process"), "{talk}");
    // A VM's name cannot steer the terminal.
    assert!(!table.contains('\u{1b}') && !talk.contains('\u{1b}'));

    let all: Vec<VmInfo> = serde_json::from_str(&done(&host.unix, &["vms", "-o", "json"])).unwrap();
    assert_eq!(all.len(), 4);
    let lines = done(&host.unix, &["-o", "jsonl", "vms"]);
    let each: Vec<VmInfo> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(each, all);
    let document: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    for field in [
        "id",
        "name",
        "pid",
        "vmm",
        "accelerator",
        "memory_bytes",
        "page_size",
        "generation",
        "tracking",
        "witnesses",
        "coverage",
        "pages",
    ] {
        assert!(document.get(field).is_some(), "{field}");
    }
}

#[test]
fn pages_as_summary_array_and_lines() {
    let host = GoodHost::new();
    let summary = done(&host.unix, &["pages", "vm1"]);
    for word in
        ["3,000 pages", "generation 4711", "/dev/shm/ram0", "anonymous", "250 (25.0 %)", "a sign: 3 pages"]
    {
        assert!(summary.contains(word), "{word}: {summary}");
    }
    let expected: Vec<_> = (0..PAGES).map(good::page).collect();
    let array: Vec<PageRecord> =
        serde_json::from_str(&done(&host.unix, &["pages", "vm1", "-o", "json"])).unwrap();
    assert_eq!(array, expected);
    let lines = done(&host.unix, &["pages", ODD_NAME, "-o", "jsonl"]);
    let each: Vec<PageRecord> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(each, expected);
    assert_eq!(
        lines.lines().nth(7).unwrap(),
        format!(
            r#"{{"page":7,"region":0,"offset":28672,"state":"current","fingerprint":"{}","generation":7}}"#,
            good::content(7)
        )
    );
    assert!(lines.lines().nth(1).unwrap().contains(r#""state":"absent","fingerprint":null"#));

    let since: Value =
        serde_json::from_str(&done(&host.unix, &["pages", "vm1", "--since", "2998", "-o", "json"])).unwrap();
    assert_eq!(since.as_array().unwrap().len(), 1);
    let none: Value =
        serde_json::from_str(&done(&host.unix, &["pages", "vm1", "--since", "3000", "-o", "json"])).unwrap();
    assert!(none.as_array().unwrap().is_empty());
    assert!(
        done(&host.unix, &["pages", "vm1", "--since", "2998"]).contains("1 of 3,000 pages changed after")
    );
}

#[test]
fn sync_prints_the_generation_and_only_that() {
    let host = GoodHost::new();
    let (code, out, talk) = run(&host.unix, &["sync", "vm1", "--timeout", "5s"]);
    assert_eq!((code, out.as_str()), (0, "4711\n"));
    assert!(talk.contains("3,000 pages known"), "{talk}");
    let (code, out, progress) = run(&host.unix, &["sync", "vm1", "-o", "json", "--progress", "json"]);
    assert_eq!(code, 0);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["generation"], 4711);
    let lines: Vec<Value> = progress.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() >= 2, "{progress}");
    assert!(
        lines.iter().all(|line| line["command"] == "sync" && line["vm"] == "vm1" && line["total"] == PAGES)
    );
    assert_eq!(lines.last().unwrap()["done"], PAGES);

    let (code, out, error) = run(&host.unix, &["sync", "vm1", "--timeout", "1ms"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(error.contains("give it more time"), "{error}");
}

#[test]
fn diff_says_what_is_new_and_what_is_there_already() {
    let host = GoodHost::new();
    let text = done(&host.unix, &["diff", "vm1", "--to", "tls://host-2:7373"]);
    for word in
        ["300 new, 600 already there, 2,000 zero: 86.7 % saved", "1.2 MiB", "generation 4711", "1.5 ms"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    let diff: Value =
        serde_json::from_str(&done(&host.unix, &["diff", "vm1", "--to", "tls://host-2:7373", "-o", "json"]))
            .unwrap();
    assert!(done(&host.unix, &["diff", "vm1", "--to", "rack-2_b"]).contains("vm1 to rack-2_b"));
    for part in ["pages", "bytes"] {
        let of = |key: &str| diff[part][key].as_u64().unwrap();
        assert_eq!(of("zero") + of("matched") + of("missing") + of("stale"), of("total"));
    }
    assert_eq!(
        (&diff["vm"], &diff["to"], &diff["elapsed_us"]),
        (&"id-1".into(), &"tls://host-2:7373".into(), &1500.into())
    );
}

#[test]
fn verify_exits_with_1_if_a_page_differs() {
    let host = GoodHost::new();
    assert!(done(&host.unix, &["verify", "vm1"]).contains("2,000 pages checked, 10 passed over"));
    for format in ["table", "json"] {
        let (code, out, error) = run(&host.unix, &["verify", "id-4", "-o", format]);
        assert_eq!(code, 1);
        assert!(error.contains("1 pages differ"), "{error}");
        assert!(out.contains("mismatches"), "{out}");
    }
}

#[test]
fn top_without_a_terminal_prints_lines() {
    let host = GoodHost::new();
    let text = done(&host.unix, &["top", "--count", "2", "--interval", "100ms"]);
    assert_eq!(text.lines().count(), 8, "{text}");
    assert!(text.contains("vm1 generation 4711 current 750"), "{text}");
    let lines = done(&host.unix, &["top", "-n", "1", "-o", "jsonl"]);
    for line in lines.lines() {
        let sample: Value = serde_json::from_str(line).unwrap();
        assert!(sample["at_ms"].is_u64() && sample["pages"]["total"] == PAGES);
    }
    assert_eq!(run(&host.unix, &["top", "-o", "json"]).0, 2);
}

#[test]
fn every_failure_has_its_exit_code_and_one_sentence() {
    let host = GoodHost::new();
    let (_folder, nobody) = peer::nobody();
    let nobody = format!("unix:{}", nobody.display());
    let unix = host.unix.to_string();
    let nonsense = Peer::says("nonsense\r\n\r\n");
    let garbage = nonsense.unix.to_string();
    for (code, host, arguments) in [
        (1, &garbage, &["vms"][..]),
        (2, &unix, &[]),
        (2, &unix, &["vmz"]),
        (2, &unix, &["vms", "--output", "xml"]),
        (2, &unix, &["vms", "--host", "host:1"]),
        (2, &unix, &["pages"]),
        (2, &unix, &["pages", "vm1", "--since", "-1"]),
        (2, &unix, &["sync", "vm1", "--timeout", "soon"]),
        (2, &unix, &["sync", "vm1", "--timeout", "0s"]),
        (2, &unix, &["sync", "vm1", "--timeout", "11m"]),
        (2, &unix, &["diff", "vm1"]),
        (2, &unix, &["diff", "vm1", "--to", "http://h:1"]),
        (2, &unix, &["diff", "vm1", "--to", "host-2:7373"]),
        (2, &unix, &["diff", "vm1", "--to", ""]),
        (2, &unix, &["top", "--interval", "1ms"]),
        (3, &unix, &["pages", "nothing"]),
        (3, &unix, &["sync", "nothing"]),
        (3, &unix, &["verify", ".."]),
        (4, &nobody, &["vms"]),
        (4, &nobody, &["top"]),
        (4, &unix, &["diff", "vm1", "--to", "tls://unreachable:1"]),
        (5, &unix, &["diff", "twin", "--to", "tls://h:1"]),
    ] {
        let (actual, out, error) = run(host, arguments);
        assert_eq!((actual, out.as_str()), (code, ""), "{arguments:?}: {error}");
        assert!(!error.is_empty() && !error.contains("panicked"), "{error}");
        if code != 2 {
            assert!(error.starts_with("memdex: ") && error.lines().count() == 1, "{error}");
        }
    }
    for help in [
        &["--help"][..],
        &["-h"],
        &["help", "pages"],
        &["vms", "-h"],
        &["top", "--help"],
        &["migrate", "-h"],
        &["migrate", "--help"],
        &["plan", "--help"],
        &["migrations", "-h"],
        &["abort", "-h"],
        &["--version"],
    ] {
        let (code, out, _) = run(&unix, help);
        assert_eq!(code, 0);
        assert!(help == ["--version"] || out.contains("Examples:"), "{out}");
    }
}

#[test]
fn a_token_opens_tcp_and_its_absence_is_explained() {
    let host = GoodHost::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let with_token = |proxy: &str| {
        let proxies = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, proxy));
        let output =
            memdex(&host.tcp).arg("vms").env("MEMDEX_TOKEN_FILE", file.path()).envs(proxies).output();
        told(&output.unwrap())
    };
    std::fs::write(file.path(), format!("{}\n", host.token)).unwrap();
    assert_eq!(with_token("").0, 0);
    // A proxy in the environment would see the token.
    assert_eq!(with_token("http://127.0.0.1:1").0, 0);
    for content in ["wrong", ""] {
        std::fs::write(file.path(), content).unwrap();
        let (code, _, error) = with_token("");
        assert_eq!(code, 1);
        assert!(error.contains("token"), "{error}");
    }
    let remote =
        memdex(&"tcp://198.51.100.1:1").arg("vms").env("MEMDEX_TOKEN_FILE", file.path()).output().unwrap();
    assert_eq!(told(&remote).0, 1, "an empty token file is found first");
    std::fs::write(file.path(), host.token).unwrap();
    let remote =
        memdex(&"tcp://198.51.100.1:1").arg("vms").env("MEMDEX_TOKEN_FILE", file.path()).output().unwrap();
    let (code, _, error) = told(&remote);
    assert!(code == 2 && error.contains("tls://"), "{error}");
}

#[test]
fn bad_peers_end_the_command_not_the_terminal() {
    for (answer, code) in [
        (problem(404, "vm_not_found", "none"), 3),
        (problem(409, "vm_ambiguous", "several"), 5),
        (problem(500, "internal", "\\u001b[2J broken"), 1),
        (ok("application/json", "[]x"), 1),
    ] {
        let peer = Peer::says(answer);
        let (actual, out, error) = run(&peer.unix, &["vms"]);
        assert_eq!((actual, out.as_str()), (code, ""), "{error}");
        assert!(!error.contains('\u{1b}'));
    }
}

/// Answers everything about one VM with very many pages, as fast as it is read.
fn huge() -> Peer {
    const HUGE: u64 = 1 << 31;
    let vm = format!(
        r#"{{"id":"id-1","name":"vm1","pid":1,"vmm":"v","accelerator":"kvm","memory_bytes":{0},"page_size":4096,"generation":1,
        "tracking":"exact","witnesses":[],"pages":{{"total":{1},"absent":0,"zero":0,"current":{1},"stale":0}},
        "coverage":[{{"region":"ram","first_page":0,"pages":{1},"status":"exact"}}],"indexed":{{"done":{1},"total":{1}}}}}"#,
        HUGE * 4096,
        HUGE
    );
    Peer::new(move |asked, connection| {
        if !asked.path().ends_with("/pages") {
            return connection.write_all(&ok("application/json", &vm));
        }
        let length = 32 + 56 * HUGE;
        write!(
            connection,
            "HTTP/1.1 200 OK\r\ncontent-type: {}\r\ncontent-length: {length}\r\n\r\n",
            bulk::PAGES
        )?;
        connection.write_all(&bulk::PagesHeader { generation: 1, pages: HUGE, records: HUGE }.encode())?;
        for first in (0..HUGE).step_by(1024) {
            let mut piece = Vec::new();
            for page in first..first + 1024 {
                bulk::encode_page(&PageRecord { page, region: 0, ..good::page(3) }, &mut piece);
            }
            connection.write_all(&piece)?;
        }
        Ok(())
    })
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_huge_map_is_streamed_and_a_closed_pipe_is_no_failure() {
    let peer = huge();
    let mut child = memdex(&peer.unix)
        .args(["pages", "vm1", "-o", "jsonl"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for page in 0..100_000u64 {
        let record: PageRecord = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!((record.page, record.offset), (page, page * 4096));
    }
    assert!(resident_kib(child.id()) < 64 << 10, "{} KiB", resident_kib(child.id()));
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut talk = String::new();
    child.stderr.unwrap().read_to_string(&mut talk).unwrap();
    assert_eq!(talk, "");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let host = GoodHost::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = memdex(&host.unix).arg("vms").stdout(full).stderr(Stdio::piped()).output().unwrap();
    let (code, _, error) = told(&output);
    assert!(code == 1 && error.contains("No space left"), "{code} {error}");
}

#[test]
fn an_interrupt_ends_it_at_once_with_130() {
    let silent = Peer::new(|_, _| {
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    // Waiting for a host, and stuck in a pipe that nobody reads.
    for (peer, arguments) in [(silent, &["verify", "vm1"][..]), (huge(), &["pages", "vm1", "-o", "jsonl"])] {
        for signal in ["-INT", "-TERM"] {
            let mut child = memdex(&peer.unix).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(700));
            let started = Instant::now();
            assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
            assert_eq!(child.wait().unwrap().code(), Some(130));
            assert!(started.elapsed() < Duration::from_secs(2));
        }
    }
}
