//! QEMU's monitor protocol: one connection, one command at a time, every wait bounded.
//!
//! Owns the conversation and the passing of descriptors. Never knows what a command means: that is [`super::monitor`].

use std::{
    io,
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::UnixStream,
    time::timeout,
};

/// Longest wait for QEMU's greeting: it serves one client at a time, and says nothing to a second one.
const GREETING: Duration = Duration::from_secs(2);
/// Longest wait for the answer to a command.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest line that is taken.
const MAX_LINE: u64 = 4 << 20;

/// Why a monitor does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens there.
    #[error("cannot connect to the QMP socket: {0}")]
    Connect(io::Error),
    /// Another client has it.
    #[error(
        "the QMP socket is in use by another client, or is none: give the VM one of its own for memdex (-qmp unix:PATH,server=on,wait=off)"
    )]
    InUse,
    /// Another process listens there.
    #[error("the QMP socket belongs to process {found}, not to the VM's process {wanted}: name the VM's own")]
    Stranger {
        /// Whose it is.
        found: i32,
        /// Whose it should be.
        wanted: u32,
    },
    /// QEMU says no.
    #[error("QEMU refuses {command}: {why}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        why: String,
    },
    /// The connection is broken: QEMU has ended.
    #[error("the connection to QEMU's monitor is lost ({0}): QEMU has probably ended")]
    Lost(io::Error),
    /// No answer.
    #[error("QEMU has not answered {0} within ten seconds")]
    Silent(String),
}

/// A connection to a monitor, past its negotiation.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    next_id: u64,
}

impl Qmp {
    /// Connects to the socket at `path`, which may lie behind a link of `/proc`, and is to be that of process `pid`.
    ///
    /// # Errors
    /// [`QmpError::Connect`], [`QmpError::Stranger`], or [`QmpError::InUse`] if nothing greets.
    pub async fn connect(path: &Path, pid: u32) -> Result<Self, QmpError> {
        let stream = connect(path).await.map_err(QmpError::Connect)?;
        // Whoever made the socket listen. A path may be used again by the next QEMU while the last one still lives.
        let owner = stream.peer_cred().map_err(QmpError::Connect)?.pid();
        if let Some(found) = owner.filter(|found| u32::try_from(*found) != Ok(pid)) {
            return Err(QmpError::Stranger { found, wanted: pid });
        }
        let mut qmp = Self { stream: BufReader::new(stream), next_id: 0 };
        match timeout(GREETING, qmp.line()).await {
            Ok(Ok(greeting)) if greeting.get("QMP").is_some() => {}
            Ok(Err(QmpError::Lost(error))) => return Err(QmpError::Connect(error)),
            _ => return Err(QmpError::InUse),
        }
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Goes on with a connection whose last user has ended, wherever it was.
    ///
    /// # Errors
    /// If the descriptor is no socket.
    pub fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        // Far from any number the last user may have got to, so that its answers are not taken for ours.
        Ok(Self { stream: BufReader::new(UnixStream::from_std(stream)?), next_id: 1 << 40 })
    }

    /// Another descriptor of the same connection.
    ///
    /// # Errors
    /// If the process has no room for one.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.stream.get_ref().as_fd().try_clone_to_owned()
    }

    /// Runs a command and returns its result.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.run(command, arguments, None).await
    }

    /// The same, and hands over a descriptor with it.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn execute_with(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        self.run(command, arguments, Some(descriptor)).await
    }

    async fn run(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let line = json!({"execute": command, "arguments": arguments, "id": id}).to_string() + "\n";
        let answer = async {
            match descriptor {
                None => self.stream.get_mut().write_all(line.as_bytes()).await.map_err(QmpError::Lost)?,
                Some(descriptor) => {
                    self.send_with(line.as_bytes(), descriptor).await.map_err(QmpError::Lost)?;
                }
            }
            loop {
                let mut answer = self.line().await?;
                // Events, and answers to whoever used the connection before, are not for us.
                if answer.get("id").and_then(Value::as_u64) != Some(id) {
                    continue;
                }
                if let Some(error) = answer.get("error") {
                    let why = error["desc"].as_str().unwrap_or("for no reason it gives");
                    return Err(QmpError::Refused {
                        command: command.to_owned(),
                        why: migrate_client::printable(why),
                    });
                }
                return Ok(answer["return"].take());
            }
        };
        timeout(ANSWER, answer).await.unwrap_or_else(|_| Err(QmpError::Silent(command.to_owned())))
    }

    async fn line(&mut self) -> Result<Value, QmpError> {
        loop {
            let mut line = Vec::new();
            let read = (&mut self.stream).take(MAX_LINE).read_until(b'\n', &mut line).await;
            if read.map_err(QmpError::Lost)? == 0 {
                return Err(QmpError::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
            // The rest of a line that the last user of the connection had begun to read is passed over.
            if let Ok(value) = serde_json::from_slice(&line) {
                return Ok(value);
            }
            if line.len() as u64 >= MAX_LINE {
                return Err(QmpError::Lost(io::Error::other("a line of its answer has no end")));
            }
        }
    }

    /// The descriptor travels with the first byte of the line.
    async fn send_with(&mut self, line: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let stream = self.stream.get_mut();
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let descriptors = [descriptor];
                control.push(SendAncillaryMessage::ScmRights(&descriptors));
                let socket = stream.as_fd();
                Ok(rustix::net::sendmsg(socket, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?)
            })
            .await?;
        stream.write_all(&line[sent..]).await
    }
}

/// Connects to a socket whose path may be longer than an address has room for.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    use std::os::fd::AsRawFd;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    timeout(GREETING, UnixStream::connect(short))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
