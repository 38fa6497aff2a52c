//! One connection pool to one host: sends a request, judges the answer, reads its body within bounds.
//!
//! Owns everything that is true of all requests: TLS, token, time limits, status, media type, size. Never knows what a
//! resource means.

use std::{fs, future::Future, io::Read, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use memdex_wire::problem::{self, Problem};
use reqwest::{
    RequestBuilder, Response,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, pem::PemObject},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use crate::{ClientError, ClientOptions, HostUrl, error::Kind, limits};

/// Media type of JSON answers.
pub(crate) const JSON: &str = "application/json";

#[derive(Debug)]
pub(crate) struct Transport {
    http: reqwest::Client,
    base: String,
    pub(crate) host: HostUrl,
    token_sent: bool,
    pub(crate) timeouts: limits::Timeouts,
}

/// How long a request may take, and what to say if it takes longer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    at: Instant,
    after: Duration,
    /// Name of long work; `None` for questions that need none.
    work: Option<&'static str>,
}

impl Deadline {
    pub(crate) fn answer(after: Duration) -> Self {
        Self { at: soon(after), after, work: None }
    }

    pub(crate) fn work(what: &'static str, after: Duration) -> Self {
        Self { at: soon(after), after, work: Some(what) }
    }
}

/// An instant so far away that it never comes does no harm; one that overflows would panic.
fn soon(after: Duration) -> Instant {
    Instant::now() + after.min(Duration::from_secs(30 * 24 * 3600))
}

impl Transport {
    pub(crate) fn new(host: HostUrl, options: ClientOptions) -> Result<Self, ClientError> {
        let mut headers = HeaderMap::new();
        let token_sent = options.token.is_some();
        if let Some(token) = &options.token {
            if matches!(host, HostUrl::Tcp(_)) && !host.is_local() {
                return Err(ClientError::new(Kind::Options {
                    why: format!(
                        "{host} would send the token over the network in the clear: use tls:// for hosts other than this one"
                    ),
                }));
            }
            headers.insert(AUTHORIZATION, token.header());
        }
        let builder = reqwest::Client::builder()
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .http1_only()
            .tcp_nodelay(true)
            .user_agent(concat!("memdex/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.timeouts.connect);
        let (builder, base) = match &host {
            HostUrl::Unix(path) => {
                let builder = builder
                    .unix_socket(path.as_path())
                    .tls_backend_preconfigured(tls(RootCertStore::empty())?);
                (builder, "http://localhost".to_owned())
            }
            HostUrl::Tcp(authority) => (
                builder.tls_backend_preconfigured(tls(RootCertStore::empty())?),
                format!("http://{authority}"),
            ),
            HostUrl::Tls(authority) => {
                let builder = match &options.ca {
                    Some(path) => builder.tls_backend_preconfigured(tls(authorities(path)?)?),
                    None => {
                        // The system's own verifier asks for the process's default; one that is set already stays.
                        if CryptoProvider::get_default().is_none() {
                            let _ = ring::default_provider().install_default();
                        }
                        builder
                    }
                };
                (builder.https_only(true), format!("https://{authority}"))
            }
        };
        let http = builder.build().map_err(|error| ClientError::http(&host, &error))?;
        Ok(Self { http, base, host, token_sent, timeouts: options.timeouts })
    }

    /// A GET of `path`, which is encoded already.
    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.base))
    }

    /// A POST to `path`, which is encoded already.
    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.base))
    }

    /// Sends, and takes only status 200 with the media type asked for.
    pub(crate) async fn send(
        &self,
        request: RequestBuilder,
        media_type: &'static str,
        deadline: Deadline,
    ) -> Result<Response, ClientError> {
        let response = self.exchange(request.header(ACCEPT, media_type), deadline).await?;
        if response.status().as_u16() != 200 {
            return Err(self.refusal(response, deadline).await);
        }
        let actual = essence(&response);
        if actual != media_type {
            return Err(ClientError::protocol(
                &self.host,
                format!("its media type is {actual:?}, not {media_type}"),
            ));
        }
        Ok(response)
    }

    /// Sends, and takes any status.
    pub(crate) async fn exchange(
        &self,
        request: RequestBuilder,
        deadline: Deadline,
    ) -> Result<Response, ClientError> {
        self.within(deadline, request.send()).await?.map_err(|error| ClientError::http(&self.host, &error))
    }

    /// Sends, and reads the whole answer as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        deadline: Deadline,
    ) -> Result<T, ClientError> {
        self.json_within(request, limits::MAX_JSON_BYTES, deadline).await
    }

    /// The same for an answer of at most `limit` bytes.
    pub(crate) async fn json_within<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        limit: usize,
        deadline: Deadline,
    ) -> Result<T, ClientError> {
        let response = self.send(request, JSON, deadline).await?;
        let body = self.body(response, limit, deadline).await?;
        serde_json::from_slice(&body).map_err(|error| ClientError::protocol(&self.host, error))
    }

    /// Reads a body of at most `limit` bytes. Nothing is allocated on the peer's word: a length it announces is only
    /// used to refuse early.
    pub(crate) async fn body(
        &self,
        mut response: Response,
        limit: usize,
        deadline: Deadline,
    ) -> Result<Vec<u8>, ClientError> {
        let too_large = || ClientError::new(Kind::TooLarge { host: self.host.clone(), limit: limit as u64 });
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(piece) = self.piece(&mut response, deadline).await? {
            if piece.len() > limit - body.len() {
                return Err(too_large());
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// The next piece of a body, `None` at its end.
    pub(crate) async fn piece(
        &self,
        response: &mut Response,
        deadline: Deadline,
    ) -> Result<Option<Bytes>, ClientError> {
        self.within(deadline, response.chunk()).await?.map_err(|error| ClientError::http(&self.host, &error))
    }

    async fn within<T>(&self, deadline: Deadline, work: impl Future<Output = T>) -> Result<T, ClientError> {
        timeout_at(deadline.at, work).await.map_err(|_| {
            let (host, after) = (self.host.clone(), deadline.after);
            ClientError::new(match deadline.work {
                Some(what) => Kind::Slow { host, what, after },
                None => Kind::Silent { host, after },
            })
        })
    }

    /// What an answer that is not 200 means.
    pub(crate) async fn refusal(&self, response: Response, deadline: Deadline) -> ClientError {
        let status = response.status().as_u16();
        let (host, token_sent) = (self.host.clone(), self.token_sent);
        if response.status().is_redirection() {
            let to = response
                .headers()
                .get(LOCATION)
                .map_or("nowhere".into(), |to| String::from_utf8_lossy(to.as_bytes()));
            return ClientError::new(Kind::Redirect { host, to: to.into_owned() });
        }
        if response.status().is_success() {
            return ClientError::protocol(&self.host, format!("HTTP status {status} has no meaning here"));
        }
        let problem: Option<Problem> = if essence(&response) == problem::MEDIA_TYPE {
            let body = self.body(response, limits::MAX_PROBLEM_BYTES, deadline).await.ok();
            body.and_then(|body| serde_json::from_slice(&body).ok())
        } else {
            None
        };
        ClientError::new(match problem {
            // The status line is what counts; a body that contradicts it is not believed.
            Some(problem) if problem.status == status => Kind::Problem { host, problem, token_sent },
            _ => Kind::Status { host, status, token_sent },
        })
    }
}

/// The media type without its parameters.
fn essence(response: &Response) -> String {
    let text = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    String::from_utf8_lossy(text).split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn tls(roots: RootCertStore) -> Result<ClientConfig, ClientError> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::new(Kind::Options { why: format!("TLS cannot be set up: {error}") }))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Only the authorities in the file are trusted then, not the system's.
fn authorities(path: &Path) -> Result<RootCertStore, ClientError> {
    let error = |why: String| {
        let path = path.display();
        ClientError::new(Kind::Options {
            why: format!(
                "the file {path} does not give certificate authorities: {why}; it should hold PEM certificates"
            ),
        })
    };
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(|e| error(e.to_string()))?;
    file.take(limits::MAX_CA_BYTES).read_to_end(&mut text).map_err(|e| error(e.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|e| error(format!("{e:?}")))?;
        roots.add(certificate).map_err(|e| error(e.to_string()))?;
    }
    if roots.is_empty() { Err(error("there is no certificate in it".to_owned())) } else { Ok(roots) }
}
