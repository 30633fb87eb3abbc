//! Two processes with one node id: a restart, or a second one that lives?
//!
//! Why this way: a peer that still holds the process from before a restart looks just like a peer of a live
//! twin (a copied data directory). So the process that hears of a rival calls it at its address. Silence
//! means an earlier life, and its successor takes an identity above it, so a clock that was set back can't
//! lock a node out. The call says how long the caller has been running; whoever
//! takes it compares that with its own age (which needs no common clock) and answers who is the elder. The
//! younger one stops. One side decides, so two of nearly the same age don't both go on.
//!
//! Invariants:
//! 1. One rival is called at a time, a fixed number of times.
//! 2. A rival that was settled is called again only if its identity wins over ours once more.
//!
//! What it does not do: a twin behind a partition can't be called. It is found when the partition heals.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::identity::Identity;
use crate::types::ids::Nonce;
use crate::types::time::Mono;

/// Calls before silence counts.
const TRIES: u8 = 3;
/// Time between them: a round trip, and a pause of the other process.
const PATIENCE: Duration = Duration::from_millis(400);
/// A process this young calls every live rival that a peer knows; later only those that win over it.
const YOUNG: Duration = Duration::from_secs(5);
/// Settled rivals that are remembered.
const SETTLED: usize = 64;

#[derive(Debug)]
struct Call {
    rival: Identity,
    tries: u8,
    due: Mono,
}

/// What is known of rivals.
#[derive(Debug, Default)]
pub struct Rivals {
    call: Option<Call>,
    settled: BTreeSet<Nonce>,
}

impl Rivals {
    /// Whether a live rival should be called, by a process of that age.
    pub fn is_worth_a_call(&self, rival: &Identity, wins: bool, age: Duration) -> bool {
        self.call.is_none() && (wins || (age < YOUNG && !self.settled.contains(&rival.nonce)))
    }

    /// Begins to call it.
    pub fn call(&mut self, rival: Identity, now: Mono) {
        self.call = Some(Call { rival, tries: 0, due: now });
    }

    /// Whether an answer is awaited.
    pub fn is_waiting(&self) -> bool {
        self.call.is_some()
    }

    /// Where to call now, if it is time.
    pub fn next_call(&mut self, now: Mono) -> Option<SocketAddr> {
        let call = self.call.as_mut().filter(|c| c.due <= now && c.tries < TRIES)?;
        call.tries += 1;
        call.due = now + PATIENCE;
        Some(call.rival.address)
    }

    /// The rival that did not answer any call.
    pub fn silent(&mut self, now: Mono) -> Option<Identity> {
        self.call.take_if(|c| c.tries == TRIES && c.due <= now).map(|c| c.rival)
    }

    /// The matter is decided.
    pub fn settle(&mut self, rival: &Identity) {
        self.call.take_if(|c| c.rival.nonce == rival.nonce);
        if self.settled.len() >= SETTLED {
            self.settled.clear();
        }
        self.settled.insert(rival.nonce);
    }
}
