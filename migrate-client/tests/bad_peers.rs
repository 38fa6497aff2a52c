//! The library against peers that are broken or hostile: every call ends in time with one clear sentence.
#![expect(clippy::unwrap_used, reason = "tests end where something is not as expected")]

mod peer;

use std::{
    future::Future,
    io, thread,
    time::{Duration, Instant},
};

use memdex_wire::bulk;
use migrate_client::{Client, ClientError, ClientOptions, HostUrl, Timeouts};
use peer::{Connection, Peer, good, hasty, ok, problem};

/// Asks over both ways. Nothing may take much longer than the time limits.
async fn both<T, F: Future<Output = Result<T, ClientError>>>(
    peer: &Peer,
    ask: impl Fn(Client) -> F,
) -> [ClientError; 2] {
    let [unix, tcp] = peer.clients();
    let started = Instant::now();
    let errors = [ask(unix).await.err().unwrap(), ask(tcp).await.err().unwrap()];
    assert!(started.elapsed() < Duration::from_secs(8), "took {:?}", started.elapsed());
    for error in &errors {
        let text = error.to_string();
        assert!(!text.contains("secret") && !text.contains(char::is_control), "{text:?}");
        assert!(text.len() < 2000, "{text}");
    }
    errors
}

async fn vms(client: Client) -> Result<(), ClientError> {
    client.vms().await.map(drop)
}

async fn all_pages(client: Client) -> Result<(), ClientError> {
    let mut pages = client.pages("vm1", None).await?;
    while let Some(page) = pages.next().await {
        page?;
    }
    assert!(pages.next().await.is_none());
    Ok(())
}

async fn lookup(client: Client) -> Result<(), ClientError> {
    client.lookup(&[good::content(1), good::content(2)]).await.map(drop)
}

async fn says(answer: impl Into<Vec<u8>>, word: &str) {
    let peer = Peer::says(answer);
    for error in both(&peer, vms).await {
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn answers_that_are_no_answers() {
    for garbage in [
        &b"\0\xff\xfe not http at all\r\n\r\n"[..],
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"220 mail.example ESMTP\r\n",
    ] {
        says(garbage, "before its answer was complete").await;
    }
    says("", "before its answer was complete").await;
    says("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n[", "complete")
        .await;
    says(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n[",
        "complete",
    )
    .await;
    says(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "complete",
    )
    .await;
    says("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[", "not the memdex protocol").await;
    says("HTTP/1.1 204 No Content\r\n\r\n", "status 204").await;
    says(ok("text/html", "<h1>It works!</h1>"), "media type").await;
    says(ok("application/jsonx", "[]"), "media type").await;
    says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", "media type").await;
    says(ok("application/json", "{}"), "not the memdex protocol").await;
    says(ok("application/json", "[".repeat(100_000)), "not the memdex protocol").await;
    says(ok("application/json", [0xff; 50]), "not the memdex protocol").await;
}

#[tokio::test]
async fn a_refusal_is_told_from_nonsense() {
    for (status, code) in [(404, "vm_not_found"), (410, "vm_gone")] {
        let peer = Peer::says(problem(status, code, "no such VM here: see GET /v1/vms"));
        for error in both(&peer, vms).await {
            assert!(error.is_not_found() && error.problem().is_some(), "{error}");
        }
    }
    for error in both(&Peer::says(problem(503, "made_in_the_future", "later")), vms).await {
        assert!(!error.is_not_found() && error.to_string().contains("later"), "{error}");
    }
    // A body that contradicts the status is not believed; a page of some web server is no "not found".
    for answer in
        [problem(404, "unauthorized", "x"), b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec()]
    {
        for error in both(&Peer::says(answer), vms).await {
            assert!(!error.is_conflict(), "{error}");
        }
    }
    let lie = String::from_utf8(problem(500, "vm_not_found", "x"))
        .unwrap()
        .replace("\"status\":500", "\"status\":404");
    for error in both(&Peer::says(lie), vms).await {
        assert!(!error.is_not_found() && error.to_string().contains("500"), "{error}");
    }
    let answer = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer\r\ncontent-length: 0\r\n\r\n";
    for error in both(&Peer::says(answer), vms).await {
        assert!(error.is_unauthorized() && error.to_string().contains("token"), "{error}");
    }
    let long = problem(500, "internal", &"x".repeat(1 << 20));
    for error in both(&Peer::says(long), vms).await {
        assert!(error.to_string().contains("500"), "{error}");
    }
    let steering = problem(500, "internal", "\\u001b[2J\\u0007 boo");
    for error in both(&Peer::says(steering), vms).await {
        assert!(error.to_string().contains("boo"), "{error}");
    }
}

#[tokio::test]
async fn redirects_are_never_followed() {
    let elsewhere = Peer::new(|_, _| panic!("somebody followed the redirect"));
    for status in [301, 302, 303, 307, 308] {
        let HostUrl::Tcp(to) = &elsewhere.tcp else { unreachable!() };
        let answer =
            format!("HTTP/1.1 {status} Moved\r\nlocation: http://{to}/v1/vms\r\ncontent-length: 0\r\n\r\n");
        for error in both(&Peer::says(answer), vms).await {
            assert!(
                error.to_string().contains("never followed") && error.to_string().contains(&to.to_string()),
                "{error}"
            );
        }
    }
}

fn endless(connection: &mut dyn Connection, piece: &[u8]) -> io::Result<()> {
    loop {
        connection.write_all(piece)?;
    }
}

/// Writes the start at once, then a byte now and then.
fn trickle(connection: &mut dyn Connection, start: &[u8], drop: &[u8]) -> io::Result<()> {
    connection.write_all(start)?;
    loop {
        thread::sleep(Duration::from_millis(30));
        connection.write_all(drop)?;
        connection.flush()?;
    }
}

#[tokio::test]
async fn endless_answers_end() {
    let announced = Peer::says(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n[",
    );
    let unannounced = Peer::new(|_, connection| {
        connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[")?;
        endless(connection, &[b' '; 65536])
    });
    let chunked = Peer::new(|_, connection| {
        connection.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
        )?;
        let chunk = [&b"10000\r\n"[..], &[b' '; 65536], b"\r\n"].concat();
        endless(connection, &chunk)
    });
    for (peer, what) in [(announced, "announced"), (unannounced, "unannounced"), (chunked, "chunked")] {
        // Time enough, so that it is the size that ends it.
        let timeouts = Timeouts { answer: Duration::from_secs(20), ..hasty() };
        for host in [&peer.unix, &peer.tcp] {
            let options = ClientOptions { timeouts: timeouts.clone(), ..ClientOptions::default() };
            let error = Client::new(host.clone(), options).unwrap().vms().await.unwrap_err();
            assert!(error.to_string().contains("larger than"), "{what}: {error}");
        }
    }
    let header = Peer::new(|_, connection| {
        connection.write_all(b"HTTP/1.1 200 OK\r\n")?;
        endless(
            connection,
            b"x-filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
        )
    });
    both(&header, vms).await;
    let informational = Peer::new(|_, connection| endless(connection, b"HTTP/1.1 102 Processing\r\n\r\n"));
    both(&informational, vms).await;
}

#[tokio::test]
async fn silence_and_trickling_end_in_time() {
    let silent = Peer::new(|_, _| {
        thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    for error in both(&silent, vms).await {
        assert!(error.is_unreachable() && error.is_retryable(), "{error}");
    }
    for error in both(&silent, |client| async move { client.verify("vm1").await }).await {
        assert!(!error.is_unreachable() && error.is_retryable(), "{error}");
    }
    let body = Peer::new(|_, connection| {
        trickle(connection, b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[", b" ")
    });
    let head = Peer::new(|_, connection| trickle(connection, b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"));
    for peer in [body, head] {
        for error in both(&peer, vms).await {
            assert!(error.is_retryable() && error.to_string().contains("within 400ms"), "{error}");
        }
    }
}

/// Answers the question for the VM properly and the one for its pages with these bytes.
fn pages_peer(answer: impl Fn(&mut dyn Connection) -> io::Result<()> + Send + Sync + 'static) -> Peer {
    let vm = serde_json::json!({
        "id": "id-1", "name": "vm1", "pid": 1, "vmm": "v", "accelerator": "kvm", "memory_bytes": 40960, "page_size": 4096,
        "generation": 1, "tracking": "exact", "witnesses": [], "pages": {"total": 10, "absent": 0, "zero": 0, "current": 10, "stale": 0},
        "coverage": [{"region": "ram", "first_page": 0, "pages": 10, "status": "exact"}],
        "indexed": {"done": 10, "total": 10}, "from_the_future": true,
    });
    Peer::new(move |asked, connection| {
        if asked.path().ends_with("/pages") {
            return answer(connection);
        }
        connection.write_all(&ok("application/json", vm.to_string()))
    })
}

fn map(pages: u64, records: u64) -> Vec<u8> {
    bulk::PagesHeader { generation: 1, pages, records }.encode().to_vec()
}

#[tokio::test]
async fn page_maps_that_lie() {
    let whole: Vec<_> = (0..10).fold(map(10, 10), |mut body, n| {
        bulk::encode_page(&good::page(n), &mut body);
        body
    });
    let record = &whole[32..88];
    for (body, word) in [
        (vec![], "ends within its header"),
        (b"<html>".repeat(50), "not a page map"),
        (map(u64::MAX, 1), "at most"),
        (map(10, 11), "11 records for 10 pages"),
        (map(9, 9), "layout changed"),
        (map(10, 10), "0 records of the 10"),
        (whole[..100].to_vec(), "1 records of the 10"),
        ([&whole, record].concat(), "more than the 10"),
        ([&map(10, 2), record, record].concat(), "out of order"),
    ] {
        let answer = ok(bulk::PAGES, body);
        for error in both(&pages_peer(move |c| c.write_all(&answer)), all_pages).await {
            assert!(error.to_string().contains(word), "{error} / {word}");
            assert_eq!(error.is_retryable(), word == "layout changed");
        }
    }
    let cut = ok(bulk::PAGES, &whole)[..330].to_vec();
    for error in both(&pages_peer(move |c| c.write_all(&cut)), all_pages).await {
        assert!(error.is_retryable() && error.to_string().contains("ended the connection"), "{error}");
    }
    let json = ok("application/json", "[]");
    for error in both(&pages_peer(move |c| c.write_all(&json)), all_pages).await {
        assert!(error.to_string().contains("media type"), "{error}");
    }
    let start =
        [format!("HTTP/1.1 200 OK\r\ncontent-type: {}\r\n\r\n", bulk::PAGES).as_bytes(), &map(10, 10)]
            .concat();
    let hang = start.clone();
    let hanging = pages_peer(move |c| {
        c.write_all(&hang)?;
        thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    // Each byte comes in time, all of them together do not.
    let trickling = pages_peer(move |c| trickle(c, &start, &[0]));
    for peer in [hanging, trickling] {
        for error in both(&peer, all_pages).await {
            assert!(error.is_retryable() && error.to_string().contains("page map"), "{error}");
        }
    }
}

#[tokio::test]
async fn lookups_that_lie() {
    let held = [0u32].into_iter().collect();
    let damaged = [bulk::encode_bitmap(2, &held), vec![0]].concat();
    let outside = bulk::encode_bitmap(2, &[2u32].into_iter().collect());
    for (body, word) in [
        (vec![], "not a bitmap"),
        (bulk::encode_bitmap(3, &held), "damaged"),
        (damaged, "damaged"),
        (outside, "damaged"),
        (vec![b'x'; bulk::MAX_BITMAP_BYTES + 1], "larger than"),
    ] {
        for error in both(&Peer::says(ok(bulk::BITMAP, body)), lookup).await {
            assert!(error.to_string().contains(word), "{error}");
        }
    }
    both(&Peer::says(ok("application/octet-stream", bulk::encode_bitmap(2, &held))), lookup).await;
}

#[tokio::test]
async fn event_streams_that_lie() {
    async fn drain(client: Client) -> Result<(), ClientError> {
        let mut events = client.events().await?;
        while let Some(event) = events.next().await {
            event?;
        }
        Ok(())
    }
    const START: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    for (piece, word) in [
        (&[b'x'; 4096][..], "larger than"),
        (b"data: x\n", "larger than"),
        (b"data: oops\n\n", "not the JSON"),
        (b"data: 7\n\n", "not the JSON"),
    ] {
        let peer = Peer::new(move |_, c| {
            c.write_all(START)?;
            endless(c, piece)
        });
        for error in both(&peer, drain).await {
            assert!(error.to_string().contains(word), "{error}");
        }
    }
    let silent = Peer::new(|_, c| {
        c.write_all(START)?;
        thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    for error in both(&silent, drain).await {
        assert!(error.is_retryable() && error.to_string().contains("sign of life"), "{error}");
    }
}

#[tokio::test]
async fn nobody_there_is_unreachable_with_advice() {
    let (_folder, path) = peer::nobody();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = tempfile::NamedTempFile::new().unwrap();
    let missing = path.with_file_name("missing.sock");
    for host in [
        HostUrl::Unix(path),
        HostUrl::Unix(missing),
        HostUrl::Unix(file.path().to_owned()),
        format!("tcp://127.0.0.1:{port}").parse().unwrap(),
        format!("tls://127.0.0.1:{port}").parse().unwrap(),
        "tls://no-such-host.invalid:1".parse().unwrap(),
    ] {
        let options = ClientOptions { timeouts: hasty(), ..ClientOptions::default() };
        let error = Client::new(host.clone(), options).unwrap().vms().await.unwrap_err();
        assert!(error.is_unreachable() && error.is_retryable(), "{error}");
        assert!(error.to_string().contains(&host.to_string()), "{error}");
    }
    // Something that does not speak TLS.
    let plain = Peer::says("HTTP/1.1 400 Bad Request\r\n\r\n");
    let url = plain.tcp.to_string().replace("tcp:", "tls:").parse().unwrap();
    let options = ClientOptions { timeouts: hasty(), ..ClientOptions::default() };
    let error = Client::new(url, options).unwrap().vms().await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
}
