//! The environment of a node: its clocks.
//!
//! Why this way: everything below takes times by argument, and this trait is where they come from. The
//! simulator passes its own.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::time::{Mono, WallMs};

/// Where a node's times come from.
pub trait Clock: Send + Sync {
    /// Time since some start; never goes back.
    fn mono(&self) -> Mono;
    /// The wall clock; may jump.
    fn wall(&self) -> WallMs;
}

/// The machine's clocks. The monotonic one is tokio's, so that it agrees with tokio's timers.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    start: tokio::time::Instant,
}

impl SystemClock {
    /// A clock that starts now.
    pub fn new() -> SystemClock {
        SystemClock { start: tokio::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn mono(&self) -> Mono {
        Mono(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    // The one place where the real wall clock is read; all others take it from here.
    #[allow(clippy::disallowed_methods)]
    fn wall(&self) -> WallMs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
