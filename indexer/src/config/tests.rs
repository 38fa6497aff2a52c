use super::*;

fn from_toml(text: &str) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memdexd.toml");
    fs::write(&path, text).unwrap();
    Config::load(Some(&path), Overrides::default())
}

#[test]
fn nothing_said_means_the_default_socket_and_half_the_cores() {
    let config = Config::load(None, Overrides::default()).unwrap();
    assert_eq!(config.listen, [HostUrl::default()]);
    assert_eq!(config.hash_threads, half_the_cores());
    assert!(!config.wants_token());
}

#[test]
fn the_example_file_is_understood_with_and_without_its_settings() {
    let example = include_str!("../../../dist/memdexd.toml");
    assert_eq!(from_toml(example).unwrap().listen, [HostUrl::default()]);
    let setting =
        |line: &'static str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
    let set = example.lines().map(setting).collect::<Vec<_>>().join("\n");
    let config = from_toml(&set).unwrap();
    assert_eq!((config.listen.len(), config.hash_threads, config.peers.len()), (2, 2, 1));
    assert!(config.tls.ca.is_some());
}

#[test]
fn a_full_file_is_understood() {
    let config = from_toml(
        r#"
        listen = ["unix:/run/a.sock", "tls://0.0.0.0:7373"]
        include = ["web-*"]
        exclude = ["web-test"]
        hash_threads = 3
        tick_ms = 20
        audit_percent = 2
        settle_seconds = 300
        guest_budget = 2.5
        witness = ["ebpf"]
        log = "debug"
        peer_picture_mib = 64
        [peer]
        host2 = "tls://host2.example:7373"
        [tls]
        certificate = "/etc/memdex/host.pem"
        key = "/etc/memdex/host.key"
        ca = "/etc/memdex/ca.pem"
        "#,
    )
    .unwrap();
    assert_eq!(config.listen.len(), 2);
    assert_eq!(config.peers["host2"].to_string(), "tls://host2.example:7373");
    assert_eq!((config.hash_threads, config.tick), (3, Duration::from_millis(20)));
    assert!((config.audit_percent - 2.0).abs() < 1e-9);
    assert!((config.guest_budget - 2.5).abs() < 1e-9);
    assert_eq!(config.settle, Duration::from_secs(300));
    assert_eq!(config.peer_picture_bytes, 64 << 20);
    assert!(matches!(
        from_toml("peer_picture_mib = 99999"),
        Err(ConfigError::Value { setting: "peer_picture_mib", .. })
    ));
    assert_eq!(config.witnesses, Witnesses { write_protect: false, ebpf: true });
    assert!(config.wants_token());
}

#[test]
fn the_command_line_wins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c");
    fs::write(&path, "listen=['unix:/a']\ninclude=['a']\nlog='info'\n[peer]\nx='unix:/x'\ny='unix:/y'\n")
        .unwrap();
    let over = Overrides {
        listen: vec!["unix:/b".into()],
        peer: vec!["x=unix:/z".into()],
        log: Some("trace".into()),
        ..Overrides::default()
    };
    let config = Config::load(Some(&path), over).unwrap();
    assert_eq!(config.listen[0].to_string(), "unix:/b");
    assert_eq!(config.include, ["a"]);
    assert_eq!(config.peers["x"].to_string(), "unix:/z");
    assert_eq!(config.peers["y"].to_string(), "unix:/y");
    assert_eq!(config.log.as_deref(), Some("trace"));
}

#[test]
fn every_mistake_names_the_key_and_the_remedy() {
    for (text, words) in [
        ("listne = []", "listne"),
        ("[tls]\ncertifcate = 'x'", "certifcate"),
        ("hash_threads = 'many'", "hash_threads"),
        ("hash_threads = 0", "hash_threads: 0 is not between"),
        ("tick_ms = 1", "tick_ms: 1 is not between"),
        ("audit_percent = 101", "audit_percent: 101 is not between"),
        ("audit_percent = nan", "audit_percent: NaN"),
        ("guest_budget = 0", "guest_budget: 0 is not between"),
        ("guest_budget = 101", "guest_budget: 101 is not between"),
        ("witness = ['magic']", "witness: \"magic\" is no witness"),
        ("settle_seconds = 86401", "settle_seconds: 86401 seconds is more"),
        ("listen = ['tcp://10.0.0.1:1']", "tls://"),
        ("listen = ['tcp://0.0.0.0:1']", "tls://"),
        ("listen = ['tls://10.0.0.1:1']", "certificate"),
        ("listen = ['unix:/a', 'unix:/a']", "twice"),
        ("listen = ['http://h:1']", "tcp://"),
        ("include = ['[']", "include"),
        ("[peer]\n'a b' = 'unix:/x'", "choose another"),
        ("[peer]\nb = 'tcp://10.0.0.1:7'", "tls://"),
        ("[migration]\nat_once = 0", "migration.at_once"),
        ("[migration]\nmax_bandwidth = 5", "migration.max_bandwidth"),
        ("[migration]\nkeep = 5", "keep"),
        ("listen = ", "configuration"),
    ] {
        let error = from_toml(text).unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
    let missing = Config::load(Some(Path::new("/nonexistent/x")), Overrides::default()).unwrap_err();
    assert!(missing.to_string().contains("--config"));
    let over = Overrides { peer: vec!["nope".into()], ..Overrides::default() };
    assert!(Config::load(None, over).unwrap_err().to_string().contains("NAME=URL"));
}
