//! The shape of every protocol in Quoral: a pure state machine.
//!
//! Why this way: logic that is `step(now, event, &mut effects)` has no clock, no lock, no await and no
//! logging, so a golden script, an exhaustive model, the simulator and the server all run the same code
//! (the habit of foca, etcd's raft and toydb).
//!
//! Invariants:
//! 1. A machine does nothing but change itself and push effects.
//! 2. Effects are carried out in order; an effect that stores precedes the effects that depend on it.

use crate::types::time::Mono;

/// A deterministic protocol machine.
pub trait Machine {
    /// What can happen to it.
    type Event;
    /// What it asks its driver to do.
    type Effect;

    /// Take `event` at time `now`, and push what must be done, in order, onto `effects`.
    fn step(&mut self, now: Mono, event: Self::Event, effects: &mut Vec<Self::Effect>);

    /// Panics if an invariant of the machine does not hold. Tests call it after each step.
    fn check_invariants(&self);
}
