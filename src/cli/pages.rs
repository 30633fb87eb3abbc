//! The pages of a scan, whatever happens to the node that sends them.
//!
//! Invariants:
//! 1. Each entry is given once: a page is taken whole or not at all, and after a broken stream the scan
//!    goes on behind the last page taken, at the next endpoint.
//! 2. It ends: after `patience` without a page the last answer of a node is returned (if none answered, the
//!    last error), with the cursor kept for later. By then as many endpoints were asked as were given.
//! 3. Memory is bounded by one page and what the connection buffers.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;

use super::Global;
use super::client::{Client, Worst};
use super::output::{CliError, Exit, Op, Reached, note};
use super::request::millis;
use crate::rpc::proto::kv_client::KvClient;
use crate::rpc::proto::{ScanRequest, ScanResponse, StatusRequest};
use crate::types::limits;

/// Pause before all endpoints are tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How much longer than a page's own deadline its answer may take to arrive.
const GRACE: Duration = Duration::from_millis(500);

/// A scan in progress.
pub struct Pages {
    clients: Vec<Client>,
    /// How many of them the user gave.
    given: usize,
    /// Index of the client in use.
    at: usize,
    /// What is still to be read: its cursor and limit move on with each page.
    request: ScanRequest,
    stream: Option<Streaming<ScanResponse>>,
    page_timeout: Duration,
    patience: Duration,
    /// Since when no page has come.
    waiting_since: Instant,
    /// Failed attempts since the last page, and what they tell.
    failures: usize,
    worst: Worst,
    /// Whether a page has come at all, and from the stream in use.
    started: bool,
    stream_gave: bool,
    done: bool,
}

impl Pages {
    /// A scan for `request` (its `timeout_ms` is set here), that goes on without a page for `patience`.
    pub fn new(
        global: &Global,
        known: &Known,
        mut request: ScanRequest,
        patience: Duration,
    ) -> Result<Pages, CliError> {
        let clients = known
            .endpoints
            .iter()
            .map(|endpoint| Client::connect(std::slice::from_ref(endpoint), global.timeout()))
            .collect::<Result<Vec<_>, _>>()?;
        request.timeout_ms = millis(global.timeout());
        Ok(Pages {
            clients,
            given: global.endpoints.len(),
            at: 0,
            request,
            stream: None,
            page_timeout: global.timeout(),
            patience,
            waiting_since: Instant::now(),
            failures: 0,
            worst: Worst::default(),
            started: false,
            stream_gave: false,
            done: false,
        })
    }

    /// Goes on behind the last page given; empty before the first and after the last page of all.
    pub fn cursor(&self) -> &Bytes {
        &self.request.cursor
    }

    /// The next page; none after the last.
    pub async fn next(&mut self) -> Result<Option<ScanResponse>, CliError> {
        self.waiting_since = Instant::now();
        while !self.done {
            match self.attempt().await {
                Ok(Some(page)) => {
                    self.take(&page);
                    return Ok(Some(page));
                }
                Ok(None) => self.ended(),
                Err(error) => self.failed(error).await?,
            }
        }
        Ok(None)
    }

    async fn attempt(&mut self) -> Result<Option<ScanResponse>, CliError> {
        let late = |_| {
            let error = CliError::new(Exit::Unavailable, "no page within the time");
            CliError { reached: Reached::Connection, ..error }
        };
        let wait = self.page_timeout + GRACE;
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let channel = self.clients[self.at].channel().await?;
                let mut kv = KvClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
                let opened = timeout(wait, kv.scan(self.request.clone())).await.map_err(late)?;
                let opened = opened.map_err(|status| CliError::from_status(&status, Op::Read))?;
                self.stream_gave = false;
                self.stream.insert(opened.into_inner())
            }
        };
        let page = timeout(wait, stream.message()).await.map_err(late)?;
        page.map_err(|status| CliError::from_status(&status, Op::Read))
    }

    fn take(&mut self, page: &ScanResponse) {
        self.started = true;
        self.stream_gave = true;
        self.failures = 0;
        self.worst = Worst::default();
        let entries = page.entries.len() as u64;
        let all_wanted = self.request.limit > 0 && entries >= self.request.limit;
        self.request.limit = self.request.limit.saturating_sub(entries);
        self.request.cursor = page.cursor.clone();
        self.done = page.cursor.is_empty() || all_wanted;
    }

    /// The stream ended in order. If a cursor is left and pages came, the server has only closed early; a
    /// stream without a page says that there is nothing more.
    fn ended(&mut self) {
        self.stream = None;
        if !self.stream_gave {
            self.request.cursor = Bytes::new();
        }
        self.done = self.request.cursor.is_empty();
    }

    /// Turns to the next endpoint, or gives up.
    async fn failed(&mut self, error: CliError) -> Result<(), CliError> {
        self.stream = None;
        self.failures += 1;
        let round_over = self.failures.is_multiple_of(self.clients.len());
        // A scan that never began need not be saved.
        let patience = if self.started { self.patience } else { self.page_timeout };
        if error.exit != Exit::Unavailable {
            return Err(error);
        }
        let (told, delay) = (error.to_string(), error.retry_after);
        self.worst.add(error);
        // One slow node may have used up all the time: the others are asked nevertheless.
        if self.waiting_since.elapsed() >= patience && self.failures >= self.given {
            return Err(std::mem::take(&mut self.worst).into_error());
        }
        if self.failures == 1 && self.started {
            note(format!("quoral: {told}; going on at another endpoint"));
        }
        self.at = (self.at + 1) % self.clients.len();
        if let Some(delay) = delay {
            sleep(delay.min(patience)).await;
        } else if round_over {
            sleep(RETRY_PAUSE).await;
        }
        Ok(())
    }
}

/// What a verb that outlives a node's death knows of the cluster.
#[derive(Debug, Clone)]
pub struct Known {
    /// The endpoints given, then those that the cluster tells of and that were not given: to turn to when
    /// the given ones die.
    pub endpoints: Vec<String>,
    /// The cluster's id.
    pub cluster_id: String,
}

impl Known {
    /// Asks the cluster; an error if no given endpoint can be reached.
    pub async fn ask(global: &Global) -> Result<Known, CliError> {
        let client = global.client()?;
        let status = client
            .call_cluster(Op::Read, |mut cluster| async move { cluster.status(StatusRequest {}).await })
            .await?;
        let mut endpoints = global.endpoints.clone();
        for node in status.nodes {
            let told = node.client_address;
            // One that can't be parsed is of no use; the given ones were checked above.
            let usable = Client::connect(std::slice::from_ref(&told), global.timeout()).is_ok();
            if node.state != "left" && usable && !endpoints.contains(&told) {
                endpoints.push(told);
            }
        }
        Ok(Known { endpoints, cluster_id: status.cluster_id })
    }
}
