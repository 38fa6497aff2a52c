//! Who gets in: token on TCP and TLS, file mode and the guard against web pages on the Unix socket.

use std::fs;

use memdex_wire::problem::Code;
use migrate_client::{Client, ClientOptions, Token};
use reqwest::header;

use crate::support::{Served, at, problem};

#[tokio::test]
async fn tcp_wants_the_right_token_for_everything_but_health_and_the_empty_page() {
    let served = Served::start().await;
    let http = reqwest::Client::new();
    for path in [
        "/v1/vms",
        "/v1/events",
        "/metrics",
        "/openapi.json",
        "/docs/",
        "/nowhere",
        "/v1/vms/x/pages",
        "/healthz/",
    ] {
        let answer = http.get(served.tcp_url(path)).send().await.unwrap();
        assert_eq!(answer.headers()[header::WWW_AUTHENTICATE], "Bearer realm=\"memdex\"", "{path}");
        problem(answer, Code::Unauthorized).await;
    }
    for path in ["/", "/healthz", "/readyz"] {
        assert_eq!(http.get(served.tcp_url(path)).send().await.unwrap().status(), 200, "{path}");
        problem(http.post(served.tcp_url(path)).send().await.unwrap(), Code::Unauthorized).await;
    }
    for path in ["/v1/vms", "/metrics", "/openapi.json", "/docs/"] {
        let answer = http.get(served.tcp_url(path)).bearer_auth(&served.token).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn wrong_tokens_and_schemes_are_refused() {
    let served = Served::start().await;
    let http = reqwest::Client::new();
    let ask = |value: String| http.get(served.tcp_url("/v1/vms")).header(header::AUTHORIZATION, value).send();
    let token = &served.token;
    for wrong in [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        "Bearer x".to_owned(),
        token.clone(),
        format!("Bearer {}", &token[1..]),
        format!("Bearer {token}0"),
        format!("Bearer {token} {token}"),
        format!("Basic {token}"),
        format!("Bearer {}", token.to_uppercase()),
    ] {
        problem(ask(wrong).await.unwrap(), Code::Unauthorized).await;
    }
    assert_eq!(
        ask(format!("bearer {token}")).await.unwrap().status(),
        200,
        "the scheme's case does not matter"
    );
    let twice = http.get(served.tcp_url("/v1/vms")).header(header::AUTHORIZATION, format!("Bearer {token}"));
    let twice = twice.header(header::AUTHORIZATION, "Bearer other").send().await.unwrap();
    problem(twice, Code::Unauthorized).await;
}

#[tokio::test]
async fn the_token_is_not_taken_from_the_url() {
    let served = Served::start().await;
    let url = served.tcp_url(&format!("/v1/vms?token={0}&access_token={0}", served.token));
    problem(reqwest::get(url).await.unwrap(), Code::Unauthorized).await;
}

#[tokio::test]
async fn tls_serves_those_who_trust_the_certificate_and_have_the_token() {
    let served = Served::start().await;
    let url = || format!("tls://127.0.0.1:{}", served.tls).parse().unwrap();
    let ca = Some(served.folder.path().join("host.pem"));
    let token = Some(Token::new(&served.token).unwrap());
    let good = Client::new(
        url(),
        ClientOptions { token: token.clone(), ca: ca.clone(), ..ClientOptions::default() },
    );
    good.unwrap().vms().await.unwrap();
    let stranger = Client::new(url(), ClientOptions { ca, ..ClientOptions::default() }).unwrap();
    assert!(stranger.vms().await.unwrap_err().is_unauthorized());
    let distrust = Client::new(url(), ClientOptions { token, ..ClientOptions::default() }).unwrap();
    assert!(distrust.vms().await.unwrap_err().is_unreachable());
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_nothing() {
    let served = Served::start().await;
    assert!(reqwest::get(format!("http://127.0.0.1:{}/healthz", served.tls)).await.is_err());
}

#[tokio::test]
async fn the_unix_socket_needs_no_token_but_refuses_other_peoples_web_pages() {
    let served = Served::start().await;
    let http = served.unix();
    assert_eq!(http.get(at("/v1/vms")).send().await.unwrap().status(), 200);
    assert_eq!(http.get("http://memdex/v1/vms").send().await.unwrap().status(), 200);
    problem(http.get("http://rebound.example:8080/v1/vms").send().await.unwrap(), Code::Unauthorized).await;
    let foreign = http.get(at("/v1/vms")).header(header::ORIGIN, "http://evil.example").send().await.unwrap();
    problem(foreign, Code::Unauthorized).await;
    let own = http.get(at("/v1/vms")).header(header::ORIGIN, "http://localhost").send().await.unwrap();
    assert_eq!(own.status(), 200);
}

#[tokio::test]
async fn the_socket_is_not_for_other_users() {
    use std::os::unix::fs::PermissionsExt;
    let served = Served::start().await;
    assert_eq!(fs::metadata(served.socket()).unwrap().permissions().mode() & 0o777, 0o660);
}
