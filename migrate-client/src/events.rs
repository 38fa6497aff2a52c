//! What happens on a host, as it happens: a reader of server-sent events.
//!
//! Owns the parser (WHATWG HTML, "Server-sent events", the parts that a non-browser needs: data lines, comments, line
//! ends). Never reconnects: whoever lost the connection has to read the resources anew anyway.

use std::{collections::VecDeque, sync::Arc};

use futures::{Stream, stream};
use memdex_wire::event::Event;
use reqwest::Response;
use serde::Deserialize;

use crate::{
    ClientError, limits,
    transport::{Deadline, Transport},
};

/// Events of a host from the moment of the call.
#[derive(Debug)]
pub struct EventStream {
    transport: Arc<Transport>,
    response: Response,
    parser: Parser,
    waiting: VecDeque<Vec<u8>>,
    ended: bool,
}

/// A later version may add events: they are passed over.
#[derive(Deserialize)]
#[serde(untagged)]
enum Known {
    Event(Event),
    Later {
        #[serde(rename = "type")]
        kind: String,
    },
}

impl EventStream {
    pub(crate) fn new(transport: Arc<Transport>, response: Response) -> Self {
        Self { transport, response, parser: Parser::default(), waiting: VecDeque::new(), ended: false }
    }

    /// The next event, `None` when the host has closed the stream. After an error there is nothing more.
    ///
    /// # Errors
    /// If the connection breaks, nothing at all arrives for [`Timeouts::quiet`](crate::Timeouts::quiet), or what
    /// arrives is no event.
    pub async fn next(&mut self) -> Option<Result<Event, ClientError>> {
        loop {
            while let Some(data) = self.waiting.pop_front() {
                match serde_json::from_slice(&data) {
                    Ok(Known::Event(event)) => return Some(Ok(event)),
                    Ok(Known::Later { kind }) => tracing::debug!(kind, "an event that is not known here"),
                    Err(_) => return self.fail("an event is not the JSON it should be"),
                }
            }
            if self.ended {
                return None;
            }
            let deadline =
                Deadline::work("the next sign of life of the event stream", self.transport.timeouts.quiet);
            match self.transport.piece(&mut self.response, deadline).await {
                Ok(Some(piece)) => {
                    if self.parser.push(&piece, &mut self.waiting).is_err() {
                        return self.fail("an event is larger than it may be");
                    }
                }
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }

    /// The same as a [`Stream`] for combinators.
    pub fn into_stream(self) -> impl Stream<Item = Result<Event, ClientError>> + Send {
        stream::unfold(self, |mut events| async move { events.next().await.map(|event| (event, events)) })
    }

    fn fail(&mut self, why: &str) -> Option<Result<Event, ClientError>> {
        self.ended = true;
        self.waiting.clear();
        Some(Err(ClientError::protocol(&self.transport.host, why)))
    }
}

/// Turns bytes into the data of events. The event's name is not kept: it is the `type` field of the data.
#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_return: bool,
    started: bool,
}

/// A line or an event is longer than [`limits::MAX_EVENT_BYTES`].
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

impl Parser {
    fn push(&mut self, bytes: &[u8], events: &mut VecDeque<Vec<u8>>) -> Result<(), TooLong> {
        for &byte in bytes {
            // A line ends with \n, \r or \r\n.
            let second_half = self.after_return && byte == b'\n';
            self.after_return = byte == b'\r';
            match byte {
                b'\n' if second_half => {}
                b'\n' | b'\r' => self.line_done(events)?,
                _ if self.line.len() == limits::MAX_EVENT_BYTES => return Err(TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    fn line_done(&mut self, events: &mut VecDeque<Vec<u8>>) -> Result<(), TooLong> {
        let mut line = std::mem::take(&mut self.line);
        if !self.started && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        self.started = true;
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                events.push_back(std::mem::take(&mut self.data));
            }
            return Ok(());
        }
        // Comments start with a colon; `event:`, `id:` and `retry:` say nothing we need.
        let value = match line.strip_prefix(b"data") {
            Some([]) => &[],
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            _ => return Ok(()),
        };
        if self.data.len() + value.len() >= limits::MAX_EVENT_BYTES {
            return Err(TooLong);
        }
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Result<Vec<String>, TooLong> {
        let (mut parser, mut events) = (Parser::default(), VecDeque::new());
        for piece in pieces {
            parser.push(piece, &mut events)?;
        }
        Ok(events.into_iter().map(|data| String::from_utf8_lossy(&data).into_owned()).collect())
    }

    #[test]
    fn data_lines_make_events_and_the_rest_is_passed_over() {
        let text = b"\xef\xbb\xbf: hello\n\nevent: x\ndata: one\r\n\r\ndata:two\ndata:  three\nid: 4\n\ndata\n\nretry: 1\r\rdatum: x\n\ndata: cut";
        assert_eq!(parse(&[text]).unwrap(), ["one", "two\n three", ""]);
    }

    #[test]
    fn endless_lines_and_endless_events_end() {
        let piece = [b'x'; 1000];
        assert_eq!(parse(&vec![&piece[..]; 100]), Err(TooLong));
        let line = [&b"data:"[..], &piece, b"\n"].concat();
        assert_eq!(parse(&vec![&line[..]; 100]), Err(TooLong));
        assert!(parse(&vec![&b"data\n"[..]; 1_000_000]).is_err());
        assert_eq!(parse(&vec![&b": comment\n"[..]; 100_000]).unwrap(), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same_events(
            text in "(data: ?[a-c]{0,3}|:x|data|event: e|[a-z]{0,2})?((\r\n|\n|\r)(data: ?[a-c]{0,3}|:x|data)?){0,12}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let text = text.as_bytes();
            let mut cuts: Vec<_> = cuts.iter().map(|c| c.index(text.len() + 1)).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            prop_assert_eq!(parse(&pieces).unwrap(), parse(&[text]).unwrap());
        }
    }

    #[test]
    fn events_of_later_versions_are_told_from_garbage() {
        let known = |text: &str| serde_json::from_str::<Known>(text);
        assert!(matches!(
            known(r#"{"type":"lagged","skipped":3,"new":1}"#),
            Ok(Known::Event(Event::Lagged { skipped: 3 }))
        ));
        assert!(matches!(known(r#"{"type":"vm-painted","colour":"red"}"#), Ok(Known::Later { .. })));
        assert!(known(r#"{"colour":"red"}"#).is_err());
        assert!(known("oops").is_err());
    }
}
