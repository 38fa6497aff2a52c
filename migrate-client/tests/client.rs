//! The library against a host that answers properly, over all three kinds of address.
#![expect(clippy::unwrap_used, reason = "tests end where something is not as expected")]

mod peer;

use std::{sync::Arc, time::Duration};

use futures::TryStreamExt;
use memdex_wire::event::Event;
use migrate_client::{Client, ClientOptions, HostUrl, Token, limits};
use peer::good::{self, GoodHost, ODD_NAME, PAGES};

fn options(token: Option<&str>) -> ClientOptions {
    ClientOptions { token: token.map(|text| Token::new(text).unwrap()), ..ClientOptions::default() }
}

fn clients(host: &GoodHost) -> [Client; 2] {
    [
        Client::new(host.unix.clone(), options(None)).unwrap(),
        Client::new(host.tcp.clone(), options(Some(host.token))).unwrap(),
    ]
}

#[tokio::test]
async fn every_question_gets_its_answer() {
    let host = GoodHost::new();
    for client in clients(&host) {
        client.health().await.unwrap();
        let not_ready = client.ready().await.unwrap_err();
        assert!(not_ready.is_retryable(), "{not_ready}");

        assert_eq!(client.vms().await.unwrap().len(), 4);
        for key in ["id-1", "vm1", "101"] {
            assert_eq!(client.vm(key).await.unwrap().id, "id-1");
        }
        assert_eq!(client.vm(ODD_NAME).await.unwrap().id, "id-4");
        for nothing in ["nothing", "", ".", "..", "../../healthz", "id-1/pages"] {
            assert!(client.vm(nothing).await.unwrap_err().is_not_found(), "{nothing}");
        }
        assert!(client.vm("twin").await.unwrap_err().is_conflict());

        assert_eq!(client.sync("vm1", Duration::from_secs(3)).await.unwrap().generation, 4711);
        let late = client.sync("vm1", Duration::from_millis(1)).await.unwrap_err();
        assert!(late.is_retryable() && !late.is_unreachable(), "{late}");
        assert_eq!(client.diff("vm1", "tls://host-2:1").await.unwrap().to, "tls://host-2:1");
        let error = client.diff("vm1", "tls://unreachable:1").await.unwrap_err();
        assert!(error.is_unreachable() && error.is_retryable(), "{error}");
        assert_eq!(client.verify("vm1").await.unwrap().mismatches, 0);
    }
}

#[tokio::test]
async fn a_page_map_arrives_whole_and_with_offsets() {
    let host = GoodHost::new();
    for client in clients(&host) {
        let pages = client.pages("vm1", None).await.unwrap();
        assert_eq!((pages.generation(), pages.pages(), pages.records()), (4711, PAGES, PAGES));
        let records: Vec<_> = pages.into_stream().try_collect().await.unwrap();
        assert_eq!(records, (0..PAGES).map(good::page).collect::<Vec<_>>());

        let mut pages = client.pages("vm1", Some(2997)).await.unwrap();
        assert_eq!(pages.records(), 2);
        assert_eq!(pages.next().await.unwrap().unwrap(), good::page(2998));
        assert_eq!(pages.next().await.unwrap().unwrap(), good::page(2999));
        assert!(pages.next().await.is_none() && pages.next().await.is_none());
    }
}

#[tokio::test]
async fn a_lookup_of_any_length_is_answered_position_by_position() {
    let host = GoodHost::new();
    for client in clients(&host) {
        for length in [0, 1, limits::MAX_LOOKUP, limits::MAX_LOOKUP + 1, 5 * limits::MAX_LOOKUP + 7] {
            let asked: Vec<_> = (0..length as u64).map(good::content).collect();
            let held = client.lookup(&asked).await.unwrap();
            assert_eq!(held.len(), length.div_ceil(3) as u64);
            assert!(held.iter().all(|position| position % 3 == 0));
        }
    }
}

#[tokio::test]
async fn events_arrive_and_unknown_ones_are_passed_over() {
    let host = GoodHost::new();
    for client in clients(&host) {
        let events: Vec<_> = client.events().await.unwrap().into_stream().try_collect().await.unwrap();
        assert!(matches!(&events[..], [Event::VmGone { .. }, Event::Lagged { skipped: 3 }]), "{events:?}");
    }
}

#[tokio::test]
async fn without_the_right_token_nothing_is_told() {
    let host = GoodHost::new();
    for (token, advice) in [(None, "no token was sent"), (Some("wrong"), "not the one of that host")] {
        let error = Client::new(host.tcp.clone(), options(token)).unwrap().vms().await.unwrap_err();
        assert!(error.is_unauthorized() && !error.is_retryable());
        assert!(error.to_string().contains(advice) && !error.to_string().contains("wrong"), "{error}");
    }
}

#[test]
fn a_token_never_leaves_in_the_clear() {
    let remote: HostUrl = "tcp://198.51.100.1:7373".parse().unwrap();
    let error = Client::new(remote.clone(), options(Some("secret"))).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("use tls://"), "{error}");
    let client = Client::new("tls://198.51.100.1:7373".parse().unwrap(), options(Some("s3cret"))).unwrap();
    assert!(!format!("{client:?}").contains("s3cret"), "{client:?}");
    assert!(Client::new(remote, options(None)).is_ok());
}

#[tokio::test]
async fn tls_is_only_as_good_as_its_authority() {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, key.cert.pem()).unwrap();
    let url = serve_tls(&key).await;

    let trusting = ClientOptions { ca: Some(ca.clone()), ..options(Some("secret")) };
    assert_eq!(Client::new(url.clone(), trusting.clone()).unwrap().vms().await.unwrap().len(), 4);

    let error = Client::new(url.clone(), options(Some("secret"))).unwrap().vms().await.unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains("--ca FILE"), "{error}");

    // Another authority, no certificate at all, no file.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&ca, other.cert.pem()).unwrap();
    let error = Client::new(url.clone(), trusting.clone()).unwrap().vms().await.unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains("--ca FILE"), "{error}");
    std::fs::write(&ca, "no certificate").unwrap();
    assert!(Client::new(url.clone(), trusting.clone()).unwrap_err().to_string().contains("PEM"));
    std::fs::remove_file(&ca).unwrap();
    assert!(Client::new(url, trusting).unwrap_err().to_string().contains("PEM"));
}

async fn serve_tls(key: &rcgen::CertifiedKey<rcgen::KeyPair>) -> HostUrl {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], key.signing_key.serialize_der().try_into().unwrap())
        .unwrap();
    let listener = TlsListener {
        tcp: tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
        acceptor: Arc::new(config).into(),
    };
    let port = listener.tcp.local_addr().unwrap().port();
    tokio::spawn(async { axum::serve(listener, good::router()).await.unwrap() });
    format!("tls://127.0.0.1:{port}").parse().unwrap()
}

struct TlsListener {
    tcp: tokio::net::TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.tcp.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
