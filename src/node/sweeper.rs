//! Deletes what dropped keyspaces have left on this node's disk, in the background.
//!
//! The newest map says what is dropped (`replica/sweep.rs`). A late write can't survive: the commit thread holds
//! each record against the map before it writes it, and a pass begins behind an empty job. What was in the
//! queue when the map was learnt is then on disk, where the pass finds it, or refused. Passes go on until one finds
//! nothing. Nothing is remembered, so a restart begins anew where keys are left.
//!
//! It gives way: a bounded batch, then a rest, which is longer while clients are served.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::committer::Committer;
use super::coordinator::Coordinator;
use crate::replica::sweep;
use crate::ring::layout::ClusterMap;
use crate::storage::Batch;
use crate::types::error::Cause;
use crate::types::limits::SWEEP_REST_MAX;

/// Sweeps at the start and whenever a keyspace is dropped, for as long as the node runs.
pub async fn run(coordinator: Arc<Coordinator>, mut maps: watch::Receiver<Arc<ClusterMap>>) {
    let metrics = coordinator.driver.metrics.clone();
    let mut swept = 0;
    loop {
        let dropped = maps.borrow_and_update().dropped();
        if dropped > swept {
            metrics.sweeping.set(1);
            match sweep_all(&coordinator, &maps).await {
                Ok(0) => {}
                Ok(records) => tracing::info!(records, "records of dropped keyspaces are deleted"),
                Err(cause) if coordinator.driver.committer.has_failed() => {
                    tracing::error!(?cause, "records of dropped keyspaces are left for the next start");
                    return;
                }
                Err(cause) => {
                    tracing::warn!(?cause, "records of dropped keyspaces can't be deleted now");
                    tokio::time::sleep(SWEEP_REST_MAX).await;
                    continue;
                }
            }
            metrics.sweeping.set(0);
            swept = dropped;
            continue;
        }
        if maps.changed().await.is_err() {
            return;
        }
    }
}

/// Passes until one finds nothing; how many records went.
async fn sweep_all(coordinator: &Coordinator, maps: &watch::Receiver<Arc<ClusterMap>>) -> Result<u64, Cause> {
    let mut all = 0;
    loop {
        let records = pass(coordinator, maps).await?;
        all += records;
        if records == 0 {
            return Ok(all);
        }
    }
}

async fn pass(coordinator: &Coordinator, maps: &watch::Receiver<Arc<ClusterMap>>) -> Result<u64, Cause> {
    let driver = &coordinator.driver;
    // Whatever was submitted under an older map is written, or refused, before this returns.
    driver.committer.write(Batch::new()).await?;
    let (mut from, mut records) = (Some(sweep::begin()), 0);
    while let Some(at) = from {
        let began = driver.clock.mono();
        let map = maps.borrow().clone();
        let found = sweep::step(driver.committer.storage(), &map, &at);
        let found = found.map_err(|error| Cause::Storage(error.to_string()))?;
        from = found.next;
        let count = u64::try_from(found.batch.writes.len()).unwrap_or(u64::MAX);
        if count > 0 {
            delete(&driver.committer, found.batch).await?;
            driver.metrics.swept_records.inc_by(count);
            records += count;
        }
        let took = Duration::from_micros(driver.clock.mono().micros_since(began));
        let busy = coordinator.under_way.load(Ordering::Relaxed) > 0;
        tokio::time::sleep(sweep::rest(took, busy)).await;
    }
    Ok(records)
}

/// Deletes a batch; waits while the commit queue is full of what clients write.
async fn delete(committer: &Committer, batch: Batch) -> Result<(), Cause> {
    loop {
        match committer.write(batch.clone()).await {
            Err(Cause::Overloaded(delay)) => tokio::time::sleep(delay).await,
            other => return other,
        }
    }
}
