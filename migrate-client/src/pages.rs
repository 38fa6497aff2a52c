//! The page map as a stream of records.
//!
//! Owns the waiting for the host and its limits in time. Never holds more than one piece of the body, however large the
//! VM is.

mod decoder;

use std::{sync::Arc, time::Duration};

use futures::{Stream, stream};
use memdex_wire::{
    bulk::{PAGE_RECORD, PagesHeader},
    page::PageRecord,
    vm::VmInfo,
};
use reqwest::Response;
use tokio::time::Instant;

use self::decoder::{Decoder, Fault, Step};
use crate::{
    ClientError,
    error::Kind,
    limits,
    transport::{Deadline, Transport},
};

/// A page map that is being received.
#[derive(Debug)]
pub struct PageStream {
    transport: Arc<Transport>,
    response: Response,
    vm: VmInfo,
    decoder: Decoder,
    header: PagesHeader,
    /// Time spent waiting for the peer, and what it may be in all.
    waited: Duration,
    patience: Duration,
    failed: bool,
}

impl PageStream {
    pub(crate) async fn start(
        transport: Arc<Transport>,
        vm: VmInfo,
        response: Response,
    ) -> Result<Self, ClientError> {
        let patience = transport.timeouts.piece;
        let header = PagesHeader { generation: 0, pages: 0, records: 0 };
        let decoder = Decoder::new(&vm.coverage);
        let mut pages = Self {
            transport,
            response,
            vm,
            decoder,
            header,
            waited: Duration::ZERO,
            patience,
            failed: false,
        };
        pages.header = loop {
            match pages.decoder.header() {
                Ok(Some(header)) => break header,
                Ok(None) => pages.receive().await?,
                Err(fault) => return Err(pages.fail(fault)),
            }
        };
        let bytes = pages.header.records * PAGE_RECORD as u64;
        pages.patience += Duration::from_secs(bytes / limits::MIN_STREAM_RATE);
        Ok(pages)
    }

    /// The VM, as the host described it just before it sent the map.
    #[must_use]
    pub const fn vm(&self) -> &VmInfo {
        &self.vm
    }

    /// Generation of the map.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.header.generation
    }

    /// Pages the VM has.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.header.pages
    }

    /// Records in this stream: all pages, or those that changed.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.header.records
    }

    /// The next record, `None` after the last one. After an error there is nothing more.
    ///
    /// # Errors
    /// If the host breaks off, is too slow, or sends what is no page map. `is_retryable()` if the VM's regions changed
    /// meanwhile.
    pub async fn next(&mut self) -> Option<Result<PageRecord, ClientError>> {
        if self.failed {
            return None;
        }
        loop {
            match self.decoder.record() {
                Ok(Step::Record(record)) => return Some(Ok(record)),
                Ok(Step::More) => {
                    if let Err(error) = self.receive().await {
                        self.failed = true;
                        return Some(Err(error));
                    }
                }
                Ok(Step::End) => return None,
                Err(fault) => return Some(Err(self.fail(fault))),
            }
        }
    }

    /// The same as a [`Stream`] for combinators.
    pub fn into_stream(self) -> impl Stream<Item = Result<PageRecord, ClientError>> + Send {
        stream::unfold(self, |mut pages| async move { pages.next().await.map(|record| (record, pages)) })
    }

    /// Waits for one more piece, or notes the end of the body.
    async fn receive(&mut self) -> Result<(), ClientError> {
        let left = self.patience.saturating_sub(self.waited).min(self.transport.timeouts.piece);
        let started = Instant::now();
        let piece = self.transport.piece(&mut self.response, Deadline::work("the page map", left)).await;
        self.waited += started.elapsed();
        match piece? {
            Some(piece) => self.decoder.push(piece),
            None => self.decoder.end(),
        }
        Ok(())
    }

    fn fail(&mut self, fault: Fault) -> ClientError {
        self.failed = true;
        match fault {
            Fault::Layout => ClientError::new(Kind::LayoutChanged { host: self.transport.host.clone() }),
            Fault::Body(why) => ClientError::protocol(&self.transport.host, why),
        }
    }
}
