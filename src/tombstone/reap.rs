//! The collection of some tombstones of one place, as the first of its home replicas leads it.
//!
//! Rules, each with a script in `scripts/reap_*.txt`:
//! 1. Every other home replica is asked whether it holds exactly these records, durably.
//! 2. One that does not hold some of them is sent those, and asked again, once.
//! 3. A record is purged only if all have confirmed it. Each deletes it only if it is still the same then.
//! 4. While one can't be reached, or refuses, nothing is purged: the records wait for it.
//! 5. The own copies go last, when all others have answered: they are what is left to begin anew from.
//! 6. And only if all had confirmed it before, so long ago that nothing is on its way any more that was read before
//!    then: one that lacked it until then may have told somebody what was deleted. The caller says which are *ripe*;
//!    of the others it is told that they are confirmed now. One that somebody lacks again is not ripe any more.
//!
//! Invariant: nothing is purged that not all have confirmed, twice.

use std::collections::{BTreeMap, BTreeSet};

use crate::machine::Machine;
use crate::types::ids::NodeId;
use crate::types::time::Mono;

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// Begin.
    Start,
    /// A node holds these of the records exactly, by number.
    Holds(NodeId, BTreeSet<usize>),
    /// A node has taken what it was sent.
    Taken(NodeId),
    /// A node has purged what it could.
    Purged(NodeId),
    /// A node did not answer, or refused.
    Failed(NodeId),
    /// So many of the own copies are purged.
    PurgedOwn(usize),
}

/// What it asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Ask a node which of the records it holds exactly.
    Ask(NodeId),
    /// Send a node these of the records.
    Push(NodeId, BTreeSet<usize>),
    /// Have a node purge these.
    Purge(NodeId, BTreeSet<usize>),
    /// Purge the own copies of these.
    PurgeOwn(BTreeSet<usize>),
    /// It is over.
    Finish {
        /// Records that are gone from here.
        purged: usize,
        /// Those that all hold, and that are not ripe yet.
        confirmed: BTreeSet<usize>,
        /// Whom the rest waits for.
        waits_for: BTreeSet<NodeId>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// Not asked, or asked.
    Asked,
    /// Sent what it lacks.
    Pushed,
    /// Asked again.
    AskedAgain,
    /// Holds these.
    Holds(BTreeSet<usize>),
    /// Asked to purge.
    Purging,
    /// Has purged.
    Purged,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reap {
    records: usize,
    others: BTreeMap<NodeId, State>,
    /// Confirmed by all so long ago that they may go.
    ripe: BTreeSet<usize>,
    /// Confirmed by all, and ripe: they go.
    doomed: BTreeSet<usize>,
    /// Confirmed by all, and not ripe.
    confirmed: BTreeSet<usize>,
    over: bool,
}

impl Reap {
    /// The collection of so many records, of which these are ripe, and whose other home replicas are these.
    pub fn new(records: usize, ripe: BTreeSet<usize>, others: impl IntoIterator<Item = NodeId>) -> Reap {
        let others = others.into_iter().map(|node| (node, State::Asked)).collect();
        Reap { records, others, ripe, doomed: BTreeSet::new(), confirmed: BTreeSet::new(), over: false }
    }

    fn finish(&mut self, purged: usize, waits_for: BTreeSet<NodeId>, effects: &mut Vec<Effect>) {
        self.over = true;
        effects.push(Effect::Finish { purged, confirmed: self.confirmed.clone(), waits_for });
    }

    fn holds(&mut self, node: NodeId, held: BTreeSet<usize>, effects: &mut Vec<Effect>) {
        let all: BTreeSet<usize> = (0..self.records).collect();
        let missing: BTreeSet<usize> = all.difference(&held).copied().collect();
        match self.others.get_mut(&node) {
            Some(state @ State::Asked) if !missing.is_empty() => {
                *state = State::Pushed;
                self.ripe.retain(|record| !missing.contains(record));
                effects.push(Effect::Push(node, missing));
            }
            Some(state @ (State::Asked | State::AskedAgain)) => {
                *state = State::Holds(held);
                self.doom(effects);
            }
            _ => {}
        }
    }

    /// Once all have confirmed.
    fn doom(&mut self, effects: &mut Vec<Effect>) {
        let mut confirmed: BTreeSet<usize> = (0..self.records).collect();
        let mut lacking = BTreeSet::new();
        for (node, state) in &self.others {
            let State::Holds(held) = state else { return };
            if held.len() < self.records {
                lacking.insert(*node);
            }
            confirmed.retain(|record| held.contains(record));
        }
        (self.doomed, self.confirmed) = confirmed.into_iter().partition(|record| self.ripe.contains(record));
        if self.doomed.is_empty() {
            return self.finish(0, lacking, effects);
        }
        for (node, state) in &mut self.others {
            *state = State::Purging;
            effects.push(Effect::Purge(*node, self.doomed.clone()));
        }
        self.purge_own(effects);
    }

    fn purge_own(&mut self, effects: &mut Vec<Effect>) {
        if self.others.values().all(|state| *state == State::Purged) {
            effects.push(Effect::PurgeOwn(self.doomed.clone()));
        }
    }
}

impl Machine for Reap {
    type Event = Event;
    type Effect = Effect;

    fn step(&mut self, _: Mono, event: Event, effects: &mut Vec<Effect>) {
        if self.over {
            return;
        }
        match event {
            Event::Start if self.others.is_empty() => self.doom(effects),
            Event::Start => effects.extend(self.others.keys().map(|node| Effect::Ask(*node))),
            Event::Holds(node, held) => self.holds(node, held, effects),
            Event::Taken(node) => {
                if let Some(state @ State::Pushed) = self.others.get_mut(&node) {
                    *state = State::AskedAgain;
                    effects.push(Effect::Ask(node));
                }
            }
            Event::Purged(node) => {
                if let Some(state @ State::Purging) = self.others.get_mut(&node) {
                    *state = State::Purged;
                    self.purge_own(effects);
                }
            }
            // What some have purged by then comes back to them as a tombstone, and is purged with the rest later.
            Event::Failed(node) => self.finish(0, BTreeSet::from([node]), effects),
            Event::PurgedOwn(purged) => self.finish(purged, BTreeSet::new(), effects),
        }
    }

    fn check_invariants(&self) {
        assert!(self.doomed.iter().all(|record| *record < self.records && self.ripe.contains(record)));
        let purging = self.others.values().any(|state| matches!(state, State::Purging | State::Purged));
        assert!(!purging || !self.doomed.is_empty(), "something is purged that nobody has confirmed");
    }
}

#[cfg(test)]
#[path = "reap_model.rs"]
mod model;
