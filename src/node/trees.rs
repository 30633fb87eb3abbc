//! Looks after the Merkle trees: regions that a crash left in doubt are rebuilt, those that were written to are stored.
//!
//! The commit thread does it, a little at a time, so that clients' writes don't wait.

use std::sync::Arc;
use std::time::Duration;

use super::committer::Committer;
use crate::telemetry::metrics::Metrics;
use crate::types::error::Cause;

/// How long to wait between steps while there is something to rebuild: more than a step takes, so that it is half of
/// the commit thread's time at the most.
const REBUILD_REST: Duration = Duration::from_millis(2);
/// How long to wait between steps otherwise.
const STORE_REST: Duration = Duration::from_millis(500);

/// Runs as long as the node.
pub async fn tend(committer: Committer, metrics: Arc<Metrics>) {
    loop {
        let rest = match committer.tend(false).await {
            Ok(health) => {
                metrics.repair.tree_items.set(health.items);
                metrics.repair.tree_bytes.set(u64::try_from(health.memory).unwrap_or(u64::MAX));
                metrics.repair.tree_rebuilds.set(u64::try_from(health.in_rebuild).unwrap_or(u64::MAX));
                if health.in_rebuild > 0 { REBUILD_REST } else { STORE_REST }
            }
            Err(Cause::Overloaded(delay)) => delay,
            Err(_) if committer.has_failed() => return,
            Err(cause) => {
                tracing::warn!(?cause, "the Merkle trees can't be looked after now");
                STORE_REST
            }
        };
        tokio::time::sleep(rest).await;
    }
}
