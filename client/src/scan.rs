//! Scans: pages of entries, whatever happens to the node that sends them.
//!
//! Invariants:
//! 1. Each entry is given once: a page is taken whole or not at all, and after a broken stream the scan goes on
//!    behind the last page taken, at another endpoint.
//! 2. Each page has the scan's timeout; between two pages the caller may take any time.

use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, timeout_at};
use tonic::{Response, Status, Streaming};

use crate::client::Attempt;
use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::proto::{self, ScanResponse};
use crate::request::deadline;
use crate::retry::Op;
use crate::route::Place;
use crate::values::{Context, Key, Level, Sibling};

/// One key of a scan, with what a get of it would find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// Its concurrent values.
    pub siblings: Vec<Sibling>,
    /// Covers them.
    pub context: Context,
}

/// Some entries of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The entries, in order.
    pub entries: Vec<Entry>,
    /// Goes on behind the last of them, by [`Scan::cursor`]. Empty if there are no more.
    pub cursor: Bytes,
}

/// A scan; see [`Keyspace::scan`] and [`Keyspace::scan_key`]. It has no session.
#[derive(Debug, Clone)]
#[must_use = "a scan is sent when its pages or entries are taken"]
pub struct Scan {
    keyspace: Keyspace,
    message: proto::ScanRequest,
    timeout: Option<Duration>,
}

impl Scan {
    pub(crate) fn new(keyspace: Keyspace, key: Bytes) -> Scan {
        let message = proto::ScanRequest { keyspace: keyspace.name().to_owned(), key, ..Default::default() };
        Scan { keyspace, message, timeout: None }
    }

    /// Only sort keys that begin so.
    pub fn prefix(mut self, prefix: impl Into<Bytes>) -> Scan {
        self.message.prefix = prefix.into();
        self
    }

    /// From this sort key on.
    pub fn start(mut self, start: impl Into<Bytes>) -> Scan {
        self.message.start = start.into();
        self
    }

    /// Up to this sort key, which is not in it.
    pub fn end(mut self, end: impl Into<Bytes>) -> Scan {
        self.message.end = end.into();
        self
    }

    /// So many entries at the most; 0 means all.
    pub fn limit(mut self, limit: u64) -> Scan {
        self.message.limit = limit;
        self
    }

    /// Last to first. Only of one partition key.
    pub fn reverse(mut self) -> Scan {
        self.message.reverse = true;
        self
    }

    /// Goes on behind a [`Page`] of an earlier scan of the same.
    pub fn cursor(mut self, cursor: impl Into<Bytes>) -> Scan {
        self.message.cursor = cursor.into();
        self
    }

    /// Replicas to hear, instead of the keyspace's own.
    pub fn r(mut self, r: impl Into<Level>) -> Scan {
        self.message.answers = Some(r.into().of_scan());
        self
    }

    /// How long a page may take, with all attempts, instead of the client's time.
    pub fn timeout(mut self, timeout: Duration) -> Scan {
        self.timeout = Some(timeout);
        self
    }

    /// The pages, one after the other: each is a whole answer of a node.
    pub fn pages(self) -> Pages {
        Pages { scan: self, stream: None, left: None, done: false }
    }

    /// The entries as a stream, which holds a page of them at a time. It ends after the first error.
    pub fn entries(self) -> impl Stream<Item = Result<Entry, Error>> + Send {
        let next = |mut pages: Pages| async move { Ok(pages.next().await?.map(|page| (page, pages))) };
        stream::try_unfold(self.pages(), next)
            .map_ok(|page: Page| stream::iter(page.entries).map(Ok))
            .try_flatten()
            .boxed()
    }
}

/// A scan in progress.
#[derive(Debug)]
pub struct Pages {
    scan: Scan,
    stream: Option<Streaming<ScanResponse>>,
    /// Entries left of the limit, if it has one.
    left: Option<u64>,
    done: bool,
}

impl Pages {
    /// Goes on behind the last page that was given.
    pub fn cursor(&self) -> &Bytes {
        &self.scan.message.cursor
    }

    /// The next page; none after the last. After an error it may be called again, and goes on.
    pub async fn next(&mut self) -> Result<Option<Page>, Error> {
        if self.scan.keyspace.session.is_some() {
            return Err(Error::invalid("scan: can't go through a session"));
        }
        if self.done {
            return Ok(None);
        }
        let until = deadline(&self.scan.keyspace, self.scan.timeout);
        let streamed = match &mut self.stream {
            Some(stream) => timeout_at(until, stream.message()).await,
            None => Ok(Ok(None)),
        };
        let page = match streamed {
            Ok(Ok(Some(page))) => Some(page),
            // It ended, broke or is late: another goes on behind what was taken.
            _ => {
                self.stream = None;
                self.open(until).await?
            }
        };
        Ok(page.and_then(|page| self.take(page)))
    }

    /// A new stream, and its first page; none if it ends at once.
    async fn open(&mut self, until: Instant) -> Result<Option<ScanResponse>, Error> {
        let Scan { keyspace, message, .. } = &self.scan;
        let send = |attempt: Attempt| {
            let message = proto::ScanRequest { timeout_ms: attempt.timeout_ms(), ..message.clone() };
            async move {
                let mut stream = attempt.kv().scan(message).await?.into_inner();
                // The first page too: an error before it is an error of the attempt.
                let first = stream.message().await?;
                Ok::<_, Status>(Response::new((first, stream)))
            }
        };
        let place = Place { keyspace: keyspace.name(), key: &message.key };
        let place = (!message.key.is_empty()).then_some(place);
        let (first, stream) = keyspace.client.0.call(Op::Read, place, until, send).await?.answer;
        self.stream = Some(stream);
        Ok(first)
    }

    fn take(&mut self, page: ScanResponse) -> Option<Page> {
        let limit = self.scan.message.limit;
        if limit > 0 {
            let left = self.left.unwrap_or(limit).saturating_sub(page.entries.len() as u64);
            // What another stream would be asked for: zero would mean all.
            (self.left, self.scan.message.limit) = (Some(left), left.max(1));
            self.done = left == 0;
        }
        self.done |= page.cursor.is_empty();
        self.scan.message.cursor = page.cursor.clone();
        let entry = |entry: proto::ScanEntry| Entry {
            key: Key { partition: entry.key, sort: entry.sort },
            siblings: entry.siblings.into_iter().map(Sibling::from).collect(),
            context: entry.context.into(),
        };
        Some(Page { entries: page.entries.into_iter().map(entry).collect(), cursor: page.cursor })
    }
}
