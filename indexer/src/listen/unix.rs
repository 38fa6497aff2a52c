//! The Unix socket: who may connect, and what to do with a path that is taken.
//!
//! # Never open to others, never two daemons, never somebody's file
//!
//! The socket gets its mode and group *before* it listens: until then a connection is refused, so there is no moment
//! in which its file is there with the wrong rights. The check "does somebody serve this path?" and the replacement of
//! a stale socket happen under a lock on the folder, so that two daemons started at once cannot both find it free. Only
//! a socket that refuses connections is replaced; anything else is left alone.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use migrate_client::HostUrl;
use rustix::{
    fs::{CWD, FlockOperation, Gid, Mode, OFlags, Uid},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::net::UnixListener;

use super::{BACKLOG, ListenError};

/// Group whose members may connect.
const GROUP: &str = "memdex";
/// Root and the group.
const MODE: u32 = 0o660;

/// A listening socket; its file is removed when this is dropped, if it is still the one that was made here.
#[derive(Debug)]
pub(super) struct UnixSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl UnixSocket {
    pub(super) fn bind(url: &HostUrl, path: &Path) -> Result<Self, ListenError> {
        let system = |error: io::Error| ListenError::system(url, error);
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).map_err(system)?;
        let lock = lock(folder).map_err(system)?;
        clear(url, path)?;

        let address = SocketAddrUnix::new(path).map_err(|e| system(e.into()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|e| system(e.into()))?;
        rustix::net::bind(&socket, &address).map_err(|e| system(e.into()))?;
        let file = fs::symlink_metadata(path).map_err(system)?;
        give_to_group(path).map_err(system)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(system)?;
        rustix::net::listen(&socket, BACKLOG as i32).map_err(|e| system(e.into()))?;
        drop(lock);

        let listener = std::os::unix::net::UnixListener::from(socket);
        let listener = UnixListener::from_std(listener).map_err(system)?;
        Ok(Self { listener, path: path.to_owned(), device: file.dev(), inode: file.ino() })
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == (self.device, self.inode));
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket file could not be removed");
        }
    }
}

/// Makes the path free if a stale socket stands there.
fn clear(url: &HostUrl, path: &Path) -> Result<(), ListenError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(file) => file.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ListenError::system(url, error)),
    };
    if !kind.is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match connect(path) {
        // Also when its queue is full (EAGAIN): somebody has it open.
        Ok(()) | Err(Errno::AGAIN) => Err(ListenError::Busy(url.clone())),
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "replacing the socket of a daemon that is gone");
            fs::remove_file(path).map_err(|error| ListenError::system(url, error))
        }
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(ListenError::system(url, error.into())),
    }
}

/// Tries to connect. Does not wait: who has the socket may be hung, with his queue full.
fn connect(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}

/// Holds off other daemons that start with a socket in the same folder. Released when it is dropped.
fn lock(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, folder, flags, Mode::empty())?;
    rustix::fs::flock(&folder, FlockOperation::LockExclusive)?;
    Ok(folder)
}

/// Gives the socket to root and the group, as far as that is possible: without it only this user can connect.
fn give_to_group(path: &Path) -> io::Result<()> {
    let Some(group) = group_id(GROUP) else {
        tracing::info!("there is no group {GROUP}: only this user may use {}", path.display());
        return Ok(());
    };
    let owner = rustix::process::geteuid().is_root().then_some(Uid::ROOT);
    match rustix::fs::chownat(CWD, path, owner, Some(group), rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::PERM) => {
            tracing::warn!(
                "not allowed to give {} to the group {GROUP}: only this user may use it",
                path.display()
            );
            Ok(())
        }
        other => Ok(other?),
    }
}

/// From `/etc/group` alone: the group is made by the package that installs the daemon.
fn group_id(name: &str) -> Option<Gid> {
    find_group(&fs::read_to_string("/etc/group").ok()?, name).map(Gid::from_raw)
}

fn find_group(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn url(path: &Path) -> HostUrl {
        HostUrl::Unix(path.to_owned())
    }

    #[test]
    fn groups_are_found_by_their_whole_name() {
        let groups = "root:x:0:\nmemdexer:x:7:\nmemdex:x:990:alice,bob\nbroken\nbad:x:y:\n";
        assert_eq!(find_group(groups, "memdex"), Some(990));
        assert_eq!(find_group(groups, "mem"), None);
        assert_eq!(find_group(groups, "broken"), None);
        assert_eq!(find_group(groups, "bad"), None);
    }

    #[tokio::test]
    async fn the_socket_is_for_owner_and_group_and_goes_away_with_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/d.sock");
        let socket = UnixSocket::bind(&url(&path), &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_served_path_is_refused_and_a_stale_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.sock");
        let first = UnixSocket::bind(&url(&path), &path).unwrap();
        let error = UnixSocket::bind(&url(&path), &path).unwrap_err();
        assert!(error.to_string().contains("another memdexd is serving"), "{error}");
        assert!(UnixStream::connect(&path).is_ok());
        drop(first);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a stale socket stands there");
        let _second = UnixSocket::bind(&url(&path), &path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[tokio::test]
    async fn a_daemon_that_is_hung_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.sock");
        let first = std::os::unix::net::UnixListener::bind(&path).unwrap();
        rustix::net::listen(&first, 0).unwrap();
        // Its queue holds one, and nobody takes it out.
        let _waiting = UnixStream::connect(&path).unwrap();
        let error = UnixSocket::bind(&url(&path), &path).unwrap_err();
        assert!(error.to_string().contains("another memdexd is serving"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_never_touched() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "precious").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link, &folder.path().to_owned()] {
            let error = UnixSocket::bind(&url(path), path).unwrap_err();
            assert!(error.to_string().contains("not a socket"), "{error}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[tokio::test]
    async fn a_socket_that_another_daemon_put_there_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.sock");
        let first = UnixSocket::bind(&url(&path), &path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = UnixSocket::bind(&url(&path), &path).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
    }
}
