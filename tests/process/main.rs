//! Real processes: clusters of `quoral serve` that are killed, stopped, confused and fed junk.
//!
//! What only real processes show: that what was acknowledged is on the disk when SIGKILL comes, that a dead or
//! stopped node makes no long pause, and that nothing a stranger sends brings a node down.
//!
//! `QUORAL_FLIP_ROUNDS` sets those of the test that damages files. `QUORAL_KILL_ROUNDS` sets the rounds of the test that kills all nodes at once (2; the bar is 20).

#![allow(clippy::disallowed_methods, reason = "real processes are waited for in real time")]
#![allow(
    clippy::await_holding_lock,
    reason = "each test has its own runtime, in which nobody else wants the lock"
)]

mod bad_input;
mod batch;
mod client;
mod cluster;
mod compaction;
mod crashes;
mod dev;
mod errors;
mod flips;
mod hints;
mod keyspaces;
mod late;
mod library;
mod load;
mod overload;
mod ownership;
mod refill;
mod repair;
mod repair_bytes;
mod repair_now;
mod retries;
mod scrub;
mod semantics;
mod session_stream;
mod sessions;
mod sloppy;
mod tombstones;
