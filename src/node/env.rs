//! The outside world, passed in: clocks, randomness, network. The one file that reads the std clocks.
//!
//! The simulator gives a node another [`Env`]: a clock that jumps, a seeded generator, a network that breaks,
//! and a commit thread that is a task.

use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::rpc::transport::{Network, TcpNetwork};
use crate::types::ids::NodeId;
use crate::types::time::{Mono, WallMs};
use crate::version::median::Median;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Never goes back.
    fn mono(&self) -> Mono;
    /// May jump.
    fn wall(&self) -> WallMs;
}

/// The operating system's clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    start: tokio::time::Instant,
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock { start: tokio::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    fn mono(&self) -> Mono {
        Mono(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    // The one place where the wall clock is read.
    #[allow(clippy::disallowed_methods)]
    fn wall(&self) -> WallMs {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        WallMs(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// A clock whose wall time is kept near the median of the clocks of the other nodes that are heard.
pub struct ClusterClock {
    own: Arc<dyn Clock>,
    others: Mutex<Median>,
    limit_ms: u64,
}

impl ClusterClock {
    /// Follows `own`, to within half of `max_skew_ms` of the median.
    pub fn new(own: Arc<dyn Clock>, max_skew_ms: u64) -> ClusterClock {
        ClusterClock { own, others: Mutex::default(), limit_ms: max_skew_ms / 2 }
    }

    /// The own wall clock as it is.
    pub fn own_wall(&self) -> WallMs {
        self.own.wall()
    }

    /// Notes what another node's own wall clock said, and its monotonic one; what the latter says now.
    pub fn heard(&self, from: NodeId, wall: WallMs, up: Mono) -> Mono {
        let at = self.own.mono();
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.heard(from, wall, up, at);
        others.up(from, at).unwrap_or(up).max(up)
    }

    /// Forgets what another node's clocks said.
    pub fn forget(&self, from: NodeId) {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).forget(from);
    }

    /// How far the own clock is ahead of what is believed, in milliseconds; negative if it is behind.
    pub fn error_ms(&self) -> i64 {
        let signed = |wall: WallMs| i64::try_from(wall.0).unwrap_or(i64::MAX);
        signed(self.own_wall()).saturating_sub(signed(self.wall()))
    }
}

impl Clock for ClusterClock {
    fn mono(&self) -> Mono {
        self.own.mono()
    }

    fn wall(&self) -> WallMs {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.believe(self.own.wall(), self.own.mono(), self.limit_ms)
    }
}

/// Where the commit thread's work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitMode {
    /// On a thread of its own: a sync never blocks the runtime.
    Thread,
    /// In a task: deterministic, for the simulator's storage, which never blocks.
    Inline,
}

/// A node's surroundings.
#[derive(Clone)]
pub struct Env {
    /// Clocks.
    pub clock: Arc<dyn Clock>,
    /// Network.
    pub network: Arc<dyn Network>,
    /// Commit thread.
    pub commit: CommitMode,
    rng: Arc<Mutex<StdRng>>,
}

impl Env {
    /// Surroundings with these parts, and a generator seeded with `seed`.
    pub fn new(clock: Arc<dyn Clock>, network: Arc<dyn Network>, commit: CommitMode, seed: u64) -> Env {
        Env { clock, network, commit, rng: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))) }
    }

    /// The same with another clock.
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Env {
        Env { clock, ..self }
    }

    /// The operating system's.
    pub fn system() -> Env {
        let seed = rand::random();
        Env::new(Arc::new(SystemClock::default()), Arc::new(TcpNetwork), CommitMode::Thread, seed)
    }

    /// A random number.
    pub fn random(&self) -> u64 {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).random()
    }
}
