//! What a host holds, as it tells it: a picture first, changes after it.
//!
//! Owns the frames' borders and the limits in time and size. Never holds more than one frame, and never judges what frames say together: the reader does.

use std::sync::Arc;

use bytes::BytesMut;
use memdex_wire::{
    bulk::KeyId,
    picture::{FRAME_HEADER, Frame, HEADER, decode_header},
};
use reqwest::Response;

use crate::{
    ClientError,
    transport::{Deadline, Transport},
};

/// Frames of a host, without end.
#[derive(Debug)]
pub struct PictureStream {
    transport: Arc<Transport>,
    response: Response,
    buffer: BytesMut,
    /// Nothing more comes.
    ended: bool,
}

impl PictureStream {
    pub(crate) async fn start(transport: Arc<Transport>, response: Response) -> Result<Self, ClientError> {
        let mut stream = Self { transport, response, buffer: BytesMut::new(), ended: false };
        if !stream.fill(HEADER).await? {
            return Err(stream.broken());
        }
        let header = stream.buffer.split_to(HEADER);
        let Some(header) = header.first_chunk::<HEADER>() else { return Err(stream.broken()) };
        let key =
            decode_header(header).map_err(|error| ClientError::protocol(&stream.transport.host, error))?;
        if key != KeyId::PLAIN {
            let why = "its fingerprints are made with a key: nothing there can be compared";
            return Err(ClientError::protocol(&stream.transport.host, why));
        }
        Ok(stream)
    }

    /// The next frame, `None` when the host has closed the stream. After an error there is nothing more.
    ///
    /// # Errors
    /// If the connection breaks, nothing at all arrives for [`Timeouts::piece`](crate::Timeouts::piece), or what arrives is no frame.
    pub async fn next(&mut self) -> Option<Result<Frame, ClientError>> {
        loop {
            let frame = self.frame().await;
            if !matches!(frame, Ok(Some(_))) {
                self.ended = true;
            }
            match frame {
                // A frame of a later version.
                Ok(Some(None)) => {}
                Ok(Some(Some(frame))) => return Some(Ok(frame)),
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }

    async fn frame(&mut self) -> Result<Option<Option<Frame>>, ClientError> {
        if self.ended || !self.fill(FRAME_HEADER).await? {
            return Ok(None);
        }
        let protocol = |error| ClientError::protocol(&self.transport.host, error);
        let header = self.buffer.first_chunk::<FRAME_HEADER>().copied().unwrap_or_default();
        let (kind, length) = Frame::decode_header(&header).map_err(protocol)?;
        if !self.fill(FRAME_HEADER + length).await? {
            return Err(self.broken());
        }
        let frame = self.buffer.split_to(FRAME_HEADER + length);
        let frame = Frame::decode(kind, &frame[FRAME_HEADER..]);
        frame.map(Some).map_err(|error| ClientError::protocol(&self.transport.host, error))
    }

    /// Waits until there are `bytes`. False: the body ended before the first of them.
    async fn fill(&mut self, bytes: usize) -> Result<bool, ClientError> {
        while self.buffer.len() < bytes {
            let deadline =
                Deadline::work("the next sign of life of the picture", self.transport.timeouts.piece);
            match self.transport.piece(&mut self.response, deadline).await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None if self.buffer.is_empty() => return Ok(false),
                None => return Err(self.broken()),
            }
        }
        Ok(true)
    }

    fn broken(&self) -> ClientError {
        ClientError::protocol(&self.transport.host, "the picture ends in the middle")
    }
}
