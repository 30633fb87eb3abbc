//! Gives back the disk space of what was deleted, in the background: `storage::compact`, step by step.

use std::future;
use std::sync::Arc;
use std::time::Duration;

use super::env::Clock;
use crate::storage::compact::Step;
use crate::storage::sled::SledStorage;
use crate::telemetry::metrics::Metrics;

/// How often it is looked whether there is something to do, and how long to wait after a failure.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_FAILED: Duration = Duration::from_mins(1);
/// After a step it rests for so many times what that took.
const REST_TIMES: u32 = 3;

/// Looks after a log of at least `least` bytes; never, if that is 0. Does not return.
pub async fn run(clock: Arc<dyn Clock>, storage: Arc<SledStorage>, least: u64, metrics: Arc<Metrics>) {
    if least == 0 {
        future::pending::<()>().await;
    }
    loop {
        let (engine, began) = (storage.clone(), clock.mono());
        let pause = match tokio::task::spawn_blocking(move || engine.compact(began, least)).await {
            Ok(Ok(Step::Idle)) => PAUSE,
            Ok(Ok(Step::More)) => Duration::from_micros(clock.mono().micros_since(began)) * REST_TIMES,
            Ok(Ok(Step::Compacted(before, after))) => {
                tracing::info!(before, after, "the log of the storage engine is compacted");
                metrics.compactions.inc();
                metrics.compacted_bytes.inc_by(before.saturating_sub(after));
                PAUSE
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the log of the storage engine can't be compacted now");
                PAUSE_FAILED
            }
            Err(error) => {
                tracing::error!(%error, "a compaction of the storage engine's log failed");
                PAUSE_FAILED
            }
        };
        metrics.live_bytes.set(storage.live_bytes());
        tokio::time::sleep(pause).await;
    }
}
