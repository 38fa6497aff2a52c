//! Connections between two daemons that move a VM: HTTP requests that were upgraded to the protocol in [`memdex_wire::transfer`].
//!
//! Owns opening them: address, TLS, token, and the refusal in words. Never knows what is said on them.

use memdex_wire::transfer::PROTOCOL;
use reqwest::header::{CONNECTION, HeaderValue, UPGRADE};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Client, ClientError, transport::Deadline};

/// Which of a migration's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelKind {
    /// The one on which the two daemons talk.
    Control,
    /// One on which pages travel.
    Data,
}

/// What an upgraded connection can do.
pub trait Channel: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Channel for T {}

impl Client {
    /// Opens a connection of the migration `id` at the destination, which is the host of this client.
    ///
    /// # Errors
    /// If the host cannot be reached, or does not take the connection.
    pub async fn open_channel(&self, id: &str, kind: ChannelKind) -> Result<Box<dyn Channel>, ClientError> {
        let end = match kind {
            ChannelKind::Control => "receive",
            ChannelKind::Data => "stream",
        };
        let transport = self.transport();
        let deadline = Deadline::answer(transport.timeouts.answer);
        let request = transport
            .post(&format!("/v1/migrations/{id}/{end}"))
            .header(CONNECTION, HeaderValue::from_static("upgrade"))
            .header(UPGRADE, HeaderValue::from_static(PROTOCOL));
        let response = transport.exchange(request, deadline).await?;
        let upgraded = response.headers().get(UPGRADE).is_some_and(|name| name == PROTOCOL);
        if response.status().as_u16() != 101 || !upgraded {
            return Err(transport.refusal(response, deadline).await);
        }
        match response.upgrade().await {
            Ok(channel) => Ok(Box::new(channel)),
            Err(error) => Err(ClientError::http(self.host(), &error)),
        }
    }
}
