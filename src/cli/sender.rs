//! Sends a row of `load` until it is acknowledged, whichever node dies.
//!
//! In an `lww` keyspace to put a value twice does the same as once. In a `siblings` keyspace each row is read
//! before it is sent, or sent again, and is left alone if its value is there already; what else is there
//! stays, so a dump with siblings is loaded back to the same set, and loaded twice it is not doubled.
//!
//! A row's time bounds its last attempt too. When it is up, the last answer of a node is told.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Global;
use super::client::{Client, Kv, Worst, has_time};
use super::output::{CliError, Exit, Op};
use super::pages::Known;
use super::request::{get, millis, put_level};
use super::rows::Row;
use crate::rpc::proto;
use crate::types::policy::Level;

/// First pause before a row is sent again; doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// Longest such pause.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// What sending a row needs.
pub struct Sender {
    /// One for each endpoint, which begins there and knows the others.
    clients: Vec<Client>,
    /// How many of them the user gave.
    given: usize,
    keyspace: String,
    siblings: bool,
    w: Option<Level>,
    row_timeout: Duration,
}

/// Whether another endpoint, or the same one later, would say the same.
fn is_final(error: &CliError) -> bool {
    matches!(
        error.code,
        "INVALID_ARGUMENT"
            | "OUT_OF_RANGE"
            | "NOT_FOUND"
            | "PERMISSION_DENIED"
            | "UNAUTHENTICATED"
            | "UNIMPLEMENTED"
            | "FAILED_PRECONDITION"
    )
}

impl Sender {
    /// A sender to all endpoints known; each row has `row_timeout`.
    pub fn new(
        global: &Global,
        known: &Known,
        siblings: bool,
        w: Option<Level>,
        row_timeout: Duration,
    ) -> Result<Sender, CliError> {
        let clients = (0..known.endpoints.len())
            .map(|first| {
                let mut endpoints = known.endpoints.clone();
                endpoints.rotate_left(first);
                Client::connect(&endpoints, global.timeout())
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Sender {
            clients,
            given: global.endpoints.len(),
            keyspace: global.keyspace.clone(),
            siblings,
            w,
            row_timeout,
        })
    }

    /// Sends a row until it is acknowledged, refused for good, or out of time.
    pub async fn send(&self, line: u64, row: Row) -> Result<(), CliError> {
        let end = Instant::now() + self.row_timeout;
        let mut backoff = BACKOFF_MIN;
        let mut worst = Worst::default();
        for attempt in 0.. {
            // Rows are spread over the given endpoints; the others are for when one fails.
            let first = (line % self.given as u64) as usize;
            let client = &self.clients[(first + attempt) % self.clients.len()];
            let error = match self.attempt(client, &row, end).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // Rows that failed together should not come back together.
            let jitter = Duration::from_millis((line.wrapping_mul(7_919) + attempt as u64 * 31) % 20);
            let pause = error.retry_after.unwrap_or(backoff).min(BACKOFF_MAX) + jitter;
            let ended = is_final(&error) || !self.has_time(end, pause);
            worst.add(error);
            if ended {
                return Err(worst.into_error());
            }
            sleep(pause).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        Ok(())
    }

    fn has_time(&self, end: Instant, pause: Duration) -> bool {
        has_time(end.saturating_duration_since(Instant::now()), pause, self.row_timeout)
    }

    async fn attempt(&self, client: &Client, row: &Row, end: Instant) -> Result<(), CliError> {
        let within = || client.within(end.saturating_duration_since(Instant::now()));
        if self.siblings {
            if self.is_there(&within(), row).await? {
                return Ok(());
            }
            if !self.has_time(end, Duration::ZERO) {
                return Err(CliError::new(Exit::Unavailable, "no time is left to send it; nothing was sent"));
            }
        }
        let client = within();
        let request = proto::PutRequest {
            keyspace: self.keyspace.clone(),
            key: row.key.partition_key().clone(),
            sort: row.key.sort_key().clone(),
            value: row.value.clone(),
            acks: self.w.map(put_level),
            timeout_ms: millis(client.timeout()),
            ..Default::default()
        };
        let send = |mut kv: Kv| {
            let request = request.clone();
            async move { kv.put(request).await }
        };
        let op = if self.siblings { Op::Write } else { Op::RepeatableWrite };
        client.call_kv(op, send).await.map(|_| ())
    }

    async fn is_there(&self, client: &Client, row: &Row) -> Result<bool, CliError> {
        let request = proto::GetRequest {
            keyspace: self.keyspace.clone(),
            key: row.key.partition_key().clone(),
            sort: row.key.sort_key().clone(),
            timeout_ms: millis(client.timeout()),
            answers: None,
            sloppy: None,
            session: None,
        };
        let answer = get(client, request).await?;
        Ok(answer.siblings.iter().any(|sibling| sibling.value == row.value))
    }
}
