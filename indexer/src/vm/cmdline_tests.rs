use super::*;
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

fn parse(words: &[&str]) -> Options {
    parse_bytes(&words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>())
}

fn parse_bytes(words: &[&[u8]]) -> Options {
    let mut cmdline = b"qemu-system-x86_64\0".to_vec();
    for word in words {
        cmdline.extend_from_slice(word);
        cmdline.push(0);
    }
    Options::parse(&cmdline)
}

#[test]
fn a_plain_command_line() {
    let options = parse(&["-enable-kvm", "-m", "4G,slots=4,maxmem=16G", "-name", "web", "-S", "disk.img"]);
    assert_eq!(options.name.as_deref(), Some("web"));
    assert_eq!(options.accelerators, ["kvm"]);
    assert_eq!(options.memory, 4 * GIB);
    let main = Backend { id: String::new(), kind: BackendKind::Ram, size: 4 * GIB, share: false };
    assert_eq!(options.backends, [main]);
    assert_eq!(parse(&[]).memory, 128 << 20);
}

#[test]
fn a_command_line_of_libvirt() {
    let options = parse(&[
        "-name",
        "guest=web-1,debug-threads=on",
        "-S",
        "-object",
        r#"{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/x"}"#,
        "-machine",
        "pc-q35-8.2,usb=off,dump-guest-core=off,memory-backend=pc.ram,hpet=off,acpi=on",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-m",
        "size=4194304k",
        "-object",
        r#"{"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"/dev/shm/a,b","share":true,"x-use-canonical-path-for-ramblock-id":false,"size":4294967296}"#,
        "-uuid",
        "C7A5FDBD-EDAF-9455-926A-D65C16DB1809",
        "-no-user-config",
        "-nodefaults",
    ]);
    assert_eq!(options.name.as_deref(), Some("web-1"));
    assert_eq!(options.uuid.as_deref(), Some("c7a5fdbd-edaf-9455-926a-d65c16db1809"));
    assert_eq!(options.accelerators, ["kvm"]);
    let kind = BackendKind::File { path: PathBuf::from("/dev/shm/a,b"), offset: 0 };
    assert_eq!(options.backends, [Backend { id: "pc.ram".to_owned(), kind, size: 4 * GIB, share: true }]);
}

#[test]
fn main_memory_comes_first_and_shared_memory_devices_are_not_ram() {
    let options = parse(&[
        "-object",
        "memory-backend-ram,id=dimm,size=1G",
        "-object",
        "memory-backend-memfd,id=n1,size=2G",
        "-object",
        "memory-backend-file,id=n0,size=2G,share=on,mem-path=/dev/shm/n0",
        "-object",
        "memory-backend-file,id=iv,size=1M,share,mem-path=/dev/shm/iv",
        "-m",
        "4G",
        "-numa",
        "node,memdev=n0",
        "-numa",
        "node,memdev=n1",
        "-device",
        "pc-dimm,memdev=dimm",
        "-device",
        r#"{"driver":"ivshmem-plain","memdev":"iv"}"#,
    ]);
    let ids: Vec<&str> = options.backends.iter().map(|backend| backend.id.as_str()).collect();
    assert_eq!(ids, ["n0", "n1", "dimm"]);
    assert_eq!(options.backends.iter().map(|backend| backend.share).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(options.not_ram.len(), 1);
    assert!(options.not_ram[0].share);
}

#[test]
fn an_argument_that_looks_like_an_option_is_an_argument() {
    let options = parse(&["-append", "-name", "-name", "right", "-nographic", "-m", "1G"]);
    assert_eq!((options.name.as_deref(), options.memory), (Some("right"), GIB));
}

#[test]
fn doubled_commas_stand_for_one() {
    assert_eq!(parse(&["-name", "a,,b,process=x"]).name.as_deref(), Some("a,b"));
}

#[test]
fn accelerators_in_the_order_qemu_tries_them() {
    assert_eq!(parse(&["-machine", "q35,accel=kvm:tcg"]).accelerators, ["kvm", "tcg"]);
    assert_eq!(parse(&["-accel", "kvm", "--accel", "tcg,thread=multi"]).accelerators, ["kvm", "tcg"]);
    assert!(parse(&["-m", "1G"]).accelerators.is_empty());
}

#[test]
fn confidential_guests_are_recognised() {
    assert_eq!(parse(&["-object", "sev-guest,id=sev0,policy=1"]).confidential, Some("SEV"));
    assert_eq!(parse(&["-object", r#"{"qom-type":"tdx-guest","id":"t"}"#]).confidential, Some("TDX"));
}

#[test]
fn a_machine_without_memory_promises_none() {
    let options = parse(&["-S", "-M", "none,accel=kvm:tcg", "-qmp", "unix:/x,server=on"]);
    assert!(options.no_machine && options.backends.is_empty());
}

#[test]
fn names_of_the_malicious_are_harmless() {
    for (raw, clean) in [
        (&b"../../etc/passwd"[..], "___.._etc_passwd"),
        (b"a\nb\x1b[31m\0", "a_b__31m_"),
        (b"\xff\xfeweb", "__web"),
        (b"--help", "__help"),
        (b"<script>", "_script_"),
        ("gr\u{fc}n".as_bytes(), "gr\u{fc}n"),
        ("a\u{202e}b".as_bytes(), "a_b"),
        (b" padded ", "_padded"),
    ] {
        assert_eq!(clean_name(raw).as_deref(), Some(clean), "{}", raw.escape_ascii());
    }
    for raw in [&b""[..], b"..", b"/", b"   ", b"\xff", b"---"] {
        assert_eq!(clean_name(raw), None, "{}", raw.escape_ascii());
    }
    let long = clean_name(&b"\xc3\xa9".repeat(1 << 20)).unwrap();
    assert_eq!(long.chars().count(), 128);
}

#[test]
fn a_uuid_is_one_or_none() {
    for raw in [
        "",
        "x",
        "c7a5fdbd-edaf-9455-926a-d65c16db180",
        "c7a5fdbd-edaf-9455-926a-d65c16db18099",
        "../../../../../../../../../../../..",
    ] {
        assert_eq!(parse(&["-uuid", raw]).uuid, None, "{raw}");
    }
}

#[test]
fn megabytes_of_options_are_bounded_and_quick() {
    let start = std::time::Instant::now();
    let object = b"-object\0memory-backend-ram,id=a,size=1M\0";
    let options = Options::parse(&[&b"q\0"[..], &object.repeat((4 << 20) / object.len())].concat());
    assert!(options.backends.len() <= MAX_BACKENDS + 1);
    let commas = Options::parse(&[&b"q\0-name\0"[..], &b"a=b,".repeat(1 << 20)].concat());
    assert_eq!(commas.name, None);
    let _ = Options::parse(&[&b"q\0-object\0"[..], &b"{\"a\":[".repeat(1 << 18)].concat());
    assert!(start.elapsed().as_secs() < 5, "took {:?}", start.elapsed());
}

proptest! {
    #[test]
    fn garbage_never_panics_and_names_stay_clean(cmdline in proptest::collection::vec(any::<u8>(), 0..2048)) {
        check(&Options::parse(&cmdline))?;
    }

    #[test]
    fn garbage_in_known_options_never_panics(
        words in proptest::collection::vec((
            proptest::sample::select(vec!["-name", "-uuid", "-m", "-machine", "-accel", "-object", "-numa", "-device", "-mem-path", "--M"]),
            "(guest=|size=|memory-backend-(file|memfd|ram)[,]|\\{\"qom-type\":\"memory-backend-ram\",)?\\PC{0,40}",
        ), 0..16),
    ) {
        let words: Vec<&str> = words.iter().flat_map(|(option, value)| [*option, value.as_str()]).collect();
        check(&parse(&words))?;
    }

    #[test]
    fn a_decent_name_is_kept(name in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,60}[a-zA-Z0-9]") {
        prop_assert_eq!(clean_name(name.as_bytes()), Some(name));
    }
}

fn check(options: &Options) -> Result<(), TestCaseError> {
    if let Some(name) = &options.name {
        prop_assert!(!name.is_empty() && name.chars().count() <= MAX_NAME);
        prop_assert!(!name.starts_with(['.', '-', ' ']));
        prop_assert!(!name.contains(|letter: char| letter == '/' || letter == '\\' || letter.is_control()));
    }
    Ok(())
}
