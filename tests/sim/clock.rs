//! A node's clocks in the simulation: both run with the simulated time; the wall clock is off by as much as
//! the scenario says, and jumps when it says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quoral::node::env::Clock;
use quoral::types::time::{Mono, WallMs};

/// When every simulation begins, in milliseconds since 1970.
pub const EPOCH_MS: u64 = 1_700_000_000_000;

/// How far ahead of the simulated time a host's wall clock is, in milliseconds.
pub type Offset = Arc<AtomicU64>;

/// The clocks of one life of a host.
pub struct SimClock {
    start: tokio::time::Instant,
    offset: Offset,
}

impl SimClock {
    /// Clocks that start now.
    pub fn new(offset: Offset) -> SimClock {
        SimClock { start: tokio::time::Instant::now(), offset }
    }
}

/// Simulated milliseconds since the simulation began; to be asked on a simulated host.
pub fn now_ms() -> u64 {
    turmoil::sim_elapsed().map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

impl Clock for SimClock {
    fn mono(&self) -> Mono {
        Mono(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn wall(&self) -> WallMs {
        WallMs(EPOCH_MS + now_ms() + self.offset.load(Ordering::Relaxed))
    }
}
