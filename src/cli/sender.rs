//! Sends a row of `load` until it is acknowledged, whichever node dies.
//!
//! In an `lww` keyspace to put a value twice does the same as once. In a `siblings` keyspace each row is read
//! before it is sent, or sent again, and is left alone if its value is there already; what else is there
//! stays, so a dump with siblings is loaded back to the same set, and loaded twice it is not doubled. Such a row has a
//! request id, since an attempt without an answer may be found on no node that is up; but of one load no more than
//! [`LOAD_ROWS_NAMED`], which others' ids need room beside.
//!
//! Rows go to a home replica of their key, over one stream to each node, and to another node when that one fails.
//!
//! A row with a time to live gets the rest of it; one whose time is up is left out.
//!
//! A row's time bounds its last attempt too. When it is up, the last answer of a node is told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quoral_client::{Keyspace, Pipeline, RequestId};
use tokio::time::{Instant, sleep};

use super::Global;
use super::client::{self, Worst, has_time};
use super::output::{CliError, Exit};
use super::request::client_level;
use super::rows::Row;
use crate::node::env::{Clock as _, SystemClock};
use crate::types::limits::LOAD_ROWS_NAMED;
use crate::types::policy::Level;

/// First pause before a row is sent again; doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// Longest such pause.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// What sending a row needs.
pub struct Sender {
    pipeline: Pipeline,
    keyspace: Keyspace,
    siblings: bool,
    w: Option<Level>,
    /// The longest that one attempt may take.
    timeout: Duration,
    row_timeout: Duration,
    /// Rows that were left out, since their time was up.
    left_out: AtomicU64,
    /// Rows that may have a request id yet.
    names: AtomicU64,
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

/// The wall clock, as rows have it.
fn now_ms() -> u64 {
    SystemClock::default().wall().0
}

impl Sender {
    /// A sender to the home replicas of each row, found by way of `endpoints`; each row has `row_timeout`.
    pub fn new(
        global: &Global,
        endpoints: &[String],
        siblings: bool,
        w: Option<Level>,
        row_timeout: Duration,
    ) -> Result<Sender, CliError> {
        let client = client::routed(endpoints, global.timeout())?;
        Ok(Sender {
            pipeline: client.pipeline(),
            keyspace: client.keyspace(global.keyspace()),
            siblings,
            w,
            timeout: global.timeout(),
            row_timeout,
            left_out: AtomicU64::new(0),
            names: AtomicU64::new(if siblings { LOAD_ROWS_NAMED } else { 0 }),
        })
    }

    /// Rows that were left out, since their time was up.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Sends a row until it is acknowledged, refused for good, or out of time.
    pub async fn send(&self, line: u64, row: Row) -> Result<(), CliError> {
        let end = Instant::now() + self.row_timeout;
        let mut backoff = BACKOFF_MIN;
        let mut worst = Worst::default();
        let take = |names: u64| names.checked_sub(1);
        let is_named = self.names.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        let name = is_named.then(RequestId::random);
        for attempt in 0_u64.. {
            let error = match self.attempt(&row, name, end).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // Rows that failed together should not come back together.
            let jitter = Duration::from_millis((line.wrapping_mul(7_919) + attempt * 31) % 20);
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

    /// The time of an attempt.
    fn within(&self, end: Instant) -> Duration {
        end.saturating_duration_since(Instant::now()).min(self.timeout)
    }

    async fn attempt(&self, row: &Row, name: Option<RequestId>, end: Instant) -> Result<(), CliError> {
        let key = quoral_client::Key {
            partition: row.key.partition_key().clone(),
            sort: row.key.sort_key().clone(),
        };
        let ttl = row.expires_at_ms.map(|at| Duration::from_millis(at.saturating_sub(now_ms())));
        if ttl.is_some_and(|ttl| ttl.is_zero()) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        if self.siblings {
            let found = self.pipeline.get(self.keyspace.get(key.clone()).timeout(self.within(end))).await?;
            if found.values().any(|value| *value == row.value) {
                return Ok(());
            }
            if !self.has_time(end, Duration::ZERO) {
                return Err(CliError::new(Exit::Unavailable, "no time is left to send it; nothing was sent"));
            }
        }
        let mut put = self.keyspace.put(key, row.value.clone()).timeout(self.within(end));
        if let Some(ttl) = ttl {
            put = put.ttl(ttl);
        }
        let put = match self.w {
            Some(w) => put.w(client_level(w)),
            None => put,
        };
        let put = match name {
            Some(name) => put.request_id(name),
            None if self.siblings => put.unnamed(),
            None => put.repeatable(),
        };
        self.pipeline.put(put).await?;
        Ok(())
    }
}
