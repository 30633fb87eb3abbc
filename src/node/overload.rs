//! Watches how long work waits on this node, and sets how much it takes.
//!
//! Two queues are looked at: that of the runtime, by how late a timer's task is run, and that of the commit thread; and
//! how much of their time requests take that end.
//! `src/quorum/admission.rs` makes a limit of them, which the door keeps (`src/rpc/admission.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::coordinator::Coordinator;
use crate::quorum::admission::{Limiter, Window};
use crate::rpc::admission::Door;
use crate::types::limits::{ADMISSION_TICK, ADMISSION_WINDOW};

/// How late the next tick of a timer is run.
async fn lateness(coordinator: &Coordinator) -> Duration {
    let clock = &coordinator.driver.clock;
    let began = clock.mono();
    tokio::time::sleep(ADMISSION_TICK).await;
    Duration::from_micros(clock.mono().micros_since(began)).saturating_sub(ADMISSION_TICK)
}

/// Sets the limit for as long as the node runs.
pub async fn govern(coordinator: Arc<Coordinator>, door: Arc<Door>) {
    let mut limiter = Limiter::new(coordinator.requests_limit);
    let metrics = coordinator.driver.metrics.clone();
    let mut left = ADMISSION_WINDOW;
    let mut least_delay = Duration::MAX;
    loop {
        let late = lateness(&coordinator).await;
        least_delay = least_delay.min(late.max(coordinator.driver.committer.queue_delay()));
        left = left.saturating_sub(ADMISSION_TICK + late);
        if !left.is_zero() {
            continue;
        }
        let under_way = coordinator.under_way.load(Ordering::Relaxed);
        let most_under_way = door.take_most().max(under_way);
        let hot = coordinator.hot_refused.swap(0, Ordering::Relaxed);
        let [ended, late, well] = coordinator.ended.each_ref().map(|count| count.swap(0, Ordering::Relaxed));
        let window = Window { least_delay, most_under_way, ended, late, well };
        let limit = limiter.learn(window);
        door.set_limit(limit);
        coordinator.limit_now.store(limit.saturating_mul(2), Ordering::Relaxed);
        metrics.requests_limit.set(u64::try_from(limit).unwrap_or(u64::MAX));
        let delay = u64::try_from(least_delay.as_micros()).unwrap_or(u64::MAX);
        metrics.queue_delay.set(delay);
        metrics.requests_shed.inc_by(u64::try_from(door.take_refused() + hot).unwrap_or(0));
        (left, least_delay) = (ADMISSION_WINDOW, Duration::MAX);
    }
}
