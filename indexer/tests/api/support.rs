//! A served host on Unix socket, TCP and TLS; a VM whose memory is known; HTTP written by hand where it must be bad.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Once, OnceLock},
    time::{Duration, Instant},
};

use indexer::{
    api::{self, ApiState},
    config::TlsFiles,
    host::{Host, HostOptions},
    listen::{AccessToken, Listener, Server},
    migrate::{MigrationOptions, Migrations},
    peer::Peers,
    vm::filter::NameFilter,
};
use memdex_wire::problem::{Code, Problem};
use migrate_client::Token;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// One host for all tests of this process: it sees the VMs they start, and no others.
pub(crate) fn host() -> Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let filter = NameFilter::new(&[format!("{}*", prefix())], &[]).unwrap();
        Host::start(HostOptions { filter, ..HostOptions::default() }).unwrap()
    })
    .clone()
}

pub(crate) fn prefix() -> String {
    format!("api-test-{}-", std::process::id())
}

/// A served interface; everything ends when it is dropped.
pub(crate) struct Served {
    pub(crate) folder: TempDir,
    pub(crate) token: String,
    pub(crate) tcp: u16,
    pub(crate) tls: u16,
    pub(crate) stop: CancellationToken,
    pub(crate) server: Option<Server>,
}

impl Served {
    pub(crate) async fn start() -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let folder = tempfile::tempdir().unwrap();
        let files = certificate(folder.path());
        let token = AccessToken::load_or_create(&folder.path().join("token")).unwrap();
        let stop = CancellationToken::new();
        let ours = Token::new(token.expose()).unwrap();
        let peers = [(
            "far".to_owned(),
            format!("unix:{}", folder.path().join("far.sock").display()).parse().unwrap(),
        )];
        let peers = Arc::new(Peers::new(peers.into(), Some(ours), files.ca.clone(), 0));
        let options =
            MigrationOptions { at_once: 1, max_bandwidth: None, journal: folder.path().join("journal") };
        let migrations = Migrations::new(host(), Arc::clone(&peers), &options, stop.clone());
        let state = ApiState::new(host(), peers, migrations, Some(token.clone()), stop.clone());
        let server_counters = state.figures();
        let server = Server::new(api::router(state).0, server_counters, stop.clone());
        let (tcp, tls) = (free_port(), free_port());
        for url in [
            format!("unix:{}", folder.path().join("d.sock").display()),
            format!("tcp://127.0.0.1:{tcp}"),
            format!("tls://127.0.0.1:{tls}"),
        ] {
            server.serve(Listener::bind(&url.parse().unwrap(), &files).await.unwrap());
        }
        Self { token: token.expose().to_owned(), folder, tcp, tls, stop, server: Some(server) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("d.sock")
    }

    /// A client of the Unix socket.
    pub(crate) fn unix(&self) -> reqwest::Client {
        reqwest::Client::builder().unix_socket(self.socket()).build().unwrap()
    }

    pub(crate) fn tcp_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.tcp)
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Ends it, and says how long that took.
    pub(crate) async fn finish(&mut self) -> Duration {
        let start = Instant::now();
        self.stop.cancel();
        self.server.take().unwrap().finish(Duration::from_secs(3)).await;
        start.elapsed()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The URL of a path on the Unix socket.
pub(crate) fn at(path: &str) -> String {
    format!("http://localhost{path}")
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A certificate for 127.0.0.1 that vouches for itself.
pub(crate) fn certificate(folder: &Path) -> TlsFiles {
    let made =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (folder.join("host.pem"), folder.join("host.key"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    TlsFiles { ca: Some(certificate.clone()), certificate: Some(certificate), key: Some(key) }
}

/// The problem in an answer; fails if it is not a complete and consistent one.
pub(crate) async fn problem(answer: reqwest::Response, code: Code) -> Problem {
    let status = answer.status().as_u16();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let text = answer.text().await.unwrap();
    let problem: Problem = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!((problem.code, problem.status, status), (code, code.status(), code.status()), "{text}");
    assert_eq!(problem.kind, "about:blank");
    assert!(problem.detail.len() > 20, "{text}");
    problem
}

/// Sends bytes as they are and returns everything that comes back until the end.
pub(crate) fn raw(served: &Served, request: &[u8]) -> String {
    let mut stream = served.connect();
    // A server that has seen enough may close before it has read everything.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A QEMU that never runs its guest: its memory is what its RAM file holds.
pub(crate) struct Vm {
    qemu: Child,
    pub(crate) name: String,
    path: PathBuf,
    file: File,
}

impl Vm {
    /// `pages[i]` fills page i with that byte; the rest of the 16 MiB was never touched.
    pub(crate) fn start(label: &str, pages: &[u8]) -> Self {
        let name = format!("{}{label}", prefix());
        let path = PathBuf::from(format!("/dev/shm/{name}"));
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(16 << 20).unwrap();
        for byte in pages {
            file.write_all(&[*byte; 4096]).unwrap();
        }
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-S", "-name", &name, "-m", "16", "-display", "none", "-nodefaults", "-machine"])
            .args(["q35,memory-backend=ram,accel=tcg", "-object"])
            .arg(format!("memory-backend-file,id=ram,size=16M,mem-path={},share=on", path.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 is installed by cargo xtask setup");
        let vm = Self { qemu, name, path, file };
        vm.wait_until_indexed();
        vm
    }

    fn wait_until_indexed(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(vm) = host().find(&self.name)
                && vm.snapshot().counts().stale == 0
            {
                return;
            }
            assert!(Instant::now() < end, "{} was not indexed in time", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.qemu.id()
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }

    /// Writes a page of the RAM file, so that no witness sees it.
    pub(crate) fn write(&mut self, page: u64, bytes: &[u8; 4096]) {
        self.file.seek(SeekFrom::Start(page * 4096)).unwrap();
        self.file.write_all(bytes).unwrap();
    }

    /// What a page holds in the RAM file.
    pub(crate) fn page(&mut self, page: u64) -> [u8; 4096] {
        let mut bytes = [0; 4096];
        self.file.seek(SeekFrom::Start(page * 4096)).unwrap();
        self.file.read_exact(&mut bytes).unwrap();
        bytes
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_file(&self.path);
    }
}
