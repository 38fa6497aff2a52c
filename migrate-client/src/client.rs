//! The questions a host answers, one method each.
//!
//! Owns paths and bodies of requests; those about migrations are in [`migrations`]. Never interprets guest memory and
//! never retries: the caller knows what a retry costs.

mod migrations;
mod path;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use memdex_wire::{
    Fingerprint, bulk,
    diff::Diff,
    job::{SyncReport, SyncRequest, VerifyReport},
    picture::{self, Position},
    vm::VmInfo,
};
use reqwest::header::CONTENT_TYPE;
use roaring::RoaringBitmap;

use crate::{
    ClientError, EventStream, HostUrl, PageStream, PictureStream, Token,
    error::Kind,
    limits::{self, Timeouts},
    transport::{Deadline, JSON, Transport},
};

/// A memdex host. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client(Arc<Transport>);

/// How to talk to a host. The default sends no token, trusts the system's certificate authorities and has patient
/// time limits.
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// What opens the host's TCP listener; a Unix socket needs none. See [`Token::from_environment`].
    pub token: Option<Token>,
    /// File of PEM certificates: the only authorities to trust for `tls://`, instead of the system's.
    pub ca: Option<PathBuf>,
    /// How long the host may take.
    pub timeouts: Timeouts,
}

impl Client {
    /// A client of the host at `url`. Nothing is sent yet.
    ///
    /// # Errors
    /// If a token would go over the network in the clear (`tcp://` to another machine), or the certificate file is not
    /// usable.
    pub fn new(url: HostUrl, options: ClientOptions) -> Result<Self, ClientError> {
        Transport::new(url, options).map(|transport| Self(Arc::new(transport)))
    }

    /// The address this client talks to.
    #[must_use]
    pub fn host(&self) -> &HostUrl {
        &self.0.host
    }

    pub(crate) fn timeouts(&self) -> &Timeouts {
        &self.0.timeouts
    }

    /// The VMs of the host.
    ///
    /// # Errors
    /// If the host cannot be reached or gives no usable answer; so it is with every method here.
    pub async fn vms(&self) -> Result<Vec<VmInfo>, ClientError> {
        self.0.json(self.0.get("/v1/vms"), self.quick()).await
    }

    /// One VM, by id, name or pid.
    ///
    /// # Errors
    /// `is_not_found()` if there is none, `is_conflict()` if several have this name; so it is with every method that
    /// takes a `key`.
    pub async fn vm(&self, key: &str) -> Result<VmInfo, ClientError> {
        self.0.json(self.0.get(&vm_path(key, "")?), self.quick()).await
    }

    /// The page map, by pieces and in page order; with `since` only pages whose content changed after that generation,
    /// and those that are stale now.
    ///
    /// # Errors
    /// See [`PageStream::next`] for what may go wrong later.
    pub async fn pages(&self, key: &str, since: Option<u64>) -> Result<PageStream, ClientError> {
        let vm = self.vm(key).await?;
        // By id from here on: a name may go to another VM meanwhile.
        let mut request = self.0.get(&vm_path(&vm.id, "/pages")?);
        if let Some(generation) = since {
            request = request.query(&[("since", generation)]);
        }
        let response = self.0.send(request, bulk::PAGES, self.quick()).await?;
        PageStream::start(Arc::clone(&self.0), vm, response).await
    }

    /// Returns when every page has been current at some moment since the call. The host gives up after `timeout`.
    ///
    /// # Errors
    /// `is_retryable()` if it was not done in time.
    pub async fn sync(&self, key: &str, timeout: Duration) -> Result<SyncReport, ClientError> {
        let timeout_ms = Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let body = serde_json::to_vec(&SyncRequest { timeout_ms }).unwrap_or_default();
        let request = self.0.post(&vm_path(key, "/sync")?).header(CONTENT_TYPE, JSON).body(body);
        self.0.json(request, Deadline::work("the sync", timeout.saturating_add(limits::SYNC_GRACE))).await
    }

    /// What the host at `to` lacks of a VM. `to` is a [`HostUrl`] as text, seen from the host that is asked, or the name
    /// of a peer that it knows.
    ///
    /// # Errors
    /// `is_unreachable()` also if the host that is asked cannot reach the other.
    pub async fn diff(&self, key: &str, to: &str) -> Result<Diff, ClientError> {
        self.diff_within(key, &[("to", to)]).await
    }

    /// The same, asked of the other host now, even if this one follows what that holds and knows the answer within a second.
    ///
    /// # Errors
    /// As [`Client::diff`].
    pub async fn diff_asked(&self, key: &str, to: &str) -> Result<Diff, ClientError> {
        self.diff_within(key, &[("to", to), ("ask", "true")]).await
    }

    async fn diff_within(&self, key: &str, query: &[(&str, &str)]) -> Result<Diff, ClientError> {
        let request = self.0.get(&vm_path(key, "/diff")?).query(query);
        self.0.json(request, Deadline::work("the diff", self.0.timeouts.diff)).await
    }

    /// Makes the host re-read and re-hash every current page of a VM.
    ///
    /// # Errors
    /// Mismatches are no error: see [`VerifyReport::mismatches`].
    pub async fn verify(&self, key: &str) -> Result<VerifyReport, ClientError> {
        let request = self.0.post(&vm_path(key, "/verify")?);
        self.0.json(request, Deadline::work("the verify", self.0.timeouts.verify)).await
    }

    /// Which of these contents the host holds in a current page: position `i` is set if it holds `fingerprints[i]`.
    /// Long lists go in several requests, some of them at once.
    ///
    /// # Errors
    /// If any of the requests fails, or there are more than 2³² fingerprints.
    pub async fn lookup(&self, fingerprints: &[Fingerprint]) -> Result<RoaringBitmap, ClientError> {
        if fingerprints.len() as u64 > limits::MAX_PAGES {
            return Err(ClientError::new(Kind::Options {
                why: "a lookup has at most 2³² fingerprints: split it".to_owned(),
            }));
        }
        // The futures are made here, not in a closure of the stream: so the compiler can tell that they are `Send`, and
        // a server can wait for this in its handlers. Nothing is sent or encoded before its turn.
        let batches: Vec<_> = fingerprints
            .chunks(limits::MAX_LOOKUP)
            .enumerate()
            .map(|(number, list)| async move {
                let first = (number * limits::MAX_LOOKUP) as u32;
                self.lookup_once(list).await.map(|held| (first, held))
            })
            .collect();
        stream::iter(batches)
            .buffered(limits::LOOKUPS_AT_ONCE)
            .try_fold(RoaringBitmap::new(), |mut all, (first, held)| async move {
                all.extend(held.into_iter().map(|position| first + position));
                Ok(all)
            })
            .await
    }

    async fn lookup_once(&self, list: &[Fingerprint]) -> Result<RoaringBitmap, ClientError> {
        let deadline = self.quick();
        let body = bulk::encode_fingerprints(bulk::KeyId::PLAIN, list);
        let request = self.0.post("/v1/content/lookup").header(CONTENT_TYPE, bulk::FINGERPRINTS).body(body);
        let response = self.0.send(request, bulk::BITMAP, deadline).await?;
        let body = self.0.body(response, limits::MAX_BITMAP_BYTES, deadline).await?;
        bulk::decode_bitmap(list.len() as u32, &body)
            .map_err(|error| ClientError::protocol(self.host(), error))
    }

    /// What the host holds, by two bytes for each content, and then what comes and goes. With `since` no picture is sent if the host still knows what has changed
    /// after that position.
    ///
    /// # Errors
    /// See [`PictureStream::next`] for what may go wrong later.
    pub async fn picture(&self, since: Option<Position>) -> Result<PictureStream, ClientError> {
        let mut request = self.0.get("/v1/content/picture");
        if let Some(position) = since {
            request = request.query(&[("since", position.to_string())]);
        }
        let response = self.0.send(request, picture::PICTURE, self.quick()).await?;
        PictureStream::start(Arc::clone(&self.0), response).await
    }

    /// What happens on the host from now on.
    ///
    /// # Errors
    /// See [`EventStream::next`] for what may go wrong later.
    pub async fn events(&self) -> Result<EventStream, ClientError> {
        let response = self.0.send(self.0.get("/v1/events"), "text/event-stream", self.quick()).await?;
        Ok(EventStream::new(Arc::clone(&self.0), response))
    }

    /// Whether the daemon answers at all.
    ///
    /// # Errors
    /// If it does not, or answers with anything but status 200.
    pub async fn health(&self) -> Result<(), ClientError> {
        self.probe("/healthz").await
    }

    /// Whether the daemon has looked for VMs once, so that its lists are complete.
    ///
    /// # Errors
    /// `is_retryable()` as long as it has not.
    pub async fn ready(&self) -> Result<(), ClientError> {
        self.probe("/readyz").await
    }

    async fn probe(&self, path: &str) -> Result<(), ClientError> {
        let deadline = self.quick();
        let response = self.0.exchange(self.0.get(path), deadline).await?;
        if response.status().as_u16() != 200 {
            return Err(self.0.refusal(response, deadline).await);
        }
        self.0.body(response, limits::MAX_HEALTH_BYTES, deadline).await.map(drop)
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.0
    }

    fn quick(&self) -> Deadline {
        Deadline::answer(self.0.timeouts.answer)
    }
}

fn vm_path(key: &str, rest: &str) -> Result<String, ClientError> {
    path::item(path::VMS, key, rest)
}
