//! Following peers: a task for each that keeps one connection and applies what comes.
//!
//! Owns connecting, waiting and beginning anew. A peer can be of an older version, lie, stall or vanish: then there is no picture of it, and it is asked.

use std::{sync::Arc, time::Duration};

use memdex_wire::picture::Frame;
use migrate_client::{Client, ClientError, PictureStream};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    Picture,
    peers::{Applied, PeerPicture, Pictures, keep},
};
use crate::{host::Host, peer::Peers};

/// Wait before a peer is connected to again; doubles up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// Wait before a peer is asked again that does not know how to tell, or that holds too much.
const HOPELESS: Duration = Duration::from_secs(600);
/// Time between two looks at the maps of this host's VMs.
const KEEP: Duration = Duration::from_secs(1);

/// Why a peer is not followed any more.
enum End {
    /// The connection broke, or could not be made.
    Broken(ClientError),
    /// It closed the stream.
    Closed,
    /// A new picture is needed.
    WornOut,
    /// It does not keep to the rules.
    Rules(String),
}

/// Follows every peer until `stop`.
pub(crate) fn follow(host: &Host, peers: &Peers, stop: &CancellationToken) {
    let pictures = peers.pictures();
    for (name, picture) in pictures.iter() {
        let client = match peers.client(name) {
            Ok(client) => client,
            Err(problem) => {
                tracing::warn!(
                    peer = name,
                    reason = problem.detail,
                    "what this peer holds cannot be followed"
                );
                continue;
            }
        };
        let (name, picture, host, stop) = (name.to_owned(), Arc::clone(picture), host.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = follow_one(&name, &client, &picture, &host) => {}
                () = stop.cancelled() => {}
            }
        });
    }
    if pictures.iter().next().is_some() {
        tokio::spawn(keep_all(host.clone(), Arc::clone(pictures), stop.clone()));
    }
}

async fn follow_one(name: &str, client: &Client, peer: &Arc<PeerPicture>, host: &Host) {
    let mut wait = FIRST;
    let mut said = false;
    loop {
        let mut heard = false;
        // Who works on the state may take long.
        let position = {
            let peer = Arc::clone(peer);
            spawn_blocking(move || peer.position()).await.unwrap_or_default()
        };
        let end = match client.picture(position).await {
            Ok(stream) => listen(stream, peer, host, &mut heard).await,
            Err(error) => End::Broken(error),
        };
        if heard {
            (wait, said) = (FIRST, false);
        }
        let (reason, pause) = match end {
            End::Broken(error) if error.is_not_found() => {
                ("it is of a version that does not tell what it holds".to_owned(), HOPELESS)
            }
            End::Broken(error) => (error.to_string(), wait),
            End::Closed => ("it has closed the connection".to_owned(), wait),
            End::WornOut => {
                tracing::debug!(peer = name, "asking for a new picture");
                sleep(FIRST).await;
                continue;
            }
            End::Rules(reason) => {
                let peer = Arc::clone(peer);
                let _ = spawn_blocking(move || peer.forget()).await;
                (reason, HOPELESS)
            }
        };
        // Once for each time that it is out of sight.
        if !std::mem::replace(&mut said, true) {
            tracing::info!(
                peer = name,
                reason,
                "what this peer holds is not followed for now; it is asked instead"
            );
        }
        sleep(pause).await;
        wait = (wait * 2).min(LONGEST);
    }
}

async fn listen(mut stream: PictureStream, peer: &Arc<PeerPicture>, host: &Host, heard: &mut bool) -> End {
    let mut coming = None;
    loop {
        let frame = match stream.next().await {
            None => return End::Closed,
            Some(Err(error)) if error.is_retryable() || error.is_unreachable() => return End::Broken(error),
            Some(Err(error)) => return End::Rules(error.to_string()),
            Some(Ok(frame)) => frame,
        };
        *heard = true;
        match (frame, &mut coming) {
            (Frame::Begin { position, keys, .. }, coming) => {
                // Four bytes each, of four for each content.
                if u64::from(keys.buckets()) > peer.most() / 2 {
                    return too_much(peer.most());
                }
                *coming = Some((Picture::begin(keys), position));
            }
            (Frame::Part(part), Some((picture, _))) => {
                if let Err(error) = picture.push(&part, peer.most()) {
                    return match error {
                        super::PartError::TooMany(most) => too_much(most),
                        super::PartError::Order => End::Rules(error.to_string()),
                    };
                }
            }
            (Frame::Complete, coming) => match coming.take() {
                Some((picture, position)) if picture.complete() => {
                    let peer = Arc::clone(peer);
                    if spawn_blocking(move || peer.replace(picture, position)).await.is_err() {
                        return End::Closed;
                    }
                }
                _ => return End::Rules("it sent a picture that is not complete".to_owned()),
            },
            (Frame::Changes { position, changes }, None) => {
                let (peer, host, most) = (Arc::clone(peer), host.clone(), peer.most());
                let apply = move || peer.apply(&changes, position, &host.shared().index);
                match spawn_blocking(apply).await {
                    Ok(Applied::Well) => {}
                    Ok(Applied::WornOut) => return End::WornOut,
                    Ok(Applied::TooMuch) => return too_much(most),
                    Err(_) => return End::Closed,
                }
            }
            (Frame::Part(_), None) | (Frame::Changes { .. }, Some(_)) => {
                return End::Rules("it sent the parts of its picture out of order".to_owned());
            }
        }
    }
}

fn too_much(most: u64) -> End {
    End::Rules(format!(
        "it holds more than the {most} contents that `peer_picture_mib` has room for: raise that setting to follow it"
    ))
}

/// Keeps what is known of this host's VMs up to date, so that who asks has little to wait for.
async fn keep_all(host: Host, pictures: Arc<Pictures>, stop: CancellationToken) {
    let mut ticks = interval(KEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        let (host, pictures) = (host.clone(), Arc::clone(&pictures));
        if spawn_blocking(move || keep(&pictures, &host.vms())).await.is_err() {
            return;
        }
    }
}
