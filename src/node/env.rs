//! The outside world, passed in: clocks, randomness, network. The one file that reads the std clocks.
//!
//! The simulator gives a node another [`Env`]: a clock that jumps, a seeded generator, a network that breaks,
//! and a commit thread that is a task.

use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::rpc::transport::{Network, TcpNetwork};
use crate::types::time::{Mono, WallMs};

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
